"""Where every number of a row comes from, and the command that makes it again."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import ValidationError

from leaderboard import orders, votes
from leaderboard.analysis import CELL_WORDS, Board, Cell
from leaderboard.store import Notes, method_called, method_name, model_name, note_on
from leaderboard.view import find_row, row_key
from quant_engine import __version__, notation
from quant_engine.evaluate import TASKS
from quant_engine.methods import METHODS
from quant_engine.models.catalog import MODELS
from quant_engine.runs import folder as run_folder
from quant_engine.runs.command import command
from quant_engine.spec import QuantSetting, RunSpec, UserError, WeightSpec


@dataclass(frozen=True)
class Number:
    """One number of a row as it is written, with its standard error, where it comes from, and what is odd about it."""

    title: str
    group: str
    text: str
    error: str
    source: str
    note: str


@dataclass(frozen=True)
class Provenance:
    """A row's setting, what it stores, its numbers, and how it was made. `about` are (name, value) pairs; `command`
    reproduces it, or is empty where the engine has no such setting; `offered` says whether the Run tab can make it as
    well; `run_id` is empty for the study's rows."""

    key: str
    title: str
    model: str
    source: str
    stored: str
    numbers: list[Number]
    about: list[tuple[str, str]]
    command: str
    offered: bool
    run_id: str


def provenance_of(board: Board, index: int, notes: Notes) -> Provenance:
    """The provenance of the row at `index` of `board.rows`."""
    row = board.rows.iloc[index].to_dict()
    measured = _is_measured(row)
    origins = [origin for origin in board.origin[index] if origin >= 0]
    result = board.results.iloc[origins[0]].to_dict() if origins else {}
    run = _run(board, index)
    return Provenance(
        key=row_key(row),
        title=notation.setting(row["method"], row["w_bits"], row["a_bits"], row["group_size"]),
        model=row["model"],
        source=row["source"],
        stored=_stored(row, measured),
        numbers=_numbers(board, index, row, notes),
        about=_about_run(result, board, origins) if measured else _about(row),
        command=_text(result.get("command")) if measured else command(run) if run else "",
        offered=run is not None,
        run_id=_text(row["run_id"]) if measured else "",
    )


def row_run(board: Board, key: str) -> RunSpec | None:
    """The run that measures a row again: a measured row's own. None if there is no such row, or the engine can't."""
    index = find_row(board, key)
    return None if index is None else _run(board, index)


def _run(board: Board, index: int) -> RunSpec | None:
    row = board.rows.iloc[index].to_dict()
    if not _is_measured(row):
        return _planned_run(row, ["perplexity"] if row["source"] == votes.SOURCE else _tasks(board, index))
    try:
        spec = run_folder.read(run_folder.run_path(_text(row["run_id"]))).spec
    except UserError:
        return None
    return spec if spec.weights.model in MODELS and {*spec.tasks} <= TASKS.keys() else None


def _planned_run(row: dict, tasks: list[str]) -> RunSpec | None:
    """The run that measures a row's setting on those of `tasks` that the engine has; None if it can't."""
    model = next((name for name in MODELS if model_name(name) == row["model"]), None)
    method = "fp16" if row["w_bits"] == 16 else next((n for n in METHODS if method_name(n) == row["method"]), None)
    measurable = tuple(task for task in tasks if task in TASKS)
    if model is None or method is None or not measurable:
        return None
    group = None if pd.isna(row["group_size"]) or method == "fp16" else int(row["group_size"])
    try:
        setting = QuantSetting(method=method, w_bits=row["w_bits"], a_bits=int(row["a_bits"]), group_size=group)
        card = MODELS[model]
        return RunSpec(
            weights=WeightSpec(model=model, setting=setting),
            tasks=measurable,
            device="cuda" if card.needs_gpu else "cpu",
            dtype="bfloat16" if card.needs_gpu else "float32",
            window=card.window,
        )
    except ValidationError:
        return None


def _tasks(board: Board, index: int) -> list[str]:
    cells = zip(board.columns, board.cells[index], strict=True)
    return [column.task for column, cell in cells if cell != Cell.MISSING and column.compared]


def _is_measured(row: dict) -> bool:
    return row["source"] == "measured"


def _stored(row: dict, measured: bool) -> str:
    if np.isnan(row["stored_bits"]):
        return "Stored bits unknown"
    how = "from the ledger of what was stored" if measured else "counted from what the method stores"
    size = "" if np.isnan(row["size_gb"]) else f", {notation.size(row['size_gb'] * 1e9)} of weights"
    return f"{row['stored_bits']:.2f} bits per quantized weight{size} ({how})"


def _numbers(board: Board, index: int, row: dict, notes: Notes) -> list[Number]:
    numbers = []
    for column_index, column in enumerate(board.columns):
        cell, origin = Cell(board.cells[index, column_index]), board.origin[index, column_index]
        note = note_on(row, column.task, notes)
        if cell is Cell.MISSING and not note:
            continue
        result = board.results.iloc[origin] if origin >= 0 else None
        value, error = board.values[index, column_index], np.nan if result is None else result["standard_error"]
        text = column.text(value, measured=_is_measured(row))
        error = "" if pd.isna(error) else f"± {notation.standard_error(error)}"
        if column.task == votes.TASK:
            text, error = f"{value:.1f}%", ""
        numbers.append(
            Number(
                title=f"{column.title} {column.arrow}",
                group=column.group,
                text=CELL_WORDS.get(cell, "·") if np.isnan(value) else text,
                error=error,
                source=_source(cell, result),
                note=note,
            )
        )
    return numbers


def _source(cell: Cell, result: pd.Series | None) -> str:
    if cell is Cell.COMPUTED:
        return "mean of the five tasks, computed here"
    if result is None:
        return "the study"
    if result["task"] == votes.TASK:
        return votes.describe(result["value"], result["items"])
    if result["source"] == "paper":
        return f"Table {result['table']} of the study"
    items = "" if pd.isna(result["items"]) else f"{result['items']:g} items"
    revision = "" if pd.isna(result["data_revision"]) else f"data {result['data_revision']}"
    spread = orders.words(result, notation.number)
    return ", ".join(filter(None, [items, revision, spread])) or "this run"


def _about(row: dict) -> list[tuple[str, str]]:
    """What is known of how a row's numbers came about that no run measured."""
    if row["source"] == votes.SOURCE:
        return [("Source", "Blind votes in Ask a picture, on this machine"), ("Measured", "nothing yet")]
    about = [
        ("Source", "An empirical study of LLaMA3 quantization: from LLMs to MLLMs, arXiv 2404.14047 v3"),
        ("Hardware", "8 A800 80 GB"),
    ]
    if row["track"] in ("llm_ptq", "mllm_ptq") and row["w_bits"] < 16:
        about.append(("Calibration", "WikiText2, 128 samples of 2048 tokens"))
    if row["track"] == "lora_ft" and row["w_bits"] < 16:
        about.append(("Fine-tuning", "Alpaca, where the method trains adapters"))
    if row["track"] == "mllm_ptq":
        about.append(("Quantized", "the language model only"))
    return about


def _about_run(result: dict, board: Board, origins: list[int]) -> list[tuple[str, str]]:
    """What run.json says of the run, in the order in which one asks."""
    seconds = board.results["duration_s"].iloc[origins].dropna()
    fields = [
        ("Made", _text(result.get("created"))),
        ("Note", _earlier(result)),
        ("Shared by", _text(result.get("shared_by"))),
        ("Engine", " ".join(filter(None, [_text(result.get("engine_version")), _text(result.get("engine_commit"))]))),
        ("Libraries", _pairs(_text(result.get("libraries")))),
        ("Hardware", _pairs(_text(result.get("hardware")))),
        ("Model revision", _text(result.get("model_revision"))),
        ("Calibration", _pairs(_text(result.get("calibration")))),
        ("Options", _pairs(_text(result.get("options")).replace("{}", ""))),
        ("Seed", "" if pd.isna(result.get("seed")) else f"{result['seed']:g}"),
        ("Conditions", _text(result.get("conditions"))),
        ("Measuring took", notation.seconds(float(seconds.iloc[0])) if len(seconds) else ""),
        ("Peak memory", "" if pd.isna(result.get("peak_memory_bytes")) else notation.size(result["peak_memory_bytes"])),
    ]
    return [(name, value) for name, value in fields if value]


def _earlier(result: dict) -> str:
    """What is said of a run whose weights another version of the engine quantized."""
    version = _text(result.get("engine_version"))
    if version in ("", __version__) or method_called(_text(result.get("method"))) is None:
        return ""
    return f"made by version {version}; this one, {__version__}, rounds scales otherwise and may give another number"


def _pairs(text: str) -> str:
    """A JSON object as "name value, name value"; other text as it is."""
    try:
        body = json.loads(text)
    except ValueError:
        return text
    return ", ".join(f"{name} {value}" for name, value in body.items()) if isinstance(body, dict) else text


def _text(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA else str(value)
