"""Finished items of a task that is still being measured, so that an interrupted evaluation goes on at the next item.

One file of JSON lines for each task of a run: the first line says what the items belong to, each other one is an item.
A crash may cut off the last line; it is dropped when the file is opened again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from quant_engine import __version__, disk, folders
from quant_engine.evaluate.task import FinishedItems
from quant_engine.results import ItemOutput
from quant_engine.runs import folder


class FinishedItemsFile(FinishedItems):
    """The file of one task. `items` are the finished ones by id, `earlier_count` those of an earlier try."""

    def __init__(self, run_id: str, task: str) -> None:
        self.earlier_count = 0
        self.items: dict[str, ItemOutput] = {}
        self._path = _folder(run_id) / f"{folder.file_name(task)}.jsonl"

    def open(self, revision: str) -> dict[str, ItemOutput]:
        head = json.dumps({"data": revision, "engine": __version__}) + "\n"
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        valid_lines, items = [head], {}
        if text.startswith(head):
            for line in text[len(head) :].splitlines(keepends=True):
                output = _parse(line)
                if output is None:
                    break
                valid_lines.append(line)
                items[output.item] = output
        if text != "".join(valid_lines):
            disk.write_text(self._path, "".join(valid_lines))
        self.earlier_count = len(items)
        self.items = dict(items)
        return items

    def add(self, outputs: Sequence[ItemOutput]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            # pydantic's own writer has no NaN
            file.writelines(json.dumps(output.model_dump()) + "\n" for output in outputs)
        self.items.update((output.item, output) for output in outputs)


def remove(run_id: str) -> None:
    """Removes the finished items of a run, whose folder holds everything now."""
    shutil.rmtree(_folder(run_id), ignore_errors=True)


def _folder(run_id: str) -> Path:
    return folders.home() / "evaluations" / run_id


def _parse(line: str) -> ItemOutput | None:
    """The item of a line; None for one that was cut off."""
    if not line.endswith("\n"):
        return None
    try:
        return ItemOutput(**json.loads(line))
    except (ValueError, TypeError, ValidationError):
        return None
