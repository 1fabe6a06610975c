"""Texts for calibration and perplexity: built in, or a file of one's own, pinned by the hash of its content.

Imports no torch: a run is checked before any model is loaded.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant_engine import folders
from quant_engine.data import files
from quant_engine.data.content import remembered
from quant_engine.deferred import deferred
from quant_engine.spec import Calibration, UserError

if TYPE_CHECKING:
    import torch as torch_types

torch = deferred("torch")

BUILTIN_CALIBRATION = folders.ASSETS / "text" / "calibration.txt"
BUILTIN_EVALUATION = folders.ASSETS / "text" / "evaluation.txt"
MOST_BYTES = 64 * 2**20
MOST_PATH = 370
"""Characters of a path: with a task's name before it and a hash behind it, it is an Identifier (quant_engine.spec)."""

PINNED = re.compile(r"(?P<path>.+)@(?P<digest>[0-9a-f]{12})", re.DOTALL)


def read(path: Path) -> str:
    """A text file's content. Raises UserError if it is missing, too large, empty, or not UTF-8."""
    try:
        with files.open_file(path) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"The text file {path} is larger than {MOST_BYTES >> 20} MiB; give a shorter one.")
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except FileNotFoundError:
        raise UserError(f"There is no text file {path}.") from None
    except (OSError, EOFError, ValueError, zlib.error):
        raise UserError(f"{path} can't be read as UTF-8 text.") from None
    if not text.strip():
        raise UserError(f"The text file {path} is empty.")
    if "\0" in text:
        raise UserError(f"{path} holds null characters, so it is no UTF-8 text: save it as UTF-8.")
    return text


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@remembered
def file_digest(path: Path) -> str:
    """The `digest` of the text in a file. Raises UserError as `read` does."""
    return digest(read(path))


def pin(name: str) -> str:
    """PATH as PATH@HASH, its absolute path with the hash of its content: the same name is always the same text.

    Raises UserError if the file can't be read, or is pinned already and has changed since.
    """
    return pin_path(name, file_digest, "The text file {} has")


def pin_path(name: str, hash_of: Callable[[Path], str], subject: str) -> str:
    """PATH, or PATH@HASH, as PATH@HASH. Raises UserError where `subject`, a part of its sentence, changed since."""
    pinned, file = PINNED.fullmatch(name), Path(name).expanduser()
    if pinned and file.exists() and not Path(pinned["path"]).expanduser().exists():
        pinned = None  # a file may be called so itself
    path = (Path(pinned["path"]).expanduser() if pinned else file).resolve()
    if len(str(path)) > MOST_PATH:
        raise UserError(f"The path {path} is longer than {MOST_PATH} characters: move it into a folder further up.")
    content_hash = hash_of(path)
    if pinned and pinned["digest"] != content_hash:
        raise UserError(f"{subject.format(path)} changed since this run was made; start a new run.")
    return f"{path}@{content_hash}"


def path_of(pinned: str) -> Path:
    return Path(pinned.rpartition("@")[0])


def calibration_windows(calibration: Calibration, tokenizer: Any) -> torch_types.Tensor:
    """Token ids [samples, length]: windows that start anywhere in the text, drawn with replacement.

    As the GPTQ reference draws them: uniform start from 0 to L - length - 1, Python's `random` with the seed. Raises
    UserError if the text is shorter than a window.
    """
    source = calibration.source
    text = read(BUILTIN_CALIBRATION if source == "builtin" else path_of(source))
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    last = len(ids) - calibration.length - 1
    if last < 0:
        raise UserError(
            f"The calibration text has {len(ids)} tokens, too few for windows of {calibration.length}; "
            "give a longer text or a smaller length."
        )
    generator = random.Random(calibration.seed)
    starts = [generator.randint(0, last) for _ in range(calibration.samples)]
    return torch.stack([ids[start : start + calibration.length] for start in starts])
