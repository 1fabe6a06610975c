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
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from pydantic import ValidationError, create_model

from quant_engine import folders, hub
from quant_engine.data import files
from quant_engine.data.content import files_hash, remembered
from quant_engine.data.picture_metadata import upright
from quant_engine.data.row import AnyText, Row, problem, shortened
from quant_engine.deferred import deferred
from quant_engine.spec import UserError, digest

datasets = deferred("datasets")
compute, parquet = deferred("pyarrow.compute"), deferred("pyarrow.parquet")

Item = TypeVar("Item")

CONVERTED = "refs/convert/parquet"
"""The hub's own parquet copy of a set that is otherwise a script."""
PICTURE = "image"
"""The field of a row's picture: the picture itself in parquet, its file's name in JSON."""


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
    """The rows of a split. `revision` identifies their content.

    `table` is a list of rows, or a data set whose pictures are read as they are asked for. `names` is what each row is
    called in its file.
    """

    def __init__(self, title: str, table: Any, names: list[str], folder: Path, revision: str) -> None:
        self._title, self._table, self._names, self._folder = title, table, names, folder
        self.revision = revision

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._table[index]

    def texts(self, field: str) -> list[str]:
        """A field of each row, which may be empty. Raises UserError where it is missing or no text."""
        model = create_model("TextRow", __base__=Row, **{field: (AnyText, ...)})
        return self.read(lambda row, _: getattr(model.model_validate(row), field))

    def read(self, make: Callable[[dict[str, Any], int], Item]) -> list[Item]:
        """What `make` makes of each row, without its picture, and its index.

        Raises UserError, which names row and field, where `make` raises ValueError (a pydantic error is such).
        """
        rows = self._table
        if not isinstance(rows, list):
            rows = rows.remove_columns(_picture_columns(rows)).to_list()
        items = []
        for index, row in enumerate(rows):
            try:
                items.append(make(row, index))
            except ValidationError as error:
                raise self.error(index, problem(error)) from None
            except ValueError as error:
                raise self.error(index, str(error)) from None
        return items

    def error(self, index: int, what: str) -> UserError:
        """The sentence that says what is wrong with a row."""
        return UserError(f"{self._title}, {self._names[index]}: {what}.")

    def check_unique(self, field: str, ids: Sequence[str]) -> None:
        """Raises UserError where two rows have the same id: one would be measured for both."""
        first: dict[str, int] = {}
        for index, row_id in enumerate(ids):
            if first.setdefault(row_id, index) != index:
                other = self._names[first[row_id]]
                raise self.error(index, f"{field} is {shortened(row_id)}, as in {other}: remove one of the two")

    def check_pictures(self) -> None:
        """Raises UserError for the first row without a picture. None is decoded, so thousands take no time."""
        for index, (name, size) in enumerate(self._pictures()):
            if size:
                continue
            if not name:
                raise self.error(index, f"{PICTURE} is missing")
            try:
                Image.open(self._folder / name).close()
            except Exception:  # Pillow's readers raise anything on what is no picture
                raise self.error(index, f"{PICTURE} names {shortened(name)}, which is no picture here") from None

    def _pictures(self) -> Iterator[tuple[str | None, int | None]]:
        """The file name of each row's picture, and the number of its bytes in the row itself."""
        if isinstance(self._table, list):
            return ((_file_name(row), None) for row in self._table)
        if PICTURE not in self._table.column_names:
            return ((None, None) for _ in self._names)
        column = self._table.data.column(PICTURE)
        names, content = (compute.struct_field(column, name) for name in ("path", "bytes"))
        return zip(names.to_pylist(), compute.binary_length(content).to_pylist(), strict=True)

    def picture_id(self, index: int) -> Hashable:
        """What rows with the same picture have in common: the name of its file, or the hash of what the row holds."""
        row = self[index]
        if isinstance(self._table, list):
            return _file_name(row) or index
        stored = row.get(PICTURE) or {}
        content = stored.get("bytes")
        return hashlib.sha256(content).digest() if content else stored.get("path") or index

    def picture(self, index: int) -> Image.Image:
        """The picture of a row, in RGB and upright, as lmms-eval gets it from `datasets`, which turns pictures as their
        EXIF says and leaves transparent parts to convert("RGB").

        It is stored in the row or in a file beside it. Raises UserError if it is missing or damaged.
        """
        row = self[index]
        stored = {"path": _file_name(row)} if isinstance(self._table, list) else row.get(PICTURE) or {}
        name, content = stored.get("path"), stored.get("bytes")
        try:
            with Image.open(io.BytesIO(content) if content else self._folder / (name or "")) as image:
                return upright(image).convert("RGB")
        except Exception:  # decoders raise anything on damaged files
            raise UserError(f"The picture of item {index} ({name}) is missing or damaged: fetch it again.") from None


def _file_name(row: dict[str, Any]) -> str | None:
    name = row.get(PICTURE)
    return name if isinstance(name, str) else None


def revision(source: Source, title: str) -> str:
    """What identifies the content of a source's rows, without fetching them: a hash of local files, and of the pictures
    beside them that their rows name; or a commit.

    Raises UserError, one sentence, where neither is to be had.
    """
    paths = local_files(source, folders.data())
    if not paths:
        commit = hub.commit(
            source.repo, "dataset", source.revision, title=_hub_title(title), instead=_put_into_a_folder(source)
        )
        return f"{source.repo}@{commit}"
    try:
        pictures = [] if paths[0].suffix == ".parquet" else [file for path in paths for file in _named_pictures(path)]
        return f"{paths[0].name} sha256:{files_hash([*paths, *pictures])}"
    except UserError as error:
        raise UserError(f"{title}: {error}") from None
    except OSError as error:
        raise UserError(f"{title}: {error.filename} can't be read ({error.strerror}).") from None


def _named_pictures(path: Path) -> list[Path]:
    """The pictures that are there of those that the rows of a JSON file name."""
    return [picture for name in _picture_names(path) if (picture := path.parent / name).is_file()]


@remembered
def _picture_names(path: Path) -> list[str]:
    return sorted({name for _, row in files.json_rows(path) if (name := _file_name(row))})


def load(source: Source, title: str) -> Rows:
    """The rows of a source, of its revision now. Raises UserError, one sentence, where they can't be had or read."""
    return _load(source, title, folders.data(), revision(source, title))


@functools.lru_cache(maxsize=8)
def _load(source: Source, title: str, folder: Path | None, revision: str) -> Rows:
    paths = local_files(source, folder)
    if paths:
        return _rows(paths, title, paths[0].parent, revision)
    root = fetch(replace(source, revision=revision.rpartition("@")[2]), title)
    return _rows(sorted(root.glob(source.files)), title, root, revision)


def stored(source: Source, title: str, revision: str) -> Rows:
    """The rows of a revision that is on this machine, without asking the hub. Raises UserError if it is not there."""
    rows = load(source, title) if local_files(source, folders.data()) else _cached(source, title, revision)
    if rows.revision != revision:
        raise UserError(f"The items of {title} on this machine are not those of this run ({revision}).")
    return rows


@functools.lru_cache(maxsize=8)
def _cached(source: Source, title: str, revision: str) -> Rows:
    root = hub.find_cached(source.repo, "dataset", revision.rpartition("@")[2], [source.files])
    if root is None:
        raise UserError(f"The items of {title} are not on this machine (any more).")
    return _rows(sorted(root.glob(source.files)), title, root, f"{source.repo}@{root.name}")


def local_files(source: Source, folder: Path | None) -> list[Path]:
    """The files of a source in the local folder; empty if it has none."""
    if folder is None:
        return []
    if not folder.is_dir():
        raise UserError(
            f"LOWBIT_DATA is {folder}, which is no folder: set it to one with benchmark files, or unset it."
        )
    own = [path for suffix in ("", ".gz") for path in sorted(folder.glob(source.short + suffix))][:1]
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
        title=_hub_title(title),
        instead=_put_into_a_folder(source),
    )


def _hub_title(title: str) -> str:
    return f"The data set of {title}"


def _put_into_a_folder(source: Source) -> str:
    return f"put {source.short} into a folder and set LOWBIT_DATA to that folder"


def _rows(paths: list[Path], title: str, folder: Path, revision: str) -> Rows:
    """The rows of files of one kind. Raises UserError where they can't be read, or are none."""
    label = paths[0].name if len(paths) == 1 else f"the {len(paths)} files in {paths[0].parent}"
    try:
        if paths[0].suffix == ".parquet":
            table = _parquet(paths, revision)
            names = [f"row {number} of {label}" for number in range(1, len(table) + 1)]
        else:
            named_rows = [(f"{name} of {path.name}", row) for path in paths for name, row in files.json_rows(path)]
            names, table = [name for name, _ in named_rows], [row for _, row in named_rows]
    except UserError as error:
        raise UserError(f"{title}: {error}") from None
    if not names:
        raise UserError(f"{title}: {paths[0]} holds no rows: fetch it again.")
    return Rows(title, table, names, folder, revision)


def _parquet(paths: list[Path], revision: str) -> Any:
    """A data set, read from disk as it is needed. Raises UserError where it can't be read."""
    version = digest(revision)  # without it, other rows in a file of the same name and time would be the cached ones
    datasets.disable_progress_bars()
    try:
        for path in paths:
            files.open_file(path).close()
            parquet.read_schema(path)  # `datasets` would write lines about what it can't read
        table = datasets.load_dataset("parquet", version, data_files=[str(path) for path in paths], split="train")
        for name in {*_picture_columns(table), PICTURE} & set(table.column_names):
            table = table.cast_column(name, datasets.Image(decode=False))
        table.data.validate(full=True)  # of texts in parquet nobody else checks that they are UTF-8
    except UserError:
        raise
    except Exception as error:  # broken metadata make `datasets` raise anything
        raise UserError(f"{paths[0]} can't be read ({type(error).__name__}): fetch it again.") from None
    return table


def _picture_columns(table: Any) -> list[str]:
    return [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
