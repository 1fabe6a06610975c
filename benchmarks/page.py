"""How fast the page is: `python benchmarks/page.py`.

Start to the first answered request, time to import, time of a filter and a sort in our own functions (the table's HTML
included), of figures and of a provenance card, for the study's results and for 100,000 generated ones, and the page
process's peak memory. Medians.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from leaderboard import analysis, figures, fit  # noqa: E402
from leaderboard.analysis import Query  # noqa: E402
from leaderboard.provenance import provenance  # noqa: E402
from leaderboard.store import read_notes, read_paper  # noqa: E402
from leaderboard.ui import table  # noqa: E402
from leaderboard.view import Fitted  # noqa: E402

GENERATED_ROWS = 100_000
MODEL = "LLaMA3-8B"
NOTES = read_notes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="measurements of each number (default 5)")
    repeat = parser.parse_args().repeat
    starts = [start_page() for _ in range(repeat)]
    rows: list[tuple[str, str, str]] = [
        ("start to first answered request", seconds([start for start, _ in starts]), "4 s"),
        ("import of the page", seconds([import_time() for _ in range(repeat)]), ""),
        ("peak memory of the page process", f"{max(peak for _, peak in starts) / 2**20:.0f} MiB", "400 MiB"),
    ]
    for title, results, budget in (
        ("the study", read_paper(), "150 ms"),
        (f"{GENERATED_ROWS:,} rows", generated(GENERATED_ROWS), "400 ms"),
    ):
        board = analysis.arrange(results)
        rows.append((f"{title}: arrange once", milliseconds(lambda r=results: analysis.arrange(r), repeat), ""))
        for name, draw in (
            ("bits and size figures", lambda b=board: [figures.bits_and_quality(b, MODEL, "wikitext2", 5),
                                                       figures.size_and_quality(b, MODEL, "wikitext2")]),
            ("methods and tasks figures", lambda b=board: [figures.methods_and_bits(b, MODEL, "wikitext2"),
                                                           figures.loss_by_task(b, MODEL, 4)]),
            ("what fits", lambda b=board: fit.figure(b, Fitted())),
            ("provenance card", lambda b=board: provenance(b, len(b.rows) // 2, NOTES)),
        ):  # fmt: skip
            rows.append((f"{title}: {name}", milliseconds(draw, repeat), ""))
        for name, query in (
            ("filter", Query(model="LLaMA3-8B", methods=("GPTQ",), bits=(4.0,))),
            ("search", Query(model="LLaMA3-8B", search="gptq w4")),
            ("search by field", Query(model="LLaMA3-8B", search="method:gptq bits:<=4 wikitext2:<9")),
            ("range of stored bits", Query(model="LLaMA3-8B", stored=(2.5, 4.2), size=(None, 8.0))),
            ("sort", Query(model="LLaMA3-8B", sort="wikitext2")),
            ("percent of FP16", Query(model="LLaMA3-8B", mode="retained", sort="piqa")),
        ):
            spent = milliseconds(lambda b=board, q=query: render(b, q), repeat)
            rows.append((f"{title}: {name}", spent, budget))
    shown = Table("what", "median", "budget", title="The page")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def render(board: analysis.Board, query: Query) -> str:
    return table.table(analysis.view(board, query), NOTES, len(board.rows))


def generated(count: int) -> pd.DataFrame:
    """The study's LLaMA3-8B rows again and again, as if measured by as many runs, with noise on the values."""
    study = read_paper()
    base = study[(study["model"] == "LLaMA3-8B") & (study["track"] == "llm_ptq")]
    copies = -(-count // len(base))
    frame = pd.concat([base] * copies, ignore_index=True).head(count)
    copy = np.arange(count) // len(base)
    setting = base.groupby(["method", "w_bits", "a_bits", "group_size"], dropna=False, sort=False).ngroup().to_numpy()
    number = copy * (setting.max() + 1) + np.resize(setting, count)
    frame["run_id"] = [f"{one:016x}" for one in number]
    frame["source"] = "measured"
    frame["value"] *= np.random.default_rng(0).uniform(0.9, 1.1, count)
    return frame


def start_page() -> tuple[float, int]:
    """Seconds from the start of `python app.py` to its first answer, and its peak memory in bytes after that."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        page = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=PROJECT,
            env=os.environ | {"PORT": str(port), "LOWBIT_HOME": home},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not answers(port):
                if page.poll() is not None:
                    raise SystemExit(f"The page ended with {page.returncode} before it answered.")
                time.sleep(0.02)
            spent = time.perf_counter() - began
            for _ in range(20):
                answers(port)
            return spent, peak_memory(page.pid)
        finally:
            page.terminate()
            page.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as reply:
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
