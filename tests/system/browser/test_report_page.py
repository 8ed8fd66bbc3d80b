"""The report in a real browser: no errors, no requests, tables that work, accessibility."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from scripts.readme_images import WIDTH, take_images
from search.reporting.gallery import Gallery
from search.reporting.page import write_report
from search.runs.run_folder import RunFolder
from search.runs.summary import SearchCounts
from tests.fixtures.handmade_run import (
    CLASSES,
    make_run,
    remove,
    scores,
    set_sections,
    write_predictions,
)

pytestmark = pytest.mark.browser

WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run written by hand, with odd names, failed trials and wrong predictions."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "spring", n_trials=40)
    save_images(folder, "data", [f"test/{i}.jpg" for i in range(40)])
    save_images(folder, "external", [f"outside/{i}.jpg" for i in range(4)])
    Gallery(folder).save_heatmap("data", "test/7.jpg", np.eye(7))
    write_report(RunFolder.open(folder))
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped during its search."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "stopped")
    for section in ("kfold", "test", "external"):
        remove(folder, f"summary:{section}")
    for name in ("folds/folds.csv", "test_predictions.csv", "external_predictions.csv"):
        remove(folder, name)
    interrupted = SearchCounts(
        trials=11, complete=6, pruned=4, failed=1, unfinished=1, seconds=100.0
    )
    set_sections(folder, search=interrupted)
    write_report(RunFolder.open(folder))
    return folder


def save_images(folder: Path, part: str, names: list[str]) -> None:
    """Save a smooth image of its own for each name."""
    for seed, name in enumerate(names):
        noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(noise).resize((256, 256)))
        Gallery(folder).save(part, [name], [pixels], 224)


def open_report(page: Page, folder: Path) -> None:
    page.goto((folder / "report.html").absolute().as_uri())


def open_folds(page: Page) -> None:
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")


def column(page: Page, table: str, index: int) -> list[str]:
    """Return the text of a table's column in the rows that are shown."""
    rows = page.locator(f"{table} tbody tr:not([hidden])")
    return rows.evaluate_all(f"rows => rows.map(r => r.cells[{index}].textContent.trim())")


def serious(page: Page) -> list[str]:
    """Return the violations that axe calls serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("name", ["written", "interrupted", "digits_run"])
def test_there_are_no_errors_and_no_requests(
    page: Page, complaints: list[str], request: pytest.FixtureRequest, name: str
) -> None:
    fetched: list[str] = []
    page.on("request", lambda one: fetched.append(one.url))
    folder = request.getfixturevalue(name)
    open_report(page, folder)
    page.locator("footer").scroll_into_view_if_needed()
    assert complaints == []
    assert [url for url in fetched if not url.startswith("data:")] == [
        (folder / "report.html").absolute().as_uri()
    ]
    broken = "images => images.filter(i => !(i.complete && i.naturalWidth)).length"
    assert page.locator("img").evaluate_all(broken) == 0
    assert (folder / "report.html").stat().st_size < 10_000_000


def test_a_run_shows_images_of_its_top_losses(page: Page, digits_run: Path) -> None:
    open_report(page, digits_run)
    cards = page.locator("#evaluation .cards > li")
    assert cards.count() > 0
    assert page.locator("#evaluation .cards img[alt^='Grad-CAM']").count() > 0
    assert page.locator("#external .cards > li img").count() > 0
    assert page.get_by_text("no image saved").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["written", "interrupted", "digits_run"])
def test_axe_finds_nothing_serious(
    browser: Browser, request: pytest.FixtureRequest, name: str, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    open_report(page, request.getfixturevalue(name))
    open_folds(page)
    found = serious(page)
    context.close()
    assert found == []


def test_axe_would_find_something(page: Page) -> None:
    page.set_content("<html><body><img src='data:,'><p style='color:#ccc'>pale</p></body></html>")
    assert any(found.startswith("image-alt") for found in serious(page))


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", ["written", "interrupted", "digits_run"])
def test_no_page_is_wider_than_its_screen(
    page: Page, request: pytest.FixtureRequest, name: str, width: int
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    open_report(page, request.getfixturevalue(name))
    open_folds(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def title_at(page: Page, mark: Locator) -> str:
    """Return the title that a browser shows where the pointer rests on the middle of a mark."""
    mark.scroll_into_view_if_needed()
    return str(
        mark.evaluate(
            """mark => {
              const box = mark.getBoundingClientRect();
              const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
              const hit = document.elementFromPoint(x, y).closest("use, .titled");
              return hit?.querySelector("title")?.textContent ?? "";
            }"""
        )
    )


def test_the_pointer_names_trials_and_curves(page: Page, written: Path) -> None:
    open_report(page, written)
    points = page.locator("#search figure").first.locator(".titled use")
    assert title_at(page, points.nth(3)).startswith("trial ")
    assert points.count() == 41, "each trial, and the ring of the final model"
    curve = page.locator("#search figure").nth(1).locator(".titled").last
    assert title_at(page, curve.locator(".reach")) == (
        "trial 0, complete: 99.00% at epoch 6; backbone tinynet, "
        + curve.locator("title").text_content().split("tinynet, ")[1]  # type: ignore[union-attr]
    )


def test_folds_are_open_in_print(page: Page, written: Path) -> None:
    open_report(page, written)
    folded = page.locator("#trials-table")
    assert not folded.is_visible()
    page.emulate_media(media="print")
    assert folded.is_visible()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not folded.is_visible()


def test_trials_are_sorted_by_a_click_or_a_key(page: Page, written: Path) -> None:
    open_report(page, written)
    open_folds(page)
    table = "#trials-table"
    heading = page.locator(f"{table} th[scope=col]").filter(has_text="lr")
    heading.get_by_role("button").click()
    index = heading.evaluate("cell => cell.cellIndex")
    shown = [float(words) for words in column(page, table, index)]
    assert shown == sorted(shown, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert [float(words) for words in column(page, table, index)] == sorted(shown)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert page.locator(f"{table} th[aria-sort]").count() == 1


def test_missing_values_are_sorted_last(page: Page, written: Path) -> None:
    open_report(page, written)
    open_folds(page)
    for _ in range(2):
        page.locator("#trials-table th[scope=col]").filter(has_text="accuracy").click()
        accuracies = column(page, "#trials-table", 2)
        assert accuracies[-1] == ""
        assert accuracies.count("") == 1


@pytest.mark.parametrize(
    ("fill", "fits"),
    [
        (lambda page: page.get_by_label("State").select_option("pruned"), "pruned"),
        (lambda page: page.get_by_label("Words in a row").fill("CNN pruned"), "cnn"),
    ],
)
def test_trials_are_filtered(
    page: Page, written: Path, fill: Callable[[Page], object], fits: str
) -> None:
    open_report(page, written)
    open_folds(page)
    rows: Locator = page.locator("#trials-table tbody tr:visible")
    assert rows.count() == 40
    fill(page)
    shown = rows.all_text_contents()
    assert 0 < len(shown) < 40
    assert all(fits in words and "pruned" in words for words in shown)
    assert page.locator("#trial-count").text_content() == f"{len(shown)} of 40 shown"


def test_every_control_is_reached_by_the_keyboard(page: Page, written: Path) -> None:
    open_report(page, written)
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        where = page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
        if where.startswith("<body") or (where in reached and len(reached) > 300):
            break
        reached.add(where)
    usable = page.locator("a[href], button, input, select, summary, [tabindex='0']")
    wanted = usable.evaluate_all(
        "all => all.filter(one => one.checkVisibility()).map(one => one.outerHTML.slice(0, 200))"
    )
    assert set(wanted) - reached == set()


def test_the_page_is_complete_without_scripts(browser: Browser, written: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    open_report(page, written)
    assert page.locator("#trials-table tbody tr").count() == 40
    assert not page.locator("#trial-filters").is_visible()
    context.close()


def test_controls_are_not_printed(page: Page, written: Path) -> None:
    open_report(page, written)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#trial-filters").is_visible()
    assert page.locator("#trials-table tbody tr:visible").count() == 30
    assert page.get_by_text("Only the first 30 rows are printed.").is_visible()


@pytest.mark.long
def test_a_thousand_classes_and_ten_thousand_wrong_predictions_stay_small(
    page: Page, complaints: list[str], tmp_path: Path
) -> None:
    classes = [f"class {i}" for i in range(1000)]
    folder = make_run(tmp_path / "run", n_trials=200)
    confusion = 10 * np.roll(np.eye(1000, dtype=int), 1, axis=1) + 5 * np.eye(1000, dtype=int)
    set_sections(folder, test=scores(confusion.tolist(), classes))
    names = [f"test/{i}.jpg" for i in range(10_000)]
    rows = [(name, CLASSES[0], (0.1, 0.8 + i / 1e6, 0.1, 0.0)) for i, name in enumerate(names)]
    write_predictions(folder / "test_predictions.csv", rows)
    noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
    for name in names[-200:]:
        Gallery(folder).save("data", [name], [noise], 224)  # nothing is larger than noise
    write_report(RunFolder.open(folder))
    assert (folder / "report.html").stat().st_size < 10_000_000
    open_report(page, folder)
    assert page.get_by_text("These are 60 of 10000").is_visible()
    assert complaints == []


def test_the_readme_has_its_images_from_a_report(page: Page, written: Path) -> None:
    taken = dict(take_images(page, written / "report.html"))
    assert list(taken) == ["report", "search", "images"]
    for image in taken.values():
        assert image.width == WIDTH
        assert image.height > 200
        assert len(image.convert("RGB").getcolors(2**20) or ()) > 20
