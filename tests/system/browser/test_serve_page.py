"""The server's page in Chromium, from the chosen image to its prediction."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("playwright", reason="needs the extra: dev")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from search.deployment.predictor import load
from search.deployment.server.app import build_app
from search.deployment.server.listening import Listening
from search.deployment.server.middleware import Limits
from search.deployment.server.schemas import describe_model
from search.deployment.server.service import LocalService
from search.deployment.server.starting import Startup
from tests.fixtures.serving import serving
from trainables.models.ood import OODScorer

expect.set_options(timeout=30_000)

pytestmark = pytest.mark.browser

TOKEN = "a-token-of-some-length"


def serve(run: Path, token: str | None, ood_score: float | None = None) -> Iterator[str]:
    """The page's address."""
    predictor = load(run)
    if ood_score is not None:
        n = predictor.model.card.n_members
        scale = torch.tensor([0.0, 0.0, ood_score])
        predictor.model.ood_scorer = OODScorer(torch.zeros(n, 128), torch.zeros(n, 1, 128), scale)
    with serving(predictor, Limits(), token) as url:
        yield f"{url}/"


@pytest.fixture(scope="module")
def url(colour_run: Path) -> Iterator[str]:
    yield from serve(colour_run, None)


@pytest.fixture(scope="module")
def guarded_url(colour_run: Path) -> Iterator[str]:
    yield from serve(colour_run, TOKEN)


@pytest.fixture(scope="module")
def pad_url(colour_run: Path) -> Iterator[str]:
    """The page of a model with resize mode pad."""
    predictor = load(colour_run)
    predictor.model.card = replace(predictor.model.card, resize_mode="pad")
    with serving(predictor, Limits()) as url:
        yield f"{url}/"


@pytest.fixture(scope="module")
def described_url(colour_run: Path) -> Iterator[str]:
    """The page of a model whose accuracy is known."""
    predictor = load(colour_run)
    info = describe_model(colour_run, predictor.model.card).model_copy(
        update={"accuracy": 0.9833, "accuracy_ci95": [0.9114, 0.9971], "n_test": 60}
    )
    with serving(predictor, Limits(), info=info) as url:
        yield f"{url}/"


@pytest.fixture(scope="module")
def ood_url(colour_run: Path) -> Iterator[str]:
    yield from serve(colour_run, None, ood_score=2.5)


def test_a_chosen_image_is_predicted(url, page: Page, complaints, colour_images):
    page.goto(url)
    page.set_input_files("#files", colour_images / "grün und blau" / "012.png")
    result = page.locator("article").first
    expect(result.locator(".answer")).to_have_text("grün und blau")
    expect(result.locator("h2")).to_have_text("012.png")
    lines = result.locator("li")
    expect(lines).to_have_count(3)
    expect(lines.first).to_contain_text("grün und blau")
    texts = result.locator(".line span:last-child").all_inner_texts()
    percentages = [float(text.removesuffix("%")) for text in texts]
    assert percentages[0] > 90
    assert percentages == sorted(percentages, reverse=True)
    widths = [bar.bounding_box()["width"] for bar in result.locator(".bar div").all()]
    assert widths[0] > 5 * widths[1]
    expect(page.get_by_role("status")).to_contain_text("012.png: grün und blau, 9")
    assert complaints == []


def test_a_padded_image_is_shown_in_its_proportions(pad_url, url, page: Page, tmp_path):
    Image.new("RGB", (600, 200), (20, 160, 20)).save(tmp_path / "long.png")
    sizes = []
    for address in (pad_url, url):
        page.goto(address)
        page.set_input_files("#files", tmp_path / "long.png")
        expect(page.locator("canvas.image")).to_be_visible()
        sizes.append(
            page.locator("canvas").evaluate_all("all => all.map(c => [c.width, c.height])")
        )
    assert sizes[0] == [[480, 160], [480, 160]]
    assert sizes[1][0][0] == sizes[1][0][1]
    expect(page.locator("canvas.image")).to_have_attribute(
        "aria-label", re.compile("^The middle of long.png")
    )


def test_an_image_out_of_distribution_is_marked(ood_url, page: Page, colour_images):
    page.goto(ood_url)
    page.set_input_files("#files", colour_images / "red" / "012.png")
    expect(page.locator(".ood")).to_contain_text(
        "Out of distribution: not like the training images"
    )
    expect(page.get_by_role("status")).to_contain_text("but out of distribution")


def test_the_grad_cam_heat_map_is_shown_and_hidden(url, page: Page, colour_images):
    page.goto(url)
    page.set_input_files("#files", colour_images / "blue" / "012.png")
    expect(page.locator(".answer")).to_have_text("blue")
    expect(page.locator("canvas.heat-map")).to_be_hidden()
    page.get_by_label("Show the Grad-CAM heat map").check()
    image = page.get_by_role("img", name="with the Grad-CAM heat map of blue")
    expect(image).to_be_visible()
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0)"
    assert page.locator("canvas.heat-map").evaluate(drawn)
    page.get_by_label("Show the Grad-CAM heat map").uncheck()
    expect(page.locator("canvas.heat-map")).to_be_hidden()


def test_a_heat_map_that_fails_can_be_asked_for_again(url, page: Page, colour_images):
    page.goto(url)
    page.set_input_files("#files", colour_images / "blue" / "012.png")
    box = page.get_by_label("Show the Grad-CAM heat map")
    busy = {"status": 429, "json": {"detail": "too busy"}}
    page.route("**/predict?*", lambda route: route.fulfill(**busy), times=1)
    box.click()
    expect(page.get_by_role("status")).to_have_text("012.png: too busy")
    expect(box).not_to_be_checked()
    box.check()
    expect(page.locator("canvas.heat-map")).to_be_visible()


def test_dropped_and_pasted_images_are_predicted(url, page: Page, colour_images):
    page.goto(url)
    content = list((colour_images / "red" / "013.png").read_bytes())
    for event, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """([event, field, content]) => {
                const data = new DataTransfer();
                const bytes = new Uint8Array(content);
                data.items.add(new File([bytes], event + ".png", {type: "image/png"}));
                const kind = event === "drop" ? DragEvent : ClipboardEvent;
                document.dispatchEvent(new kind(event, {[field]: data, cancelable: true}));
            }""",
            [event, field, content],
        )
        result = page.locator("article", has_text=f"{event}.png")
        expect(result.locator(".answer")).to_have_text("red")


def test_a_file_that_is_not_an_image(url, page: Page, tmp_path):
    """Each has a card of its own, which stays."""
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    page.goto(url)
    page.set_input_files("#files", [tmp_path / "notes.png", tmp_path / "empty.jpg"])
    cards = page.locator("article.failure")
    expect(cards).to_have_count(2)
    expect(cards.nth(1)).to_contain_text("notes.png")
    expect(cards.nth(1)).to_contain_text(
        "This file is not an image, or of a format that cannot be read"
    )
    expect(cards.nth(0)).to_contain_text("This file is empty (zero bytes)")


def test_the_page_describes_the_model(described_url, page: Page, complaints):
    page.goto(described_url)
    expect(page.locator("#model")).to_have_text(
        "Model colours: accuracy 98.3% on 60 test images, 95% CI 91.1–99.7%."
    )
    page.get_by_text("3 classes").click()
    expect(page.locator("#class-list li")).to_have_text(["red", "grün und blau", "blue"])
    expect(page.locator("#version")).to_contain_text("classifier-search ")
    assert complaints == []


def test_a_page_that_is_starting_shows_the_model_once_it_is_there(colour_run, page: Page):
    before = Image.MAX_IMAGE_PIXELS
    startup = Startup(Limits(), None, ())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with Listening(startup, listener, 20.0, 5.0):
            page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            expect(page.get_by_role("heading", name="Starting")).to_be_visible()
            service = LocalService(load(colour_run), 1_000_000, 8)
            info = describe_model(colour_run, service.card)
            startup.become(build_app(service, info, Limits(), None))
            expect(page.locator("#model")).to_have_text("Model colours.")
    Image.MAX_IMAGE_PIXELS = before


def test_by_keyboard_alone(url, page: Page, colour_images):
    red = colour_images / "red" / "012.png"
    # Registered before the page loads: just before the key press it may be too late.
    page.once("filechooser", lambda chooser: chooser.set_files(red))
    page.goto(url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text("red")


def test_a_server_with_a_token(guarded_url, page: Page, colour_images):
    page.goto(guarded_url)
    page.set_input_files("#files", colour_images / "red" / "012.png")
    expect(page.get_by_role("status")).to_contain_text("The token is missing or wrong")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Use").click()
    page.set_input_files("#files", colour_images / "red" / "012.png")
    expect(page.locator(".answer")).to_have_text("red")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["", "docs"])
def test_the_pages_are_accessible(url, page: Page, complaints, colour_images, scheme, path):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(url + path)
    if not path:
        page.set_input_files("#files", colour_images / "red" / "012.png")
        expect(page.locator(".answer")).to_have_text("red")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
