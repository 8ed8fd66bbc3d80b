"""What tests in a real browser share: Debian's Chromium, headless."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

_CHROMIUM = shutil.which("chromium")
_HERE = ("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, started once per file: Playwright's event loop must end before other tests."""
    if _CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    arguments = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL without a GPU
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses root without it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own, on a screen of 1280 × 900."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    yield page
    context.close()


@pytest.fixture
def complaints(page: Page) -> list[str]:
    """What goes wrong in the page: errors in its console, uncaught ones, requests to elsewhere."""
    found: list[str] = []

    def on_request(request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in _HERE:
            found.append(f"request to elsewhere: {request.url}")

    page.on("console", lambda m: found.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: found.append(f"uncaught: {error}"))
    page.on("request", on_request)
    return found
