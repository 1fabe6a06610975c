"""Pictures: a visitor's, checked and decoded defensively and stored small in a clean file of our own; an item's."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from quant_engine.answers.examples import read_examples
from quant_engine.data.open_picture import open_picture
from quant_engine.evaluate import VisualQuestions, parse_result_name
from quant_engine.runs.folder import RunFolder
from quant_engine.spec import UserError, quoted

LONGEST_SIDE = 1600  # LLaVA-NeXT looks at 1344 pixels at most
PREVIEW_SIDE = 960
ITEM_SIDE = 480
_PREFIX = "lowbit-picture-"


def accept(upload: Path) -> Path:
    """A clean PNG of an uploaded picture: upright RGB, no side longer than LONGEST_SIDE, nothing of the original file.

    Raises UserError, one sentence, for what is no picture, too large, or damaged, and where it can't be stored.
    """
    picture = open_picture(upload)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    folder = tempfile.gettempdir()
    file = None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_PREFIX, suffix=".png", delete=False) as file:
            picture.save(file, "PNG")
    except OSError:
        if file:
            Path(file.name).unlink(missing_ok=True)
        raise UserError(
            f"The picture can't be stored: {folder}, for temporary files, is full or not writable."
        ) from None
    return Path(file.name)


@contextmanager
def given(text: str) -> Iterator[str]:
    """The file of a picture that a program gives: in base64, as a data: address, or as example:NUMBER. Raises UserError
    for what is none."""
    kind, _, number = text.strip().partition(":")
    if kind == "example":
        examples = read_examples()
        if not (number.isdecimal() and 0 < int(number) <= len(examples)):
            raise UserError(f"The examples are example:1 to example:{len(examples)}, not {quoted(text)}.")
        yield str(examples[int(number) - 1].picture)
        return
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        file = Path(folder) / "picture"
        try:
            file.write_bytes(base64.b64decode(text.rpartition(",")[2], validate=True))
        except ValueError:
            raise UserError("picture is no base64: give a picture's file in base64, or example:1.") from None
        accepted = accept(file)
    try:
        yield str(accepted)
    finally:
        forget(str(accepted))


def discard(upload: Path) -> None:
    """Deletes an uploaded file that was looked at, and the folder that it came into, which holds nothing else."""
    with suppress(OSError):
        upload.unlink()
        upload.parent.rmdir()


def forget(picture: str | None) -> None:
    """Deletes a picture that `accept` made; does nothing to any other file."""
    path = Path(picture) if picture else None
    if path and path.name.startswith(_PREFIX) and path.parent == Path(tempfile.gettempdir()):
        path.unlink(missing_ok=True)


def preview(picture: Path, side: int = PREVIEW_SIDE) -> str:
    """The picture as a data: address, small enough to send."""
    with Image.open(picture) as image:
        return address(image, side)


def picture_of_item(run: RunFolder, name: str, item: str) -> str:
    """The picture of an item of a run's task as a data: address. Raises UserError if it can't be had."""
    task, _ = parse_result_name(name) or (None, "")
    revision = next((result.data_revision for result in run.results if result.task == name), None)
    if revision is None or not isinstance(task, VisualQuestions):
        raise UserError(f"{name} is no picture task of run {run.path.name}.")
    return address(task.picture_of(item, revision), ITEM_SIDE)


def address(picture: Image.Image, side: int) -> str:
    """A picture as a data: address, no side longer than `side`."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
