"""What LoRA fine-tuning learns from: pairs of a prompt and an answer, or plain texts.

    builtin         the public-domain prose that ships with the project
    demo            the demo's drawn pictures with questions and answers (quant_engine/data/drawn)
    PATH            a json, jsonl, csv or parquet file, or a folder of such; pinned by its content as PATH@HASH
    hub:NAME        a data set of the Hugging Face Hub, or hub:NAME@REVISION; pinned to a commit as hub:NAME@COMMIT

Rows have the columns instruction, output and perhaps input (as Alpaca's), or text.
Prompts have Alpaca's wording, as in the QLoRA reference. Imports no torch.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ValidationError

from quant_engine import hub
from quant_engine.data import files, texts
from quant_engine.data.content import files_hash
from quant_engine.data.row import MaybeText, Row, problem
from quant_engine.deferred import deferred
from quant_engine.spec import UserError

parquet = deferred("pyarrow.parquet")

KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
COLUMNS = ("instruction", "input", "output", "text")
MOST_BYTES = 4 * 2**30
_SURPLUS = "more fields than columns"

_TASK = "Below is an instruction that describes a task"
_RESPONSE = "### Response: "
WITH_INPUT = (
    f"{_TASK}, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n" + _RESPONSE
)
WITHOUT_INPUT = (
    f"{_TASK}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n" + _RESPONSE
)

_HUB = re.compile(r"hub:(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Pair:
    """What is given and what is to be said. A plain text has no prompt, and is learned whole."""

    prompt: str
    answer: str


_Text = Annotated[MaybeText, AfterValidator(lambda text: text or "")]
Fields = TypeVar("Fields", bound=Row)


class _Instruction(Row):
    instruction: _Text
    input: _Text
    output: _Text


class _PlainText(Row):
    text: _Text


def pin(name: str) -> str:
    """The name of a data source with what fixes its content: a hub data set's commit, a path's hash.

    Raises UserError if there are no such data, if they are of another kind, or have changed since they were pinned.
    """
    if name in ("builtin", "demo"):
        return name
    if name.startswith("hub:"):
        repository = _HUB.fullmatch(name)
        if not repository:
            raise UserError(f"{name!r} names no hub data set; write hub:OWNER/NAME, or hub:OWNER/NAME@REVISION.")
        title = f"The data set {repository['name']}"
        commit = hub.commit(repository["name"], "dataset", repository["revision"], title=title)
        return f"hub:{repository['name']}@{commit}"
    return texts.pin_path(name, lambda path: _digest(files_of(path)), "The training data in {} have")


def files_of(path: Path) -> list[Path]:
    """The data files of a path, all of one kind. Raises UserError if there are none."""
    kinds = ", ".join(KINDS)
    if path.is_file():
        if not _kind(path):
            raise UserError(f"{path} is no training data: give a {kinds} file, or a folder of such.")
        return [path]
    if not path.is_dir():
        raise UserError(f"There is no training data {path}: give a {kinds} file or folder, hub:NAME, builtin or demo.")
    paths = sorted(file for file in path.rglob("*") if _kind(file))
    paths = [file for file in paths if not file.name.startswith((".", "dataset_"))]
    # A folder made for the hub says which of its files are for training.
    paths = [file for file in paths if "train" in file.relative_to(path).as_posix()] or paths
    if len({_kind(file) for file in paths}) > 1:
        raise UserError(f"{path} holds data files of several kinds; give the one to train on.")
    if not paths:
        raise UserError(f"The folder {path} holds no {kinds} file.")
    return paths


def _kind(path: Path) -> str | None:
    return KINDS.get(Path(path.name.removesuffix(".gz")).suffix)


def _digest(paths: list[Path]) -> str:
    try:
        if sum(file.stat().st_size for file in paths) > MOST_BYTES:
            raise UserError(f"The training data are larger than {MOST_BYTES >> 30} GiB; give fewer.")
        return files_hash(paths)
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}).") from None


def pairs(name: str) -> list[Pair]:
    """All pairs of a pinned source, in its order; rows without an answer are left out.

    Raises UserError if the data can't be had, or have neither of the known columns. Not for builtin and demo.
    """
    repository = _HUB.fullmatch(name)
    if repository:
        patterns, title = [f"*{suffix}*" for suffix in KINDS], f"The data set {repository['name']}"
        path = hub.snapshot(repository["name"], "dataset", repository["revision"], patterns, title=title)
    else:
        path = texts.path_of(name)
    rows, columns = [], dict[str, None]()
    for file in files_of(path):
        for row_name, row in _rows(file):
            rows.append((f"{file}, {row_name}", {column: row[column] for column in COLUMNS if column in row}))
            columns |= dict.fromkeys(row)
    if not rows:
        raise UserError(f"The training data {name} have no row.")
    if {"instruction", "output"} <= columns.keys():
        result = [_instruction(_checked(_Instruction, *row)) for row in rows]
    elif "text" in columns:
        result = [Pair("", _checked(_PlainText, *row).text) for row in rows]
    else:
        raise UserError(
            f"The training data {name} have the columns {', '.join(columns)}; "
            "they need instruction and output (and perhaps input), or text."
        )
    result = [pair for pair in result if pair.answer.strip()]
    if not result:
        raise UserError(f"The training data {name} have no row with an answer.")
    return result


def _checked(model: type[Fields], row_name: str, row: dict[str, Any]) -> Fields:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        raise UserError(f"{row_name}: {problem(error)}.") from None


def _instruction(row: _Instruction) -> Pair:
    wording = WITH_INPUT if row.input else WITHOUT_INPUT
    return Pair(wording.format(instruction=row.instruction, input=row.input), row.output)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, each behind what it is called. Raises UserError where they can't be read."""
    return {"json": files.json_rows, "csv": _csv_rows, "parquet": _parquet_rows}[_kind(path)](path)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    csv.field_size_limit(MOST_BYTES)
    reader = csv.DictReader((line for _, line in files.lines(path)), restkey=_SURPLUS, strict=True)
    try:
        for number, row in enumerate(reader, 1):
            if _SURPLUS in row:
                raise UserError(f"{path}, row {number} has more fields than there are columns: quote its texts.")
            yield f"row {number}", row
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1} is no CSV ({error}).") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        files.open_file(path).close()
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except UserError:
        raise
    except Exception as error:  # pyarrow raises many things for what is no whole table
        raise UserError(f"{path} can't be read ({type(error).__name__}): fetch it again.") from None


def builtin_text() -> str:
    return texts.read(texts.BUILTIN_CALIBRATION)
