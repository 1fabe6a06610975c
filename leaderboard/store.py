"""Every result in one tidy frame: the study's numbers and the run folders on this machine.

The columns are the fields of `quant_engine.results.Result`; `conditions`, which two measured numbers must share to be
comparable (item limit, window, the weights they start from); and a run's `window`, `dtype`, `device`, the seconds that
all of it took, the tokens that it was calibrated on, who shared it, and what it has in common (`alike`) with runs of
other orders of sums, whose calibration went through the blocks `at_once` windows at a time. Run folders are read once
and again when they change; one that cannot be read is named with the reason, and the rest shows.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from quant_engine import folders
from quant_engine.evaluate import reads_windows
from quant_engine.methods import METHODS, Method
from quant_engine.models.catalog import MODELS
from quant_engine.results import Result
from quant_engine.runs import folder as run_folder
from quant_engine.spec import RunSpec, UserError, digest, published_title

PAPER = folders.ASSETS / "paper" / "results.csv"
NOTES = folders.ASSETS / "paper" / "notes.csv"
COLUMNS = [
    *Result.model_fields, "conditions", "window", "dtype", "device", "run_s", "calibration_tokens", "shared_by",
    "alike", "at_once",
]  # fmt: skip
PAPER_METHODS = (
    "FP16", "RTN", "GPTQ", "AWQ", "SliM-LLM", "QuIP", "DB-LLM", "PB-LLM", "BiLLM", "SmoothQuant", "OmniQuant",
    "I-LLM", "SpinQuant", "NormalFloat", "QLoRA", "IR-QLoRA",
)  # fmt: skip

STORED_LIKE = {"OmniQuant": "rtn", "SpinQuant": "smoothquant", "I-LLM": "smoothquant"}
"""The study's methods that the engine does not have, and the engine's one that stores the same."""


@dataclass(frozen=True)
class Problem:
    """A run folder that was left out, and why, in one sentence."""

    folder: str
    reason: str


@dataclass(frozen=True)
class Snapshot:
    """All results at one moment. Equal versions mean equal content."""

    frame: pd.DataFrame
    problems: tuple[Problem, ...]
    version: str


class Store:
    """Reads the study's results once and the run folders whenever they change. Safe to share between threads."""

    def __init__(self, results: Path | None = None, paper: Path = PAPER) -> None:
        self._results = results
        self._paper = paper
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[str, pd.DataFrame | Problem]] = {}
        self._paper_frame: pd.DataFrame | None = None
        self._snapshot: Snapshot | None = None

    def version(self) -> str:
        """Changes whenever a run folder appears, changes or goes. Costs one directory listing."""
        return digest(self._stamps())

    def snapshot(self) -> Snapshot:
        """The current results; only folders that changed since the last call are read."""
        with self._lock:
            stamps = self._stamps()
            version = digest(stamps)
            if self._snapshot is None or self._snapshot.version != version:
                self._snapshot = self._merge(stamps, version)
            return self._snapshot

    def _roots(self) -> tuple[Path, ...]:
        """Folders of run folders; what a later one holds goes before the same run in an earlier one."""
        return (self._results,) if self._results else run_folder.roots()

    def _stamps(self) -> dict[str, str]:
        """Every run folder's path with what changes when it is written again, in order of the run's id.

        A folder of runs that can't be read stands for itself, with the reason.
        """
        folders_by_name: dict[str, tuple[str, str]] = {}
        for root in self._roots():
            try:
                with os.scandir(root) as entries:
                    names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
            except FileNotFoundError:
                continue
            except OSError as error:
                folders_by_name[f".{root}"] = (str(root), f"The results folder {root} can't be read: {error.strerror}.")
                continue
            folders_by_name |= {name: (str(root / name), _stamp(root / name)) for name in names}
        return dict(folders_by_name[name] for name in sorted(folders_by_name))

    def _read(self, path: str, stamp: str) -> pd.DataFrame | Problem:
        return Problem(Path(path).name, stamp) if Path(path) in self._roots() else read_run(Path(path))

    def _merge(self, stamps: dict[str, str], version: str) -> Snapshot:
        if self._paper_frame is None:
            self._paper_frame = read_paper(self._paper)
        before = self._runs
        self._runs = {
            path: before[path] if path in before and before[path][0] == stamp else (stamp, self._read(path, stamp))
            for path, stamp in stamps.items()
        }
        contents = [content for _, content in self._runs.values()]
        problems = tuple(content for content in contents if isinstance(content, Problem))
        runs = sorted((content for content in contents if isinstance(content, pd.DataFrame)), key=_studys_order)
        return Snapshot(_join([self._paper_frame, *runs]), problems, version)


def read_paper(path: Path = PAPER) -> pd.DataFrame:
    """The numbers of the study as result rows; `table` is the table of the study that prints them."""
    frame = pd.read_csv(path, dtype={"table": str})
    frame["source"] = "paper"
    frame["status"] = frame["status"].replace({"reported": "ok"})
    frame["task"] = frame["task"].fillna(frame["metric"])  # efficiency rows measure the setting, not a task
    return _tidy(frame)


@dataclass(frozen=True)
class Note:
    """A known oddity of a printed number. None matches any bits or group size; group size 0 means per row."""

    w_bits: float | None
    a_bits: float | None
    group_size: float | None
    text: str

    def covers(self, w_bits: float, a_bits: float, group_size: float) -> bool:
        pairs = ((self.w_bits, w_bits), (self.a_bits, a_bits), (self.group_size, group_size))
        return all(mine is None or mine == other for mine, other in pairs)


Notes = dict[tuple[str, str, str], list[Note]]


def read_notes() -> Notes:
    """The notes on the study's cells, by (model, method, task)."""
    notes: Notes = {}
    for row in pd.read_csv(NOTES).to_dict("records"):
        bits = [None if pd.isna(row[name]) else float(row[name]) for name in ("w_bits", "a_bits", "group_size")]
        notes.setdefault((row["model"], row["method"], row["task"]), []).append(Note(*bits, row["note"]))
    return notes


def note_on(row: dict, task: str, notes: Notes) -> str:
    """The note on a printed (or unreadable) number of the study in a setting's row, or nothing."""
    if row["source"] != "paper":
        return ""
    group = 0.0 if pd.isna(row["group_size"]) else row["group_size"]
    for note in notes.get((row["model"], row["method"], task), ()):
        if note.covers(row["w_bits"], row["a_bits"], group):
            return note.text
    return ""


def read_run(folder: Path) -> pd.DataFrame | Problem:
    """The results of one run folder under the names that the study uses, or the reason why it cannot be read."""
    try:
        run = run_folder.read(folder)
    except UserError as error:
        return Problem(folder.name, str(error))
    frame = _tidy(pd.DataFrame([result.model_dump() for result in run.results]))
    most = [run.spec.text_windows if reads_windows((task,)) else run.spec.limit for task in frame["task"]]
    rest = f"items, window {run.spec.window}, {run.spec.weights.revision}"
    frame["conditions"] = [f"{limit or 'all'} {rest}" for limit in most]
    frame["window"] = float(run.spec.window)
    frame["dtype"], frame["device"] = run.spec.dtype, run.spec.device
    calibration, seconds = run.spec.weights.calibration, run.about.get("duration_s")
    frame["run_s"] = float(seconds) if isinstance(seconds, int | float) else float("nan")
    frame["alike"], frame["at_once"] = _alike(run.spec), float(calibration.at_once or 0) if calibration else 0.0
    frame["calibration_tokens"] = float(calibration.samples * calibration.length if calibration else 0)
    if isinstance(run.about.get("shared"), dict):
        frame["shared_by"] = "{by} ({repository})".format_map({"by": "?", "repository": "?"} | run.about["shared"])
    frame["method"] = frame["method"].map(method_name)
    frame["model"] = frame["model"].map(model_name)
    return frame


def _alike(spec: RunSpec) -> str:
    """What identifies weights and how they are computed with, but for the order of sums."""
    weights, calibration = spec.weights, spec.weights.calibration
    if calibration:
        weights = weights.model_copy(update={"calibration": calibration.model_copy(update={"at_once": None})})
    return digest([weights.model_dump(mode="json"), spec.dtype, spec.device])


def method_name(method: str) -> str:
    """The study's name of an engine's method id (slim_llm is SliM-LLM), or the method's own title."""
    key = _key(method)
    for name in PAPER_METHODS:
        if _key(name) == key:
            return name
    return METHODS[method].card.title if method in METHODS else published_title(method) or method.upper()


def method_called(name: str) -> Method | None:
    """The engine's method that the leaderboard shows under this name, or one that stores the same; None if unknown."""
    if name in STORED_LIKE:
        return METHODS[STORED_LIKE[name]]
    return next((method for key, method in METHODS.items() if method_name(key) == name), None)


@cache
def options_text(method: str, options: str) -> str:
    """Of a run's `options` (JSON), those that are not the defaults of its method: "act_order, groups=static". Nothing
    where they can't be read: one run's file takes no other row down."""
    fields = next((entry.Options.model_fields for name, entry in METHODS.items() if method_name(name) == method), {})
    try:
        values = json.loads(options)
    except ValueError:
        return ""
    if not fields or not isinstance(values, dict):
        return ""
    changed = {name: value for name, value in values.items() if name not in fields or value != fields[name].default}
    return ", ".join(name if value is True else f"{name}={value}" for name, value in changed.items())


def model_name(model: str) -> str:
    """The title of a known model id, or a model folder's own name."""
    return MODELS[model].title if model in MODELS else Path(model).name


def split_parts(results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The results of whole models, and those of parts that were quantized alone, with their names in the column `only`:
    no settings that anybody would use."""
    names = results["options"].fillna("").astype(object).map(_part)
    return results[names == ""], results[names != ""].assign(only=names[names != ""])


@cache
def _part(options: str) -> str:
    """The part that a run's `options` (JSON) name; nothing for a whole model, and where they can't be read."""
    if '"only"' not in options:
        return ""
    try:
        values = json.loads(options)
    except ValueError:
        return ""
    name = values.get("only") if isinstance(values, dict) else None
    return name if isinstance(name, str) else ""


def _studys_order(run: pd.DataFrame) -> tuple:
    """Where a run stands among runs: FP16 first, methods as the study orders them, more bits first, then by age."""
    first = run.iloc[0]
    method = first["method"]
    rank = PAPER_METHODS.index(method) if method in PAPER_METHODS else len(PAPER_METHODS)
    return rank, method, -first["w_bits"], str(first["created"])


def _key(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Exactly the columns of Result, numbers as numbers, text as text."""
    frame = frame.reindex(columns=COLUMNS)
    frame["a_bits"] = frame["a_bits"].fillna(16)
    for column in ("w_bits", "a_bits", "group_size", "stored_bits", "value", "standard_error", "items", "seed",
                   "duration_s", "peak_memory_bytes", "window", "run_s",
                   "calibration_tokens", "at_once"):  # fmt: skip
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    return frame


def _join(frames: list[pd.DataFrame]) -> pd.DataFrame:
    text = [name for name in COLUMNS if not pd.api.types.is_float_dtype(frames[0][name])]
    return pd.concat([frame.astype(dict.fromkeys(text, object)) for frame in frames], ignore_index=True)


def _stamp(folder: Path) -> str:
    times = []
    for path in (folder, folder / "run.json", folder / "results.parquet"):
        try:
            times.append(path.stat().st_mtime_ns)
        except FileNotFoundError:
            times.append(0)
    return "-".join(map(str, times))
