"""Text and JSON files as others write them: UTF-8 with or without a byte order mark, compressed (gzip) or not, lines
that end in LF or CRLF, rows as an object in each line or as one list. Imports no torch.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from quant_engine.models.check import LFS_POINTER
from quant_engine.spec import UserError

_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_ROWS = "write one object in each line, or one list of objects"


def open_file(path: Path) -> IO[bytes]:
    """A file's content, uncompressed.

    Raises UserError for what can't be it (a Git LFS pointer, UTF-16), OSError if the file can't be opened.
    """
    with path.open("rb") as file:
        head = file.read(len(LFS_POINTER))
    if head == LFS_POINTER:
        raise UserError(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull, or fetch the file again.")
    if head.startswith(_UTF16):
        raise UserError(f"{path} is UTF-16 text: save it as UTF-8.")
    return gzip.open(path) if head.startswith(_GZIP) else path.open("rb")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1. A line ends at a newline, and at no other character.

    Raises UserError for a file that can't be read, is damaged, or is not UTF-8.
    """
    number = 0
    try:
        with open_file(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}, line {number} is not UTF-8 text: save the file as UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is cut off or damaged"
        raise UserError(f"{path} can't be read ({reason}): fetch it again.") from None


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSON file, each behind what it is called: "line 3", or "row 3" of a list.

    Numbers are their text, as written; NaN, which Python writes where a value is missing, is None. Raises UserError for
    a file that can't be read and for what is no row, with its number.
    """
    filled = ((number, line) for number, line in lines(path) if line.strip())
    number, first = next(filled, (1, ""))
    if first.lstrip().startswith("["):
        values = _parsed("".join([first, *(line for _, line in filled)]), f"{path} begins as a list and is no JSON")
        named = ((f"row {index}", value) for index, value in enumerate(values, 1))
    else:
        numbered = itertools.chain([(number, first)] if first else [], filled)
        named = (
            (f"line {number}", _parsed(line, f"{path}, line {number} is no JSON object")) for number, line in numbered
        )
    for name, value in named:
        if not isinstance(value, dict):
            raise UserError(f"{path}, {name} is no JSON object: {_ROWS}.")
        yield name, value


def _parsed(text: str, refusal: str) -> Any:
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "nested too deeply"
        raise UserError(f"{refusal} ({reason}): {_ROWS}.") from None
