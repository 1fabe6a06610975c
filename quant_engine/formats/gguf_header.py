"""The header of a GGUF file: its metadata and where its tensors lie. Loads no torch.

    "GGUF", version uint32 (2 or 3), tensors uint64, fields uint64
    each field    name, type uint32, value
    each tensor   name, dimensions uint32, that many uint64 (the shortest stride first), type uint32, offset uint64
    data          from the next multiple of general.alignment (32) on; offsets count from there

Everything is little-endian; a text is a uint64 length and UTF-8. Nothing is believed that the file's size contradicts.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant_engine.spec import UserError, quoted

TYPES = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    20: ("iq4_nl", 32, 18),
    30: ("bf16", 1, 2),
}
"""Of each tensor type that is read: its name, the columns of a block, and the bytes of a block."""
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 100
"""Bytes of a tensor's name; llama.cpp has room for 64."""
LONGEST_HEADER, MOST_ITEMS = 2**26, 2**21
"""Bytes of a header, and items of all its lists: several times those of the largest vocabulary, and little memory."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a file: its `shape` as PyTorch orders dimensions, and its bytes, from `start` to `end`."""

    type: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class GgufFile:
    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Reader:
    """Reads a file's bytes in order. Raises ValueError where they end too early or can't be what they should be."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.items = data, 0, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError("it is cut off")
        if self.at + count > LONGEST_HEADER:
            raise ValueError(f"its header takes more than {LONGEST_HEADER >> 20} MiB")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"a field has the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        self.items += count
        if count > len(self.data):
            raise ValueError("a list is cut off")
        if self.items > MOST_ITEMS:
            raise ValueError(f"its lists have more than {MOST_ITEMS:,} items")
        if kind in _NUMBERS:
            code = f"<{count}{_NUMBERS[kind]}"
            return list(struct.unpack(code, self.take(struct.calcsize(code))))
        if kind != _TEXT:
            raise ValueError(f"a list has items of the type {kind}, which is not read here")
        return [self.text() for _ in range(count)]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of the next tensor."""
        name, count = self.text(), self.number("I")
        if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ValueError(f"a tensor has the name {quoted(name)}")
        if not 1 <= count <= _MOST_DIMENSIONS:
            raise ValueError(f"{name} has {count} dimensions")
        shape = tuple(self.number("Q") for _ in range(count))[::-1]
        return name, shape, self.number("I"), self.number("Q")


def read_header(path: Path) -> GgufFile:
    """Raises UserError, one sentence, for a file that is damaged, or has tensors of a type that is not read."""
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            fields, tensors = _read(_Reader(data))
    except (OSError, ValueError, struct.error, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"The GGUF file {path} can't be read ({reason}): fetch it again, or give another file."
        ) from None
    return GgufFile(path, fields, tensors)


def _read(reader: _Reader) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    if reader.take(4) != b"GGUF":
        raise ValueError("it does not begin as one")
    version, tensors, count = reader.number("I"), reader.number("Q"), reader.number("Q")
    if version not in _VERSIONS:
        raise ValueError(f"it has version {version}, where {' or '.join(map(str, _VERSIONS))} is read")
    fields: dict[str, Any] = {}
    for _ in range(count):
        name, kind = reader.text(), reader.number("I")
        if name in fields:
            raise ValueError(f"the field {quoted(name)} is there twice")
        fields[name] = reader.value(kind)
    described = [reader.tensor() for _ in range(tensors)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= len(reader.data):
        raise ValueError(f"the alignment is {quoted(alignment)}")
    begin = -(-reader.at // alignment) * alignment
    return fields, _located(described, begin, len(reader.data))


def _located(described: list[tuple[str, tuple[int, ...], int, int]], begin: int, size: int) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in described:
        if kind not in TYPES:
            raise ValueError(f"{name} has the type {kind}, which is not read here")
        type_name, columns, bytes_of_block = TYPES[kind]
        if name in tensors:
            raise ValueError(f"the tensor {name} is there twice")
        if 0 in shape or shape[-1] % columns:
            raise ValueError(f"{name} {list(shape)} is not whole blocks of {columns}")
        end = begin + offset + math.prod(shape) // columns * bytes_of_block
        if end > size:
            raise ValueError(f"{name} {list(shape)} ends behind the file")
        tensors[name] = GgufTensor(type_name, shape, begin + offset, end)
    last, last_end = "", 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start < last_end:
            raise ValueError(f"{name} lies where {last} does")
        last, last_end = name, tensor.end
    return tensors
