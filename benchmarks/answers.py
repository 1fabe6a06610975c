"""How long a visitor waits for answers: `python benchmarks/answers.py`.

On a fresh cache: how long the answering process takes to load the demo model, and in a headless Chromium the seconds
from the press of Ask on an example to the first token of FP16 and of RTN beside it: pressed as soon as the page is
there, on a machine that never compiled the kernels and on one that has, and after the model was loaded. Then what a
side by side costs against FP16 alone (alternating, medians), what eight and twenty visitors wait who ask at once, each
for the answers that they get alone, and the memory that it takes, and what an idle page takes of a core.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from quant_engine import folders, notation  # noqa: E402
from quant_engine.answers.client import AnswerService  # noqa: E402
from quant_engine.answers.examples import read_examples  # noqa: E402
from quant_engine.answers.messages import AskRequest  # noqa: E402
from quant_engine.spec import QuantSetting  # noqa: E402

FP16, RTN = QuantSetting(), QuantSetting(method="rtn", w_bits=4, group_size=64)
EXAMPLES = read_examples()
TOKENS = 32
IDLE_S = 10.0
GOAL_S, RTN_GOAL_S = 2.0, 3.0
COMPARED = 3
"""Visitors whose answers are held against those that they get alone."""
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
_ANSWERED = "document.querySelector('#answer-{} .at-token, #answer-{} .at-done') !== null && performance.now()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each number (default 5)")
    parser.add_argument(
        "--only", choices=["loading", "browser", "sides", "visitors", "idle"], help="one part of the report"
    )
    arguments = parser.parse_args()
    os.environ["LOWBIT_MODELS"] = str(folders.models())  # what is fetched stays; all else is written to fresh folders
    cores = os.cpu_count()
    report = Table("what", "seconds", "against", title=f"Answers of the demo model on {cores} cores")
    parts = {"loading": loading, "browser": browser, "sides": sides, "visitors": visitors, "idle": idle}
    for name, part in parts.items():
        if arguments.only in (None, name):
            for row in part(arguments.repeat):
                report.add_row(*row)
            report.add_section()
    Console().print(report)


def loading(repeat: int) -> Iterator[tuple[str, str, str]]:
    """From the start of the answering process to a loaded model."""
    times = []
    for _ in range(repeat):
        with service() as answers:
            began = time.perf_counter()
            for event in answers.ask(question(0, (FP16,), 1)):
                if event.kind == "error":
                    raise SystemExit(event.message)
                if event.message == "Reading":
                    break
            times.append(time.perf_counter() - began)
    yield "start of the process and loading FP16", seconds(times), ""


def browser(repeat: int) -> Iterator[tuple[str, str, str]]:
    """From the press of Ask to the first tokens, in a browser, each time on a fresh cache."""
    from playwright.sync_api import Error, sync_playwright

    names = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
    installed = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=installed, args=CHROMIUM_OPTIONS)
        except Error:
            print("No Chromium here (sh tests/browser/install.sh): nothing is measured in the browser.")
            return
        cases = (
            ("at once, nothing compiled", press_ask_uncompiled, ""),
            ("at once", partial(press_ask, loaded=False), ""),
            ("with the model loaded", partial(press_ask, loaded=True), f"{GOAL_S:.0f}"),
        )
        for when, press, goal in cases:
            firsts = [press(chromium) for _ in range(repeat)]
            yield f"Ask {when}: first token of FP16", seconds([fp16 for fp16, _ in firsts]), goal
            after = seconds([rtn - fp16 for fp16, rtn in firsts])
            yield f"Ask {when}: first token of RTN after that", after, f"{RTN_GOAL_S:.0f}"
        chromium.close()


def press_ask_uncompiled(chromium: Any) -> tuple[float, float]:
    """`press_ask` at once where numba finds nothing that was compiled before."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as machine_code:
        return press_ask(chromium, loaded=False, environment={"NUMBA_CACHE_DIR": machine_code})


def press_ask(chromium: Any, loaded: bool, environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Seconds from the press to the first tokens of FP16 and RTN, on a fresh page or one that has loaded its model."""
    with serving(environment) as (url, process):
        page = chromium.new_page()
        page.goto(url)
        page.wait_for_selector("table.board")
        if loaded:
            wait_until_idle(process)
        page.get_by_role("tab", name="Ask a picture").click()
        page.locator("[data-example]").first.click()
        page.locator("#picture img").wait_for()
        began = page.evaluate("document.querySelector('#ask').click() || performance.now()")
        firsts = [
            page.wait_for_function(_ANSWERED.format(side, side), timeout=300_000, polling=20).json_value()
            for side in (0, 1)
        ]
        page.close()
    return (firsts[0] - began) / 1000, (firsts[1] - began) / 1000


def sides(repeat: int) -> Iterator[tuple[str, str, str]]:
    """FP16 alone, and beside RTN, alternating."""
    alone, together = [], []
    with service() as answers:
        ask(answers, question(0, (FP16, RTN)))
        wait_until_idle(psutil.Process())  # another process gets ready to quantize
        for number in range(1, repeat + 1):
            alone.append(ask(answers, question(number, (FP16,))).seconds)
            together.append(ask(answers, question(-number, (FP16, RTN))).seconds)
    yield f"FP16 alone, {TOKENS} tokens at most", seconds(alone), ""
    ratio = statistics.median(together) / statistics.median(alone)
    yield "FP16 and RTN side by side", seconds(together), f"{ratio:.2f} times FP16 alone"


def visitors(repeat: int) -> Iterator[tuple[str, str, str]]:
    """Several visitors who ask at once, FP16 beside RTN, against one after another; all ask something else."""
    with service() as answers:
        ask(answers, question(0, (FP16, RTN)))
        wait_until_idle(psutil.Process())
        times = [ask(answers, question(-number, (FP16, RTN))).seconds for number in range(1, repeat + 1)]
        alone, crowds = statistics.median(times), []
        for count in (8, 20):
            requests = [question(100 * count + number, (FP16, RTN)) for number in range(count)]
            with ThreadPoolExecutor(count) as pool:
                crowd = [*pool.map(partial(ask, answers), requests)]
            ends = [answered.seconds for answered in crowd]
            yield f"{count} visitors at once: first answer", f"{min(ends):.2f}", f"{alone:.2f} alone"
            yield f"{count} visitors at once: last answer", f"{max(ends):.2f}", f"{count * alone:.2f} in turn"
            yield f"{count} visitors at once: most memory of the answering process", "", peak_memory()
            waited = sum(answered.was_in_line for answered in crowd)
            yield f"{count} visitors at once: were shown their place in line", "", f"{waited}"
            crowds += [*zip(requests, crowd, strict=True)][:COMPARED]
        again = ask(answers, requests[0].model_copy(update={"request_id": "again"})).seconds
        yield "the same question again", f"{again:.3f}", ""
    with service() as answers:
        same = sum(ask(answers, request).texts == answered.texts for request, answered in crowds)
        yield "answers in company that are those given alone", "", f"{same} of {len(crowds)}"


def idle(repeat: int) -> Iterator[tuple[str, str, str]]:
    """Processor seconds of the page, its answering process and what that has started, while nobody does anything."""
    with serving() as (_, page):
        wait_until_idle(page)
        spent = [cpu_time(page, IDLE_S) for _ in range(repeat)]
        core = statistics.median(spent) / IDLE_S
        yield f"processor time of an idle page in {IDLE_S:.0f} s", seconds(spent), f"{core:.1%} of a core"


def peak_memory() -> str:
    """The most memory that an answering process of this benchmark has had."""
    workers = [p for p in psutil.Process().children() if "quant_engine.answers.worker" in p.cmdline()]
    status = "\n".join(Path(f"/proc/{worker.pid}/status").read_text() for worker in workers)
    return notation.size(max(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024)


def wait_until_idle(page: psutil.Process) -> None:
    """A page that does nothing for some seconds has loaded its model, and the libraries that quantizing takes."""
    while cpu_time(page, 5.0) > 0.2:
        pass


def cpu_time(page: psutil.Process, wait: float) -> float:
    """Processor seconds that a page and its children spend while so many seconds pass."""

    def total() -> float:
        return sum(p.cpu_times().user + p.cpu_times().system for p in (page, *page.children(recursive=True)))

    before = total()
    time.sleep(wait)
    return total() - before


def question(number: int, sides: tuple[QuantSetting, ...], tokens: int = TOKENS) -> AskRequest:
    """An example's question in words that no other number has, so that no answer is at hand."""
    example = EXAMPLES[number % len(EXAMPLES)]
    text = f"{example.question} (Visitor {number})"
    return AskRequest(model="demo", image=example.picture, question=text, sides=sides, max_new_tokens=tokens)


@dataclass(frozen=True)
class Answered:
    """Seconds until all sides of a question were answered, their texts, and whether they were in line before."""

    seconds: float
    texts: list[str]
    was_in_line: bool


def ask(answers: AnswerService, request: AskRequest) -> Answered:
    """Puts a question and waits for all its sides."""
    began = time.perf_counter()
    events = [*answers.ask(request)]
    took = time.perf_counter() - began
    failed = [event.message for event in events if event.kind == "error"]
    if failed:
        raise SystemExit(failed[0])
    texts = {event.side: event.text for event in events if event.kind == "done"}
    in_line = any(event.message.startswith("In line:") for event in events)
    return Answered(took, [texts[side] for side in sorted(texts)], in_line)


@contextmanager
def service() -> Iterator[AnswerService]:
    """The answering process on a fresh cache."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["LOWBIT_HOME"] = home
        answers = AnswerService()
        try:
            yield answers
        finally:
            answers.close()


@contextmanager
def serving(environment: Mapping[str, str] | None = None) -> Iterator[tuple[str, psutil.Process]]:
    """The page on a fresh cache: where it answers, and its process. `environment` is added to ours."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        settings = os.environ | {"PORT": str(port), "LOWBIT_HOME": home} | dict(environment or {})
        page = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=PROJECT,
            env=settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}/"
        try:
            while True:
                with suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=10):
                    break
                if page.poll() is not None:
                    raise SystemExit(f"The page ended with {page.returncode} before it answered.")
                time.sleep(0.05)
            yield url, psutil.Process(page.pid)
        finally:
            page.terminate()
            page.wait()


def seconds(times: list[float]) -> str:
    return f"{statistics.median(times):.2f}"


if __name__ == "__main__":
    main()
