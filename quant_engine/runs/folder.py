"""A finished run on disk: one folder, written once.

    run.json            what was asked, when, on what, with which versions, and how long it took
    results.parquet     one row per number (results.Result)
    layers.parquet      one row per quantized linear (results.LayerRecord)
    items/TASK.parquet  one row per question or window (results.ItemOutput)
    log.txt             what the run said

A folder is made aside, under a name that starts with a dot, and renamed when it is whole: a half-written run is never
under its final name.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from quant_engine import disk, folders
from quant_engine.results import ItemOutput, LayerRecord, Result
from quant_engine.spec import RunSpec, UserError, digest, sentence

RUN_ID = re.compile(r"[0-9a-f]{16}")
LONGEST_NAME = 200


@dataclass(frozen=True)
class RunFolder:
    """A run as read back: what was asked (`spec`), about it (`about`, the whole run.json), and its numbers."""

    path: Path
    spec: RunSpec
    about: dict
    results: list[Result]


def run_path(run_id: str) -> Path:
    """A run's folder: on this machine, else among those that came with the project; if in neither, where it would be
    written. Raises UserError for anything that is no run id: ids come from addresses and buttons, too.
    """
    if not RUN_ID.fullmatch(run_id):
        raise UserError(f"{run_id!r} is not a run id, which has 16 hexadecimal digits.")
    own, shipped = folders.results() / run_id, folders.shipped() / run_id
    return shipped if shipped.is_dir() and not own.is_dir() else own


def exists(run_id: str) -> bool:
    """Whether the run was made on this machine."""
    return (folders.results() / run_id / "run.json").exists()


def check_writable() -> None:
    """Raises UserError, before any work is done, if results can't be written."""
    with _disk_errors():
        folders.results().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folders.results()):  # without a name, so a killed process leaves none
            pass


def write(
    spec: RunSpec,
    about: dict,
    results: Sequence[Result],
    layers: Sequence[LayerRecord],
    items: dict[str, Sequence[ItemOutput]],
    log: str,
) -> Path:
    """Writes the run aside and renames it into place; an older folder of the same run is replaced, and what killed
    processes left of it removed.

    Raises UserError if the disk is full or the folder can't be written.
    """
    final = folders.results() / spec.run_id
    disk.remove_left_overs(final)
    with _disk_errors(), disk.replacing_folder(final) as aside:
        _write_table(aside / "results.parquet", Result, results)
        _write_table(aside / "layers.parquet", LayerRecord, layers)
        (aside / "items").mkdir()
        for task, outputs in items.items():
            _write_table(aside / "items" / f"{file_name(task)}.parquet", ItemOutput, outputs)
        (aside / "log.txt").write_text(log, encoding="utf-8", errors="backslashreplace")
        body = {"run_id": spec.run_id, "spec": spec.model_dump(mode="json"), **about}
        (aside / "run.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return final


def remove(run_id: str) -> None:
    """Removes the run that was made on this machine, if it is there: first out of sight, so that no half of it is ever
    shown. Raises UserError if that is not allowed."""
    path = folders.results() / run_path(run_id).name
    with _disk_errors():
        disk.remove_folder(path)


def read(path: Path) -> RunFolder:
    """The run in the folder `path`. Raises UserError, naming the folder and what is wrong with it."""
    try:
        about = json.loads((path / "run.json").read_text(encoding="utf-8"))
        spec = RunSpec(**about["spec"])
        rows = pq.read_table(path / "results.parquet").to_pylist()
        results = [Result(**row) for row in rows]
    except FileNotFoundError as error:
        missing = Path(error.filename or error.args[0]).name  # parquet names the file in its message alone
        raise UserError(f"Run {path.name} is incomplete: {missing} is missing.") from None
    except ValidationError as error:
        raise UserError(f"Run {path.name} does not hold what a run holds: {sentence(error)}") from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        raise UserError(f"Run {path.name} can't be read: its files are damaged.") from None
    if spec.run_id != path.name:
        raise UserError(f"Run {path.name} holds the run {spec.run_id}: the folder was renamed or its run.json changed.")
    if not results:
        raise UserError(f"Run {path.name} holds no results.")
    return RunFolder(path, spec, about, results)


def read_layers(path: Path) -> list[LayerRecord]:
    return [LayerRecord(**row) for row in pq.read_table(path / "layers.parquet").to_pylist()]


def read_items(path: Path, task: str) -> list[ItemOutput]:
    return [ItemOutput(**row) for row in pq.read_table(path / "items" / f"{file_name(task)}.parquet").to_pylist()]


def run_folders() -> Iterator[Path]:
    """Every folder that claims to be a run, in order of name; what is being written is left out.

    A run that came with the project gives way to the same run made on this machine.
    """
    found: dict[str, Path] = {}
    for root in (folders.shipped(), folders.results()):
        if root.is_dir():
            found |= {path.name: path for path in root.iterdir() if RUN_ID.fullmatch(path.name) and path.is_dir()}
    yield from (found[name] for name in sorted(found))


def file_name(task: str) -> str:
    """A task's id as a file name: `perplexity:/a/b.txt@0f…` has slashes, and may be longer than file names can be."""
    name = re.sub(r"[^A-Za-z0-9@._-]+", "_", task)
    return name if len(name) <= LONGEST_NAME else f"{digest(task)}_{name[-LONGEST_NAME // 2 :]}"


def _write_table(path: Path, row: type[BaseModel], rows: Sequence[BaseModel]) -> None:
    table = pa.Table.from_pylist([entry.model_dump() for entry in rows], schema=_schema(row))
    pq.write_table(table, path, compression="zstd")


def _schema(row: type[BaseModel]) -> pa.Schema:
    """The parquet columns of a row type, so that a column of empty values still has its type."""
    kinds = {"string": pa.string(), "number": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_()}

    def kind(field: dict) -> pa.DataType:
        if "anyOf" in field:
            field = next(option for option in field["anyOf"] if option.get("type") != "null")
        return pa.list_(kind(field["items"])) if field["type"] == "array" else kinds[field["type"]]

    return pa.schema([(name, kind(field)) for name, field in row.model_json_schema()["properties"].items()])


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The results folder {folders.results()} can't be written ({error.strerror or error}): "
            "free space there or make it writable, or set LOWBIT_RESULTS to another folder."
        ) from error
