"""The real page in a process of its own, and a real browser to use it with."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from quant_engine import folders

CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_S = 60


@dataclass
class Lab:
    """A served page: where it is, its process, and its folders."""

    url: str
    process: subprocess.Popen
    home: Path
    log: Path

    @property
    def results(self) -> Path:
        return self.home / "results"


@contextmanager
def served(home: Path, **environment: str) -> Iterator[Lab]:
    """`python app.py` on a free port, with everything that it writes under `home`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    log = home / "page.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=folders.PROJECT,
            stdout=output,
            stderr=output,
            env=os.environ
            | {"PORT": str(port), "LOWBIT_HOME": str(home), "LOWBIT_MODELS": str(folders.models())}
            | environment,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(url, process, log), START_S)
        yield Lab(url, process, home, log)
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str, process: subprocess.Popen, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def wait_until(true: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"Not within {seconds} s."
        time.sleep(0.1)


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[Lab]:
    """One page for all tests that don't need their own."""
    with served(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """An installed Chromium, else Playwright's own."""
    installed = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser) -> Iterator[Callable[..., Page]]:
    """Opens a page in a fresh browser context: opened(lab, width=390, theme="dark"). Fails on script errors."""
    contexts, errors = [], []

    def open_page(lab: Lab, *, width: int = 1440, height: int = 900, theme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(lab.url)
        page.wait_for_selector("table.board")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def page(lab, opened) -> Page:
    """The leaderboard in a wide, light window."""
    return opened(lab)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
