"""The page that compares two runs, in a real browser."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from search.compare import main
from tests.search.test_compare import make_tested_run
from tests.system.browser.test_report_page import open_folds, serious

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    first = make_tested_run(folder / "first <b>", wrong={0, 1})
    second = make_tested_run(folder / "second", wrong={1, *range(10, 17)})
    assert main([str(first), str(second), "--out", str(folder / "page.html")]) == 0
    return folder / "page.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious_and_the_page_fits_its_screen(
    browser: Browser, page_of_two: Path, width: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(page_of_two.as_uri())
    open_folds(page)
    found = serious(page)
    fits = page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
    assert found == complaints == []
    assert fits
