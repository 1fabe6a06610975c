"""Results that several people and machines share: a data set on the hub with an archive for each run.

Named by LOWBIT_SHARED (OWNER/NAME); without it nothing is fetched or added. A run lies at `runs/WHO/RUN_ID.zip`, and
since a run never changes, whoever adds one can hurt nobody else's. What comes from there is checked like any file of
others (`archive.py`).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quant_engine import folders, hub
from quant_engine.evaluate import TASKS
from quant_engine.models.catalog import MODELS
from quant_engine.runs import archive, folder
from quant_engine.spec import RunSpec, UserError

logger = logging.getLogger(__name__)

_FILE = re.compile(r"runs/(?P<who>[A-Za-z0-9][A-Za-z0-9._-]{0,95})/(?P<run_id>[0-9a-f]{16})\.zip")


@dataclass(frozen=True)
class Exchange:
    """What one look at the data set brought: ids of runs, and a sentence for each that was refused."""

    fetched: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def repository() -> str | None:
    """The data set that results are shared in; None where they are not."""
    return os.environ.get("LOWBIT_SHARED") or None


def can_be_shared(spec: RunSpec) -> bool:
    """Whether others could make the run again: of a model, tasks and texts that have a name here and are no files."""
    weights = spec.weights
    texts = weights.calibration is None or weights.calibration.source in ("builtin", "pictures")
    values = [value for value in weights.setting.options.values() if isinstance(value, str)]
    named = weights.model in MODELS and weights.checkpoint is None and all(task in TASKS for task in spec.tasks)
    return named and texts and not any("/" in value for value in values)


def exchange(repo: str, should_stop: Callable[[], bool] = lambda: False) -> Exchange:
    """Fetches the runs that are not here, and adds those that were made here and are not there. Raises UserError where
    the data set can't be asked; what came before that stays."""
    files = [match for name in hub.listed(repo) if (match := _FILE.fullmatch(name))]
    fetched: list[str] = []
    refused: list[str] = []
    for file in sorted(files, key=lambda file: file.string):
        run_id = file["run_id"]
        if should_stop():
            break
        if (folders.shared() / run_id).is_dir() or folder.exists(run_id):
            continue
        try:
            content = hub.fetched(repo, file.string)
            more = {folder.SHARED: json.dumps({"by": file["who"], "repository": repo})}
            with folder.disk_errors(folders.shared()):
                archive.unpack(content, run_id, folders.shared(), more)
            fetched.append(run_id)
        except UserError as refusal:
            refused.append(f"{file.string}: {refusal}")
    there = {file["run_id"] for file in files}
    added = [path.name for path in own() if path.name not in there and not should_stop() and add(repo, path)]
    return Exchange(tuple(fetched), tuple(added), tuple(refused))


def own() -> list[Path]:
    """The folders of runs that were made on this machine; none where they can't be listed."""
    try:
        return sorted(path for path in folders.results().iterdir() if folder.RUN_ID.fullmatch(path.name))
    except OSError:
        return []


def add(repo: str, path: Path) -> bool:
    """Adds a run of this machine; False for one that others could not make again, or that can't be read."""
    try:
        run = folder.read(path)
        content = archive.pack(path)
    except UserError as refusal:
        logger.warning("%s", refusal)
        return False
    if not can_be_shared(run.spec):
        return False
    hub.add_file(repo, f"runs/{hub.user()}/{path.name}.zip", content)
    return True


def fetch(repo: str, run_id: str) -> Path | None:
    """The run as one that was made for this machine, in its results; None if the data set has no such run."""
    for name in hub.listed(repo):
        file = _FILE.fullmatch(name)
        if file and file["run_id"] == run_id:
            content = hub.fetched(repo, name)
            with folder.disk_errors(folders.results()):
                return archive.unpack(content, run_id, folders.results())
    return None
