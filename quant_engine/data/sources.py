"""Rows of published data sets, in their native fields: from a local folder, or from the Hugging Face Hub.

The folder that LOWBIT_DATA names comes first. A set lies there under its short name (`piqa_val.jsonl.gz`), or as the
hub's own files in a folder with the repository's name (`hf download --repo-type dataset REPO --local-dir REPO`). The
hub is asked for the files of one split at a pinned commit, and its cache serves them again without a network. No code
of a data set is ever run. Imports neither torch nor `datasets` before rows are asked for.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from quant_engine import folders, hub
from quant_engine.data.picture_metadata import upright
from quant_engine.deferred import deferred
from quant_engine.spec import UserError

datasets = deferred("datasets")

CONVERTED = "refs/convert/parquet"
"""The hub's own parquet copy of a set that is otherwise a script."""


@dataclass(frozen=True)
class Source:
    """Where the rows of one split are.

    `files` is a glob of the split's files in `repo`. `revision` is the commit that they are taken from; a branch is
    followed, and the commit it stood at is recorded. `short` is the name of the split's file in a local folder, which
    may be compressed (.gz).
    """

    repo: str
    files: str
    short: str
    revision: str = "main"


class Rows:
    """The rows of a split, read as they are asked for. `revision` identifies their content."""

    def __init__(self, table: Any, folder: Path, revision: str) -> None:
        self._table, self._folder, self.revision = table, folder, revision

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._table[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def column(self, name: str) -> list[Any]:
        """One field of every row, without reading the others."""
        return list(self._table[name])

    @property
    def fields(self) -> list[str]:
        return self._table.column_names

    def picture(self, index: int, field: str = "image") -> Image.Image:
        """The picture of a row, in RGB and upright, as lmms-eval gets it from `datasets`, which turns pictures as their
        EXIF says and leaves transparent parts to convert("RGB").

        It is stored in the row or in a file beside it. Raises UserError if it is missing or damaged.
        """
        stored = self[index][field]
        name = stored if isinstance(stored, str) else (stored or {}).get("path")
        content = None if isinstance(stored, str) else (stored or {}).get("bytes")
        try:
            with Image.open(io.BytesIO(content) if content else self._folder / (name or "")) as image:
                return upright(image).convert("RGB")
        except Exception:  # decoders raise anything on damaged files
            raise UserError(f"The picture of item {index} ({name}) is missing or damaged: fetch it again.") from None


def load(source: Source, title: str) -> Rows:
    """The rows of a source. Raises UserError, one sentence, where they can't be had or read."""
    return _load(source, title, folders.data())


@functools.lru_cache(maxsize=8)
def _load(source: Source, title: str, folder: Path | None) -> Rows:
    paths = local_files(source, folder)
    if paths:
        return Rows(_table(paths, title), paths[0].parent, f"{paths[0].name} sha256:{_digest(paths)}")
    root = fetch(source, title)
    return Rows(_table(sorted(root.glob(source.files)), title), root, f"{source.repo}@{root.name}")


def stored(source: Source, title: str, revision: str) -> Rows:
    """The rows of a revision that is on this machine, without asking the hub. Raises UserError if it is not there."""
    folder = folders.data()
    rows = _load(source, title, folder) if local_files(source, folder) else _cached(source, title, revision)
    if rows.revision != revision:
        raise UserError(f"The items of {title} on this machine are not those of this run ({revision}).")
    return rows


@functools.lru_cache(maxsize=8)
def _cached(source: Source, title: str, revision: str) -> Rows:
    root = hub.find_cached(source.repo, "dataset", revision.rpartition("@")[2], [source.files])
    if root is None:
        raise UserError(f"The items of {title} are not on this machine (any more).")
    return Rows(_table(sorted(root.glob(source.files)), title), root, f"{source.repo}@{root.name}")


def local_files(source: Source, folder: Path | None) -> list[Path]:
    """The files of a source in the local folder; empty if it has none."""
    if folder is None:
        return []
    if not folder.is_dir():
        raise UserError(
            f"LOWBIT_DATA is {folder}, which is no folder: set it to one with benchmark files, or unset it."
        )
    own = sorted(folder.glob(f"{source.short}*"))[:1]
    return own or sorted((folder / source.repo).glob(source.files))


def fetch(source: Source, title: str) -> Path:
    """The folder with a source's files from the hub, or from its cache where there is no network.

    Its name is the commit. Raises UserError, naming both ways to get the files.
    """
    return hub.snapshot(
        source.repo,
        "dataset",
        source.revision,
        [source.files],
        title=f"The data set of {title}",
        instead=f"put {source.short} into a folder and set LOWBIT_DATA to that folder",
    )


def _table(paths: list[Path], title: str) -> Any:
    kind = "parquet" if paths[0].suffix == ".parquet" else "json"
    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(kind, data_files=[str(path) for path in paths], split="train")
    except (datasets.exceptions.DatasetGenerationError, StopIteration, ValueError, OSError) as error:
        raise UserError(f"{title}: {paths[0]} can't be read ({type(error).__name__}): fetch it again.") from None
    if not len(table):
        raise UserError(f"{title}: {paths[0]} holds no rows: fetch it again.")
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:12]
