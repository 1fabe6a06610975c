"""What is in a file, found again only when the file has changed: a page asks it with every click."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

RECENT_S = 2.0
"""A file that changed so lately may change again and have the same times: nothing of it is remembered."""

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
        if time.time() - max(stat.st_mtime, stat.st_ctime) < RECENT_S:
            return find(path)
        return of_version(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    return of_file


@remembered
def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(paths: list[Path]) -> str:
    """12 hex digits that identify the bytes of files in their order. Raises OSError if one can't be read."""
    total = hashlib.sha256()
    for path in paths:
        total.update(bytes.fromhex(_file_hash(path)))
    return total.hexdigest()[:12]
