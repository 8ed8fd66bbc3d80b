"""Take the screenshots of the README and docs, `docs/images/*.png`, from a run's report.

    python -m search.run --name digits
    python -m scripts.readme_images results/digits

The run must be finished; its report is written again first. Needs Chromium (Debian:
`apt-get install chromium`) and the extra `dev`. The screenshots show images of the run: choose one
whose images may be published.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, Locator, Page, sync_playwright

from search.reporting.page import write_report
from search.runs.run_folder import RunFolder
from search.runs.validation import FolderError

WIDTH = 1160
"""Width of the screenshots, in pixels; a README is shown about 900 wide."""

COLOURS = 128
MAX_BYTES = 300_000
"""Size of all screenshots together."""

_MARGIN = 16
_TWO_ROWS = 6  # cards


def take_images(page: Page, report: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield the name and the image of each screenshot."""
    page.set_viewport_size({"width": WIDTH, "height": 900})
    page.goto(report.absolute().as_uri())
    yield "report", _clip(page, 0, _bottom(page.locator("#result")))
    charts = page.locator("#search > .charts")
    yield "search", _clip(page, _top(charts), _bottom(charts))
    external = page.locator("#external .cards")
    cards = (external if external.count() else page.locator("#evaluation .cards")).first
    items = cards.locator(":scope > li")
    last = items.nth(min(items.count(), _TWO_ROWS) - 1)
    yield "images", _clip(page, _top(cards), _bottom(last))


@contextmanager
def open_page() -> Iterator[Page]:
    """Open an empty page in headless Chromium.

    Raises:
        FileNotFoundError: there is no Chromium.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("no chromium on this machine (Debian: apt-get install chromium)")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses root without it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=as_root)
        yield browser.new_page()
        browser.close()


def _top(element: Locator) -> float:
    return _box(element)["y"] - _MARGIN


def _bottom(element: Locator) -> float:
    box = _box(element)
    return box["y"] + box["height"] + _MARGIN


def _box(element: Locator) -> FloatRect:
    box = element.bounding_box()
    if box is None:
        raise ValueError("the report lacks a section; give a finished run")
    return box


def _clip(page: Page, top: float, bottom: float) -> Image.Image:
    top = max(0.0, top)
    clip: FloatRect = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top}
    return Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True)))


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(description="Take the README's screenshots.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a finished run's folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    options = parser.parse_args()
    n_bytes = 0
    try:
        write_report(RunFolder.open(options.run))
        options.out.mkdir(parents=True, exist_ok=True)
        with open_page() as page:
            for name, image in take_images(page, options.run / "report.html"):
                path = options.out / f"{name}.png"
                image.convert("RGB").quantize(COLOURS).save(path, optimize=True)
                n_bytes += path.stat().st_size
                print(f"{path}: {image.width} × {image.height}, {path.stat().st_size:,} bytes")
    except (FolderError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if n_bytes > MAX_BYTES:
        print(f"error: {n_bytes:,} bytes are more than {MAX_BYTES:,}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
