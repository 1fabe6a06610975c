"""Finished items of a task that is still being measured, so that an interrupted evaluation goes on at the next item.

One file of JSON lines for each task of a run: the first line says what the items belong to, each other one is an item.
A line that a crash has cut off ends the file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from quant_engine import __version__, folders
from quant_engine.evaluate.task import Kept
from quant_engine.results import ItemOutput
from quant_engine.runs import folder


class KeptItems(Kept):
    """The file of one task. `found` is the number of items that an earlier try has finished."""

    def __init__(self, run_id: str, task: str) -> None:
        self.found = 0
        self._path = _place(run_id) / f"{folder.file_name(task)}.jsonl"

    def open(self, revision: str) -> dict[str, ItemOutput]:
        head = json.dumps({"data": revision, "engine": __version__})
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1] if self._path.exists() else []
        finished = _items(lines[1:]) if lines and lines[0] == head else []
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(f"{line}\n" for line in [head, *map(_line, finished)]), encoding="utf-8")
        self.found = len(finished)
        return {output.item: output for output in finished}

    def add(self, outputs: Iterable[ItemOutput]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{_line(output)}\n" for output in outputs)


def forget(run_id: str) -> None:
    """Removes what was kept of a run: its folder holds everything now."""
    shutil.rmtree(_place(run_id), ignore_errors=True)


def _place(run_id: str) -> Path:
    return folders.home() / "evaluations" / run_id


def _line(output: ItemOutput) -> str:
    return json.dumps(output.model_dump())  # pydantic's own writer has no NaN


def _items(lines: list[str]) -> list[ItemOutput]:
    items = []
    for line in lines:
        try:
            items.append(ItemOutput(**json.loads(line)))
        except (ValueError, TypeError, ValidationError):
            break
    return items
