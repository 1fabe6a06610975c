"""What LoRA fine-tuning learns from: pairs of a prompt and an answer, or plain texts.

    builtin         the public-domain prose that ships with the project
    demo            the demo's drawn pictures with questions and answers (quant_engine/data/drawn)
    PATH            a json, jsonl, csv or parquet file, or a folder of such; pinned by its content as PATH@HASH
    hub:NAME        a data set of the Hugging Face Hub, or hub:NAME@REVISION; pinned to a commit as hub:NAME@COMMIT

Rows have the columns instruction, output and perhaps input (as Alpaca's), or text. They are read through `datasets`.
Prompts have Alpaca's wording, as in the QLoRA reference. Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from quant_engine import folders, hub
from quant_engine.data import texts
from quant_engine.data.content import files_hash
from quant_engine.deferred import deferred
from quant_engine.spec import UserError

datasets = deferred("datasets")

KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
MOST_BYTES = 4 * 2**30

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
        if path.suffix not in KINDS:
            raise UserError(f"{path} is no training data: give a {kinds} file, or a folder of such.")
        return [path]
    if not path.is_dir():
        raise UserError(f"There is no training data {path}: give a {kinds} file or folder, hub:NAME, builtin or demo.")
    files = sorted(file for file in path.rglob("*") if file.suffix in KINDS)
    files = [file for file in files if not file.name.startswith((".", "dataset_"))]
    # A folder made for the hub says which of its files are for training.
    files = [file for file in files if "train" in file.relative_to(path).as_posix()] or files
    if len({KINDS[file.suffix] for file in files}) > 1:
        raise UserError(f"{path} holds data files of several kinds; give the one to train on.")
    if not files:
        raise UserError(f"The folder {path} holds no {kinds} file.")
    return files


def _digest(files: list[Path]) -> str:
    try:
        if sum(file.stat().st_size for file in files) > MOST_BYTES:
            raise UserError(f"The training data are larger than {MOST_BYTES >> 30} GiB; give fewer.")
        return files_hash(files)
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}).") from None


def pairs(name: str) -> list[Pair]:
    """All pairs of a pinned source, in its order; rows without an answer are left out.

    Raises UserError if the data can't be had, or have neither of the known columns. Not for builtin and demo.
    """
    repository = _HUB.fullmatch(name)
    if repository:
        patterns, title = [f"*{suffix}" for suffix in KINDS], f"The data set {repository['name']}"
        path = hub.snapshot(repository["name"], "dataset", repository["revision"], patterns, title=title)
    else:
        path = texts.path_of(name)
    rows = _rows(files_of(path), name)
    columns = rows.column_names
    if {"instruction", "output"} <= set(columns):
        result = [_instruction(row) for row in rows]
    elif "text" in columns:
        result = [Pair("", row["text"] or "") for row in rows]
    else:
        raise UserError(
            f"The training data {name} have the columns {', '.join(columns)}; "
            "they need instruction and output (and perhaps input), or text."
        )
    result = [pair for pair in result if pair.answer.strip()]
    if not result:
        raise UserError(f"The training data {name} have no row with an answer.")
    return result


def _instruction(row: dict[str, str | None]) -> Pair:
    context = row.get("input") or ""
    wording = WITH_INPUT if context else WITHOUT_INPUT
    return Pair(wording.format(instruction=row["instruction"] or "", input=context), row["output"] or "")


def _rows(files: list[Path], name: str):  # type: ignore[no-untyped-def]
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            KINDS[files[0].suffix],
            data_files=[str(file) for file in files],
            split="train",
            cache_dir=str(folders.home() / "datasets"),
        )
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise UserError(f"The training data {name} can't be read: {str(cause).splitlines()[0]}") from None


def builtin_text() -> str:
    return texts.read(texts.BUILTIN_CALIBRATION)
