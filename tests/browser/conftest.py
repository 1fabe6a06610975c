"""The real page in a process of its own, and a real browser to use it with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from serving import Lab, started

PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[Lab]:
    """One page for all tests that don't need their own."""
    with started(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """An installed Chromium, the one without windows first: it takes a third less of a core. Else Playwright's own."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    installed = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def context(browser) -> Iterator[BrowserContext]:
    """The windows of one visitor: what the browser has fetched of a page is at hand for the next."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def opened(context) -> Iterator[Callable[..., Page]]:
    """Opens a page in a window of its own: opened(lab, width=390, theme="dark"). Fails on script errors."""
    errors = []

    def open_page(lab: Lab, *, width: int = 1440, height: int = 900, theme: str = "light", search: str = "") -> Page:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=theme)
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{lab.url}/{search}")
        page.wait_for_selector("table.board")
        return page

    yield open_page
    for page in context.pages:
        if page.url.startswith("http"):
            page.evaluate("localStorage.clear()")  # what a visitor chose is forgotten before the next test
        page.close()
    # A page outlives the server of its test for a moment: what it then fails to fetch is no fault of its scripts.
    assert [error for error in errors if not error.startswith("Failed to fetch")] == []


@pytest.fixture
def page(lab, opened) -> Page:
    """The leaderboard in a wide, light window."""
    return opened(lab)
