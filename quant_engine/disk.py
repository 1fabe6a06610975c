"""Write files and folders so that no moment leaves half of one under its name: aside, synced, then renamed.

Raises OSError as the system does; callers say which folder to free or to make writable.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write to, which takes its place when the block ends well and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".part")
    os.close(descriptor)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)  # temporary files are for one user only
        sync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, body: object) -> None:
    write_text(path, json.dumps(body, indent=1) + "\n")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to fill, which takes its place when the block ends well and vanishes otherwise.

    An older folder is away only between two renames, and never half there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield aside
        aside.chmod(0o755)
        for inner in aside.rglob("*"):
            sync(inner)
        sync(aside)
        if path.exists():
            old = aside.with_name(f"{aside.name}-old")
            path.rename(old)
            try:
                aside.rename(path)
            except BaseException:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there: renamed first, so that no moment shows half of it."""
    if path.exists():
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
        path.rename(aside)
        shutil.rmtree(aside)


def remove_left_overs(path: Path) -> None:
    """Remove what killed writers of the folder `path` left. Only for a caller that keeps other writers away."""
    for left_over in path.parent.glob(f".{path.name}-{'?' * 8}*"):
        if left_over.name.removesuffix("-old")[:-8] == f".{path.name}-":
            shutil.rmtree(left_over, ignore_errors=True)


def sync(path: Path) -> None:
    """Waits until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
