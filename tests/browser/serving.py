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

from playwright.sync_api import Page

from quant_engine import folders

START_S = 60
NO_MODELS = {"LOWBIT_MODELS": "/nowhere"}
"""For a page that nobody asks anything: it loads no model in the background."""


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
def served(home: Path, *, before: str = "", **environment: str) -> Iterator[Lab]:
    """`python app.py` on a free port, with everything that it writes under `home`. `before` is Python that the page's
    process does first, to break something."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    log = home / "page.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *(("-c", f"{before}\nimport app; app.main()") if before else ("app.py",))],
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


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
