"""The real page in a process of its own, and a real browser to use it with."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright
from serving import NOBODY_ASKS, Lab, started

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
GO_JS = """search => {
  history.pushState(null, '', location.pathname + search);
  dispatchEvent(new PopStateEvent('popstate'));
  scrollTo(0, 0);
}"""
"""What a step back to an address does."""


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[Lab]:
    """One page for all tests that don't need their own. It loads no model before it is asked."""
    with started(tmp_path_factory.mktemp("lab"), before=NOBODY_ASKS) as lab:
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


@pytest.fixture(scope="module")
def shared_pages() -> list[Page]:
    """The window that the tests of a file use one after the other, once there is one. Which files come before another
    is left to chance, and tabs that were opened stay on the page."""
    return []


@pytest.fixture
def opened(context, shared_pages) -> Iterator[Callable[..., Page]]:
    """Opens a page in a window of its own: opened(lab, width=390, theme="dark"). Fails on script errors."""
    errors = []

    def note(error: Error) -> None:
        errors.append(str(error))

    def open_page(lab: Lab, *, width: int = 1440, height: int = 900, theme: str = "light", search: str = "") -> Page:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=theme)
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", note)
        page.goto(f"{lab.url}/{search}")
        page.wait_for_selector("table.board")
        return page

    for page in shared_pages:
        page.on("pageerror", note)
    yield open_page
    for page in context.pages:
        if page.url.startswith("http"):
            page.evaluate("localStorage.clear()")  # what a visitor chose is forgotten before the next test
        if page in shared_pages:
            page.remove_listener("pageerror", note)
        else:
            page.close()
    # A page outlives the server of its test for a moment: what it then fails to fetch is no fault of its scripts.
    assert [error for error in errors if not error.startswith("Failed to fetch")] == []


@pytest.fixture
def fresh_page(lab, opened) -> Page:
    """The leaderboard in a wide, light window of its own, for a test that changes what no address holds."""
    return opened(lab)


NUMBERS = itertools.count()


@pytest.fixture
def page(lab, opened, shared_pages, request) -> Iterator[Page]:
    """The leaderboard in a wide, light window. Making the page anew takes seconds of a core, so tests share one: an
    address brings it back to its beginning, as the browser's back button does."""
    failed_before = request.session.testsfailed
    if shared_pages:
        (page,) = shared_pages
        nothing = f"nothing-{next(NUMBERS)}"
        for searched in (nothing, ""):  # first what is surely not there yet, so that each answer is seen to come
            page.evaluate(GO_JS, f"?q={searched}" if searched else "")
            expect(page.get_by_label("Search")).to_have_value(searched)
        expect(page.locator("#board .summary")).to_have_text(re.compile("^41 settings"))
    else:
        page = opened(lab)
        shared_pages.append(page)
    yield page
    page.unroute_all()
    if request.session.testsfailed > failed_before:
        shared_pages.remove(page)
