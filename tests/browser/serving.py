"""Serves the real page for a test, and small things that every browser test does."""

from __future__ import annotations

import os
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

import forked_page
from playwright.sync_api import Page

from quant_engine import folders

START_S = 60
NO_MODELS = {"LOWBIT_MODELS": "/nowhere"}
NOBODY_ASKS = "from leaderboard.lab import Lab; Lab.warm_up = lambda lab: None"
"""For a page that nobody asks anything: it loads no model in the background."""


@dataclass
class Lab:
    """A served page: where it is, its process, and its folders."""

    url: str
    pid: int
    home: Path
    log: Path

    @property
    def results(self) -> Path:
        return self.home / "results"


@contextmanager
def served(home: Path, *, before: str = "", **environment: str) -> Iterator[Lab]:
    """A page on a free port, with everything that it writes under `home`. `before` is Python that the page's process
    does first, to break something."""
    port, log = free_port(), log_in(home)
    process = forked_page.start(log, page_environment(home, port) | environment, before)
    try:
        yield Lab(when_up(port, process.is_alive, log), process.pid, home, log)
    finally:
        process.terminate()
        process.join(30)


@contextmanager
def started(home: Path, *, before: str = "") -> Iterator[Lab]:
    """The same page in an interpreter of its own: by `python app.py` if nothing comes before."""
    port, log = free_port(), log_in(home)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *(["-c", f"{before}\nimport app; app.main()"] if before else ["app.py"])],
            cwd=folders.PROJECT,
            stdout=output,
            stderr=output,
            env=page_environment(home, port),
        )
    try:
        yield Lab(when_up(port, lambda: process.poll() is None, log), process.pid, home, log)
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def log_in(home: Path) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    return home / "page.log"


def page_environment(home: Path, port: int) -> dict[str, str]:
    return os.environ | {"PORT": str(port), "LOWBIT_HOME": str(home), "LOWBIT_MODELS": str(folders.models())}


def when_up(port: int, is_alive: Callable[[], bool], log: Path) -> str:
    """The page's address, once it answers."""
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert is_alive(), log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                return reply.status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    wait_until(answers, START_S)
    return url


def wait_until(true: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"Not within {seconds} s."
        time.sleep(0.1)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
