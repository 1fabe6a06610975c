"""What a stage of benchmarks/gpu.py found: written after every case, so that nothing is lost when it is cut."""

from __future__ import annotations

import importlib.metadata
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quant_engine import disk
from quant_engine.runs.about import engine_commit, hardware

LIBRARIES = ("torch", "triton", "transformers", "peft", "numba")
AGAIN_S = 5.0
"""A limit that some code swallowed is called out again after so many seconds."""

Row = dict[str, Any]


class OutOfTime(BaseException):
    """The stage's time is over. No handler of the engine's catches it."""


@dataclass
class Report:
    """Rows, goals and what was left out of a stage, in `folder` as STAGE.json and STAGE.md.

    A case is measured by `case`, which notes failures and what there was no time for.
    """

    stage: str
    folder: Path
    minutes: float
    device: str
    environment: Row
    rows: list[Row] = field(default_factory=list)
    goals: list[Row] = field(default_factory=list)
    left_out: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    broken: str = ""

    @property
    def seconds_left(self) -> float:
        return 60 * self.minutes - (time.monotonic() - self.started)

    def is_over(self) -> bool:
        return self.seconds_left <= 0

    def add(self, **row: Any) -> None:
        """Adds a row and writes the report."""
        self.rows.append(row)
        print("  ".join(f"{name} {_text(value)}" for name, value in row.items()), flush=True)
        self.write()

    def goal(self, what: str, measured: float, wanted: float, unit: str, *, at_least: bool) -> None:
        """Notes a goal of an H100 or H200 beside what was measured. It is held against other hardware, too, and said
        to be of another card there."""
        met = measured >= wanted if at_least else measured <= wanted
        words = f"at {'least' if at_least else 'most'} {_text(wanted)} {unit}"
        other = not any(card in self.environment["card"] for card in ("H100", "H200"))
        outcome = ("met" if met else "not met") + (", on another card" if other else "")
        self.goals.append({"goal": what, "wanted": words, "measured": f"{_text(measured)} {unit}", "outcome": outcome})
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        self.left_out.append({"what": what, "why": why})
        print(f"left out: {what}: {why}", flush=True)
        self.write()

    def case(self, name: str, measure: Callable[[], None]) -> bool:
        """Measures a case, if there is time; whether it ended well. A failure takes no other case down, unless it was
        the card's."""
        if self.broken or self.is_over():
            self.leave_out(name, self.broken or "no time was left")
            return False
        try:
            measure()
            return True
        except OutOfTime:
            self.leave_out(name, "the time was over before it ended")
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).strip()[:300]}"
            self.leave_out(name, f"it failed: {why}")
            if "CUDA error" in why or "device-side assert" in why:
                self.broken = "the card failed in an earlier case"
        return False

    @contextmanager
    def within_time(self) -> Iterator[None]:
        """Raises OutOfTime inside of it when the stage's time is over."""

        def call_out(*_: Any) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, call_out)
        signal.setitimer(signal.ITIMER_REAL, max(self.seconds_left, 0.01), AGAIN_S)
        try:
            yield
        except OutOfTime:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.leave_out("the rest", "the time was over")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self.write()

    def write(self) -> None:
        seconds = round(time.monotonic() - self.started, 1)
        about = {"stage": self.stage, "seconds": seconds, "environment": self.environment}
        found = {"rows": self.rows, "goals": self.goals, "left_out": self.left_out}
        self.folder.mkdir(parents=True, exist_ok=True)
        alarm = signal.getitimer(signal.ITIMER_REAL)
        signal.setitimer(signal.ITIMER_REAL, 0)  # the files are whole, or those of before
        disk.write_json(self.folder / f"{self.stage}.json", about | found)
        with disk.replacing(self.folder / f"{self.stage}.md") as aside:
            aside.write_text(self._markdown(), encoding="utf-8")
        if alarm[1]:
            signal.setitimer(signal.ITIMER_REAL, max(alarm[0], 0.01), alarm[1])

    def _markdown(self) -> str:
        about = ", ".join(f"{name} {value}" for name, value in self.environment.items() if name != "card")
        parts = [f"# {self.stage}\n\n{self.environment['card']}; {about}."]
        # Rows of different kinds are tables of their own.
        kinds: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            kinds.setdefault(tuple(row), []).append(row)
        parts += [_table(rows) for rows in kinds.values()]
        parts += [f"## {title}\n\n{_table(rows)}" for title, rows in self._sections() if rows]
        return "\n\n".join(parts) + "\n"

    def _sections(self) -> tuple[tuple[str, list[Row]], ...]:
        return ("Goals", self.goals), ("Left out", self.left_out)


def _table(rows: list[Row]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_text(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else " ".join(str(value).split())


def environment(device: str, commit: str | None) -> Row:
    """Card, driver, versions and commit, as every table names them."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return {
        "card": hardware(device),
        "driver": driver() if device == "cuda" else "none",
        "Python": platform.python_version(),
        **versions,
        "commit": commit or engine_commit() or "unknown",
    }


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device: str) -> int:
    """The most bytes of tensors at once since `reset_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
