"""How fast the page is: `python benchmarks/page.py`.

Start to the first answered request, time to import, and the page process's peak memory. Then, for the study's results
and for 100,000 generated ones: the time that our own functions take (a table's HTML included, the page around it not),
and what a visitor waits in a headless Chromium, from the press to the frame in which the answer stands. Medians.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from leaderboard import analysis, figures, fit  # noqa: E402
from leaderboard.analysis import Query  # noqa: E402
from leaderboard.provenance import provenance_of  # noqa: E402
from leaderboard.ranks import Comparisons, rank  # noqa: E402
from leaderboard.store import read_notes, read_paper  # noqa: E402
from leaderboard.ui import table  # noqa: E402
from leaderboard.view import Fitted  # noqa: E402

GENERATED_ROWS = 100_000
MODEL = "LLaMA3-8B"
NOTES = read_notes()
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SETTLED_MS = 2_000  # what the page asks for by itself after its first table

# Presses, and waits for the frame in which what `see` returns is another than before and true.
_PRESS_JS = """([press, see]) => new Promise((done, failed) => {
  const look = new Function('return ' + see), before = look(), began = performance.now();
  new Function(press)();
  const frame = () => {
    const now = look();
    if (now && now !== before) done(performance.now() - began);
    else if (performance.now() - began > 60000) failed(new Error('Nothing came of ' + press));
    else requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
})"""
_PILL = "[...document.querySelectorAll('.pills label')].find((pill) => pill.textContent.trim() === 'GPTQ').click()"
_TAB = "[...document.querySelectorAll('[role=tab]')].find((tab) => tab.textContent.trim() === '{}').click()"
_CHART = "document.querySelector('#chart-bits .main-svg')"
_WIDTH = """document.querySelector('.choosers .segments input[value="3"]').click()"""
_METHODS = "document.querySelectorAll('#chart-tasks .trace').length"  # other widths have other methods
_PRESSES = {
    "filter": (_PILL, "document.querySelector('#board .summary').textContent"),
    "sort": (
        "document.querySelector('[data-sort=wikitext2]').click()",
        "document.querySelector('th:has([data-sort=wikitext2])').ariaSort",
    ),
    "to another tab": (_TAB.format("Methods"), "document.querySelector('.method')?.checkVisibility()"),
    "back to the table": (_TAB.format("Leaderboard"), "document.querySelector('table.board').checkVisibility()"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each number (default 5)")
    parser.add_argument("--serve", type=int, metavar="ROWS", help="only serve the page over so many generated rows")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    repeat = arguments.repeat
    starts = [start_page() for _ in range(repeat)]
    report = Table("what", "our functions", "in the browser", "budget", title="The page")
    report.add_row("start to first answered request", seconds([start for start, _ in starts]), "", "4 s")
    report.add_row("import of the page", seconds([import_time() for _ in range(repeat)]), "", "")
    report.add_row("peak memory of the process", f"{max(peak for _, peak in starts) / 2**20:.0f} MiB", "", "400 MiB")
    for title, results, rows, budget in (
        ("The study", read_paper(), 0, "150 ms of ours"),
        (f"{GENERATED_ROWS:,} rows", generated(GENERATED_ROWS), GENERATED_ROWS, "400 ms of ours"),
    ):
        ours, waited = in_functions(results, repeat), in_browser(rows, repeat)
        budgets = dict.fromkeys(QUERIES, budget) | {"first table": "2 s"}
        report.add_section()
        report.add_row(f"[bold]{title}")
        for name in dict.fromkeys([*waited, *ours]):
            report.add_row(name, ours.get(name, ""), waited.get(name, ""), budgets.get(name, ""))
    Console().print(report)


QUERIES = {
    "filter": Query(model=MODEL, methods=("GPTQ",), bits=(4.0,)),
    "search": Query(model=MODEL, search="gptq w4"),
    "search by field": Query(model=MODEL, search="method:gptq bits:<=4 wikitext2:<9"),
    "range of stored bits": Query(model=MODEL, stored=(2.5, 4.2), size=(None, 8.0)),
    "sort": Query(model=MODEL, sort="wikitext2"),
    "percent of FP16": Query(model=MODEL, mode="retained", sort="piqa"),
}


def in_functions(results: pd.DataFrame, repeat: int) -> dict[str, str]:
    """What our own functions take."""
    board, comparisons = analysis.arrange(results), Comparisons()
    spent = {"arrange once": milliseconds(lambda: analysis.arrange(results), repeat)}
    for name, query in QUERIES.items():
        spent[name] = milliseconds(lambda q=query: render(board, q, comparisons), repeat)
    for name, draw in (
        ("bits and size figures", lambda: [figures.bits_and_quality(board, MODEL, "wikitext2", 5),
                                           figures.size_and_quality(board, MODEL, "wikitext2")]),
        ("methods and tasks figures", lambda: [figures.methods_and_bits(board, MODEL, "wikitext2"),
                                               figures.loss_by_task(board, MODEL, 4)]),
        ("what fits", lambda: fit.figure(board, Fitted())),
        ("provenance card", lambda: provenance_of(board, len(board.rows) // 2, NOTES)),
    ):  # fmt: skip
        spent[name] = milliseconds(draw, repeat)
    return spent


def in_browser(rows: int, repeat: int) -> dict[str, str]:
    """What a visitor waits, over the study's results or over so many generated rows. Nothing without a browser."""
    from playwright.sync_api import Error, sync_playwright

    times: dict[str, list[float]] = {}

    def press(page: Any, name: str, what: str, see: str) -> None:
        times.setdefault(name, []).append(page.evaluate(_PRESS_JS, [what, see]) / 1000)

    names = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
    installed = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright, serving(*(("--serve", str(rows)) if rows else ())) as (url, _, _):
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=CHROMIUM_OPTIONS)
        except Error:
            print("No Chromium here (sh tests/browser/install.sh): nothing is measured in the browser.")
            return {}
        for _ in range(repeat):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(url)
            table_there = "document.querySelector('table.board')?.checkVisibility() && performance.now()"
            times.setdefault("first table", []).append(page.wait_for_function(table_there).json_value() / 1000)
            page.wait_for_timeout(SETTLED_MS)
            for name, (what, see) in _PRESSES.items():
                press(page, name, what, see)
            press(page, "first figure, with Plotly", _TAB.format("Explore"), _CHART)
            page.locator("#chart-tasks").scroll_into_view_if_needed()
            page.locator("#chart-tasks .main-svg").first.wait_for()
            press(page, "figures at another width", _WIDTH, _METHODS)
            page.close()
        browser.close()
    return {name: f"{1000 * statistics.median(spent):.0f} ms" for name, spent in times.items()}


def serve(rows: int) -> None:
    """The page as it is, over generated results."""
    import app
    from leaderboard import store

    results = generated(rows)
    store.read_paper = lambda path: results
    app.main()


def render(board: analysis.Board, query: Query, comparisons: Comparisons) -> str:
    view = analysis.view(board, query)
    return table.results_html(view, NOTES, len(board.rows), rank(board, view, comparisons))


def generated(count: int) -> pd.DataFrame:
    """The study's LLaMA3-8B rows again and again, as if measured by as many runs, with noise on the values."""
    study = read_paper()
    base = study[(study["model"] == "LLaMA3-8B") & (study["track"] == "llm_ptq")]
    copies = -(-count // len(base))
    frame = pd.concat([base] * copies, ignore_index=True).head(count)
    copy = np.arange(count) // len(base)
    setting = base.groupby(["method", "w_bits", "a_bits", "group_size"], dropna=False, sort=False).ngroup().to_numpy()
    number = copy * (setting.max() + 1) + np.resize(setting, count)
    frame["run_id"] = [f"{run:016x}" for run in number]
    frame["source"] = "measured"
    frame["value"] *= np.random.default_rng(0).uniform(0.9, 1.1, count)
    return frame


def start_page() -> tuple[float, int]:
    """Seconds from the start of `python app.py` to its first answer, and its peak memory in bytes after that."""
    with serving() as (url, page, spent):
        for _ in range(20):
            answers(url)
        return spent, peak_memory(page.pid)


@contextmanager
def serving(*generated: str) -> Iterator[tuple[str, subprocess.Popen, float]]:
    """The page in a process of its own, with `--serve ROWS` over generated rows: where it answers, the process, and the
    seconds to its first answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        page = subprocess.Popen(
            [sys.executable, *((__file__, *generated) if generated else ("app.py",))],
            cwd=PROJECT,
            env=os.environ | {"PORT": str(port), "LOWBIT_HOME": home},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}/"
        try:
            while not answers(url):
                if page.poll() is not None:
                    raise SystemExit(f"The page ended with {page.returncode} before it answered.")
                time.sleep(0.02)
            yield url, page, time.perf_counter() - began
        finally:
            page.terminate()
            page.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def peak_memory(pid: int) -> int:
    """The most memory that a process ever had (on Linux), or has now."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return psutil.Process(pid).memory_info().rss


def import_time() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import leaderboard.ui.page"], cwd=PROJECT, check=True)
    return time.perf_counter() - began


def milliseconds(work: Callable[[], object], repeat: int) -> str:
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return f"{1000 * statistics.median(times):.1f} ms"


def seconds(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s"


if __name__ == "__main__":
    main()
