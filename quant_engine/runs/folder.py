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
SHARED = "shared.json"
"""In a run that others measured: by whom, and where it was fetched from."""


@dataclass(frozen=True)
class RunFolder:
    """A run as read back: what was asked (`spec`), about it (`about`, the whole run.json), and its numbers."""

    path: Path
    spec: RunSpec
    about: dict
    results: list[Result]


def run_path(run_id: str) -> Path:
    """A run's folder: of this machine, else shared by others, else of those that came with the project; if there is
    none, where it would be written. Raises UserError for anything that is no run id: ids come from addresses and
    buttons, too.
    """
    if not RUN_ID.fullmatch(run_id):
        raise UserError(f"{run_id!r} is not a run id, which has 16 hexadecimal digits.")
    paths = [root / run_id for root in reversed(roots())]
    return next((path for path in paths if path.is_dir()), paths[0])


def roots() -> tuple[Path, ...]:
    """Folders of run folders; what a later one holds goes before the same run in an earlier one."""
    return folders.shipped(), folders.shared(), folders.results()


def exists(run_id: str) -> bool:
    """Whether the run was made on this machine."""
    return (folders.results() / run_id / "run.json").exists()


def check_writable() -> None:
    """Raises UserError, before any work is done, if results can't be written."""
    with disk_errors():
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
    with disk_errors(), disk.replacing_folder(final) as aside:
        _write_table(aside / "results.parquet", Result, results)
        _write_table(aside / "layers.parquet", LayerRecord, layers)
        (aside / "items").mkdir()
        for task, outputs in items.items():
            write_items(aside, task, outputs)
        (aside / "log.txt").write_text(log, encoding="utf-8", errors="backslashreplace")
        body = {"run_id": spec.run_id, "spec": spec.model_dump(mode="json"), **about}
        (aside / "run.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return final


def remove(run_id: str) -> None:
    """Removes the run that was made on this machine, if it is there: first out of sight, so that no half of it is ever
    shown. Raises UserError if that is not allowed."""
    path = folders.results() / run_path(run_id).name
    with disk_errors():
        disk.remove_folder(path)


def read(path: Path, run_id: str | None = None) -> RunFolder:
    """The run in the folder `path`, which has the name of the run unless `run_id` says which one it is. Raises
    UserError, naming the run and what is wrong with it."""
    name = run_id or path.name
    try:
        about = json.loads((path / "run.json").read_text(encoding="utf-8"))
        if (path / SHARED).exists():
            about["shared"] = json.loads((path / SHARED).read_text(encoding="utf-8"))
        spec = RunSpec(**about["spec"])
        rows = pq.read_table(path / "results.parquet").to_pylist()
        results = [Result(**row) for row in rows]
    except FileNotFoundError as error:
        missing = Path(error.filename or error.args[0]).name  # parquet names the file in its message alone
        raise UserError(f"Run {name} is incomplete: {missing} is missing.") from None
    except ValidationError as error:
        raise UserError(f"Run {name} does not hold what a run holds: {sentence(error)}") from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        raise UserError(f"Run {name} can't be read: its files are damaged.") from None
    if spec.run_id != name:
        raise UserError(f"Run {name} holds the run {spec.run_id}: the folder was renamed or its run.json changed.")
    if not results:
        raise UserError(f"Run {name} holds no results.")
    return RunFolder(path, spec, about, results)


def read_layers(path: Path) -> list[LayerRecord]:
    return [LayerRecord(**row) for row in pq.read_table(path / "layers.parquet").to_pylist()]


def read_items(path: Path, task: str) -> list[ItemOutput]:
    return [ItemOutput(**row) for row in pq.read_table(path / "items" / f"{file_name(task)}.parquet").to_pylist()]


def write_items(path: Path, task: str, outputs: Sequence[ItemOutput]) -> None:
    """Into a run folder that is being written."""
    _write_table(path / "items" / f"{file_name(task)}.parquet", ItemOutput, outputs)


def run_folders() -> Iterator[Path]:
    """Every folder that claims to be a run, in order of name; what is being written is left out.

    A run that came with the project or from others gives way to the same run made on this machine.
    """
    found: dict[str, Path] = {}
    for root in roots():
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
def disk_errors(root: Path | None = None) -> Iterator[None]:
    """Turns what the system refuses to write in `root`, else in the results folder, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The results folder {root or folders.results()} can't be written ({error.strerror or error}): "
            "free space there or make it writable, or set LOWBIT_RESULTS or LOWBIT_HOME to another folder."
        ) from error
