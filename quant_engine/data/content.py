"""What is in a file, found again only when the file has changed: a page asks it with every click."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from quant_engine import disk, folders
from quant_engine.spec import digest

RECENT_S = 2.0
"""A file that changed so lately may change again and have the same times: nothing of it is remembered."""
LARGE = 2**26
"""Bytes of a file whose hash is remembered on disk: it takes a second for each GB or two."""

Found = TypeVar("Found")


def remembered(find: Callable[[Path], Found]) -> Callable[[Path], Found]:
    """`find`, called again for a file only when it is another file, or its size or times are others."""

    @functools.lru_cache(maxsize=1 << 15)
    def of_version(path: Path, *_version: int) -> Found:
        return find(path)

    @functools.wraps(find)
    def of_file(path: Path) -> Found:
        try:
            stat = path.stat()
        except OSError:
            return find(path)  # and let it say what is wrong
        if _is_recent(stat):
            return find(path)
        return of_version(path, *_version(stat))

    return of_file


def _is_recent(stat: os.stat_result) -> bool:
    return time.time() - max(stat.st_mtime, stat.st_ctime) < RECENT_S


def _version(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@remembered
def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes in hex digits; that of a large file is remembered on disk, for other processes.
    Raises OSError if the file can't be read."""
    stat = path.stat()
    memory = folders.home() / "hashes" / f"{digest(str(path.resolve()))}.json"
    if stat.st_size >= LARGE:
        with contextlib.suppress(OSError, ValueError, TypeError):
            version, found = json.loads(memory.read_text(encoding="utf-8"))
            if version == [*_version(stat)]:
                return found
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if stat.st_size >= LARGE and not _is_recent(stat):
        with contextlib.suppress(OSError):
            disk.write_json(memory, [_version(stat), found])
    return found


def files_hash(paths: list[Path]) -> str:
    """12 hex digits that identify the bytes of files in their order. Raises OSError if one can't be read."""
    total = hashlib.sha256()
    for path in paths:
        total.update(bytes.fromhex(file_hash(path)))
    return total.hexdigest()[:12]
