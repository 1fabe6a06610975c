"""A run folder as one file: how runs travel between machines, to a shared data set, and to whoever downloads one.

A ZIP archive with the folder's files, the same bytes for the same folder. What comes from elsewhere was written by
others: names, sizes and content are checked before anything lies under the run's name.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError

from quant_engine import disk
from quant_engine.runs import folder
from quant_engine.runs.folder import RunFolder
from quant_engine.spec import UserError, quoted

MOST_BYTES = 512 * 2**20
"""The most that a run's files may have together, unpacked."""
_NAMES = re.compile(r"run\.json|results\.parquet|layers\.parquet|log\.txt|items/[A-Za-z0-9@._-]{1,250}\.parquet")
_DATE = (1980, 1, 1, 0, 0, 0)


def pack(path: Path) -> bytes:
    """The archive of the run folder at `path`. Raises UserError if it can't be read."""
    buffer = io.BytesIO()
    try:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(path.rglob("*")):
                name = file.relative_to(path).as_posix()
                if _NAMES.fullmatch(name):
                    archive.writestr(zipfile.ZipInfo(name, _DATE), file.read_bytes(), zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise UserError(f"Run {path.name} can't be read ({error.strerror}).") from None
    return buffer.getvalue()


def unpack(content: bytes, run_id: str, root: Path, more: Mapping[str, str] | None = None) -> Path:
    """Checks an archive and makes it the folder of run `run_id` in `root`, with the texts of further files in `more`;
    a folder that is there stays. Raises UserError for anything but a whole run of that id, and OSError."""
    path = root / folder.run_path(run_id).name
    if path.is_dir():
        return path
    with disk.replacing_folder(path) as aside:
        for name, data in _files(content, run_id).items():
            target = aside / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
        _check(aside, run_id)
        for name, text in (more or {}).items():
            (aside / name).write_text(text, encoding="utf-8")
    return path


def _files(content: bytes, run_id: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    left = MOST_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                if not _NAMES.fullmatch(entry.filename) or entry.filename in files:
                    raise UserError(f"The archive of run {run_id} holds {quoted(entry.filename)}, which no run has.")
                with archive.open(entry) as file:
                    data = file.read(left + 1)  # not what the archive says of its size
                left -= len(data)
                if left < 0:
                    raise UserError(f"The archive of run {run_id} is larger than {MOST_BYTES >> 20} MiB.")
                files[entry.filename] = data
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError):
        raise UserError(f"The archive of run {run_id} is damaged: fetch or make it again.") from None
    return files


def _check(aside: Path, run_id: str) -> RunFolder:
    """Reads everything once, as the page will."""
    run = folder.read(aside, run_id)
    if any(result.run_id != run_id or result.source != "measured" for result in run.results):
        raise UserError(f"Run {run_id} holds numbers of another run.")
    try:
        folder.read_layers(aside)
        for task in run.spec.tasks:
            folder.read_items(aside, task)
    except (OSError, ValueError, TypeError, KeyError, ValidationError, pa.ArrowException):
        raise UserError(f"Run {run_id} can't be read: its files are damaged.") from None
    return run
