"""Ways to damage a checkpoint: its bytes, what its tensors are said to be, its metadata, its files.

Where a file is taken apart to be damaged it is encoded again, so that all but what was damaged is whole. `chance` draws
what is hit.
"""

import copy
import json
import os
import re
import struct
from dataclasses import dataclass, replace

from formats import plain_gguf

from quant_engine.formats.gguf_header import TYPES, read_header

HUGE = (2**31, 2**40, 2**63, 2**64 - 1)
ODD_NAMES = (
    "",
    "extra",
    "two\nlines",
    "long" * 5000,
    "../x",
    "model.layers.99.mlp.up_proj.weight",
    "\u202e\x00",
    "é.b",
)
DTYPES = ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "I16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64")
DTYPES += ("C64", "F4", "F6_E2M3", "Q4", "")
NOT_FINITE = (b"\xff\xff\xff\xff", b"\x00\x7c\x00\x7c", b"\x00\x00\x80\x7f")
"""NaN in every type, infinity in float16 and in float32."""
VALUES = (
    None,
    True,
    "",
    "x",
    -1,
    0,
    1,
    3,
    2**31,
    2**40,
    2**63,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    [],
    {},
    [[1]],
)
VALUES += (["x"] * 3, {"a": {}}, "x" * 5000, "two\nlines")
FIELDS = ("", "x", "two\nlines", "x" * 5000, 0, 1, 3, 2**31, 2**32 - 1, 0.5, float("nan"), float("inf"), [], [1], ["x"])
FIELDS += ([[1]], [["x"], ["y"]], [[[0]]], ["x"] * 3000, [0.5] * 3000, [float("nan")] * 260)


@dataclass
class Tensor:
    """A tensor of a file: `dtype` as the file writes it; `start` is where it says that the data begin, if elsewhere."""

    name: str
    dtype: str | int
    shape: tuple
    data: bytes
    start: int | None = None
    end: int | None = None


# Bytes.


def cut(data, chance):
    return data[: chance.randrange(len(data))]


def flipped(data, chance):
    data, header = bytearray(data), min(len(data), 12000)
    for _ in range(chance.choice((1, 4, 64))):
        data[chance.randrange(header if chance.random() < 0.8 else len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def piece_lost(data, chance):
    start, size = chance.randrange(min(len(data), 12000)), chance.randrange(1, 64)
    return data[:start] + data[start + size :]


def piece_moved(data, chance):
    header = max(65, min(len(data), 12000))
    start, other = chance.randrange(header - 64), chance.randrange(header - 64)
    return data[:start] + data[other : other + 32] + data[start + 32 :]


def digit_changed(data, chance):
    digits = [place for place in range(min(len(data), 12000)) if chr(data[place]).isdigit()]
    data = bytearray(data)
    data[chance.choice(digits)] = ord(chance.choice("0123456789"))
    return bytes(data)


def count_changed(data, chance):
    """A length or count at the file's beginning, or any eight bytes of its header, stand for a large number."""
    start = chance.choice((0, 4, 8, 16, 24, 36)) if chance.random() < 0.5 else chance.randrange(min(len(data), 12000))
    return data[:start] + struct.pack("<Q", chance.choice(HUGE)) + data[start + 8 :]


BYTES = (cut, flipped, piece_lost, piece_moved, digit_changed, count_changed)


# What a file says of its tensors. Each takes the list of them and changes it.


def dimensions_exchanged(tensors, chance):
    tensor = chance.choice([t for t in tensors if len(t.shape) == 2 and t.shape[0] != t.shape[1]])
    tensor.shape = tensor.shape[::-1]


def shape_changed(tensors, chance):
    tensor = chance.choice(tensors)
    shapes = ((1, *tensor.shape), (*tensor.shape, 1), tensor.shape[1:], (*tensor.shape[:-1], 3), (1,) * 9)
    tensor.shape = chance.choice(shapes)


def names_exchanged(tensors, chance):
    first, second = chance.sample(tensors, 2)
    first.name, second.name = second.name, first.name


def type_changed(tensors, chance):
    tensor = chance.choice(tensors)
    tensor.dtype = chance.choice((*TYPES, 9, 12345)) if isinstance(tensor.dtype, int) else chance.choice(DTYPES)


def offset_changed(tensors, chance):
    """Data that overlap others', or begin before or behind the file's."""
    tensor, starts = chance.choice(tensors[1:]), (0, 32, 8, *HUGE)
    tensor.start = chance.choice(starts if isinstance(tensor.dtype, int) else (-32, *starts))
    tensor.end = tensor.start + chance.choice((len(tensor.data), 0, -1))


def dimension_huge(tensors, chance):
    tensor = chance.choice(tensors)
    place = chance.randrange(len(tensor.shape) or 1)
    huge = chance.choice(HUGE if isinstance(tensor.dtype, int) else (*HUGE, -1, 2**64, 1.5))
    tensor.shape = (*tensor.shape[:place], huge, *tensor.shape[place + 1 :])


def emptied(tensors, chance):
    tensor = chance.choice(tensors)
    tensor.shape, tensor.data = (0, *tensor.shape[1:]), b""


def missing(tensors, chance):
    tensors.remove(chance.choice(tensors))


def too_many(tensors, chance):
    tensors.insert(chance.randrange(len(tensors)), replace(chance.choice(tensors), name=chance.choice(ODD_NAMES)))


def twice(tensors, chance):
    """A name stands there twice, for data of its own or the same."""
    tensor = chance.choice(tensors)
    if isinstance(tensor.dtype, int) or chance.random() < 0.5:
        tensors.insert(chance.randrange(len(tensors)), replace(tensor))
        return
    start = sum(len(other.data) for other in tensors[: tensors.index(tensor)])
    tensors.append(replace(tensor, data=b"", start=start, end=start + len(tensor.data)))


def not_finite(tensors, chance):
    tensor = chance.choice([tensor for tensor in tensors if len(tensor.data) >= 64])
    start = chance.randrange(len(tensor.data) // 32) * 32
    tensor.data = tensor.data[:start] + chance.choice(NOT_FINITE) + tensor.data[start + 4 :]


TENSORS = (dimensions_exchanged, shape_changed, names_exchanged, type_changed, offset_changed, dimension_huge)
TENSORS += (emptied, missing, too_many, twice, not_finite)


def safetensors_of(data):
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    return [
        Tensor(name, about["dtype"], tuple(about["shape"]), body[slice(*about["data_offsets"])])
        for name, about in header.items()
    ]


def as_safetensors(tensors):
    entries, body = [], b""
    for tensor in tensors:
        start = len(body) if tensor.start is None else tensor.start
        body += tensor.data
        offsets = [start, len(body) if tensor.end is None else tensor.end]
        about = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        entries.append(f"{json.dumps(tensor.name)}:{json.dumps(about)}")  # a name may stand there twice
    header = ("{" + ",".join(entries) + "}").encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def gguf_of(path):
    """The fields and tensors of a file that plain_gguf wrote."""
    file, data = read_header(path), path.read_bytes()
    numbers = {name: number for number, (name, _, _) in TYPES.items()}
    return file.fields, [
        Tensor(name, numbers[tensor.type], tensor.shape, data[tensor.start : tensor.end])
        for name, tensor in file.tensors.items()
    ]


def as_gguf(fields, tensors):
    starts = {number: tensor.start for number, tensor in enumerate(tensors) if tensor.start is not None}
    return plain_gguf.file(fields, [(t.name, t.shape, t.dtype, t.data) for t in tensors], starts)


# JSON and metadata.


def value_changed(content, chance):
    """One value anywhere in a JSON object becomes another, or is gone. Returns the text."""
    content = copy.deepcopy(content)
    inside = content
    while True:
        key = chance.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        if not isinstance(inside[key], dict | list) or not inside[key] or chance.random() < 0.3:
            break
        inside = inside[key]
    if chance.random() < 0.15:
        del inside[key]
    else:
        inside[key] = chance.choice(VALUES)
    return json.dumps(content)


def field_changed(fields, chance):
    """One value of a GGUF file's metadata becomes another, of any type."""
    names = [name for name in fields if not re.search("architecture|alignment", name) or chance.random() < 0.2]
    names += ["tokenizer.ggml.scores", "tokenizer.chat_template", "tokenizer.ggml.pre", "general.alignment"]
    return fields | {chance.choice(names): chance.choice(FIELDS)}


def list_changed(fields, chance):
    """A list of the tokenizer gets longer, shorter, or has something else among its items."""
    name = chance.choice([name for name, value in fields.items() if isinstance(value, list) and value])
    values = list(fields[name])
    place = chance.randrange(len(values))
    change = chance.randrange(4)
    if change == 0:
        values = values[:place]
    elif change == 1:
        values += values[:1] * chance.choice((1, 1000))
    elif change == 2:
        values[place] = values[place - 1]
    else:
        values[place] = "two\nlines" if isinstance(values[place], str) else 2**31 - 1
    return fields | {name: values}


# Files.


def into_shards(folder, chance):
    """The weights in files that an index names, with something wrong in the index or a file missing."""
    tensors = safetensors_of((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    halves, names = (tensors[::2], tensors[1::2]), ("a.safetensors", "b.safetensors")
    for name, half in zip(names, halves, strict=True):
        (folder / name).write_bytes(as_safetensors(half))
    weight_map = {tensor.name: name for name, half in zip(names, halves, strict=True) for tensor in half}
    content, change = {"metadata": {"total_size": 1}, "weight_map": weight_map}, chance.randrange(5)
    text = json.dumps(content)
    if change == 0:
        (folder / chance.choice(names)).unlink()
    elif change == 1:  # outside of the folder
        outside = folder.parent / "outside.safetensors"
        outside.write_bytes((folder / "a.safetensors").read_bytes())
        name = chance.choice((f"../{outside.name}", str(outside), f"../{folder.name}/a.safetensors", "..", ""))
        text = json.dumps(content | {"weight_map": weight_map | {chance.choice(list(weight_map)): name}})
    elif change == 2:
        text = value_changed(content, chance)
    elif change == 3:
        text = chance.choice(BYTES)(text.encode(), chance).decode(errors="replace")
    else:
        (folder / "b.safetensors").write_bytes(as_safetensors(tensors))  # the first file's tensors twice
    (folder / "model.safetensors.index.json").write_text(text)


def file_replaced(path, chance):
    """Something else where a file should be: nothing in it, a link to nothing or itself, a folder, a pipe."""
    path.unlink()
    change = chance.randrange(5)
    if change == 0:
        path.write_bytes(b"")
    elif change == 1:
        path.symlink_to(path.with_name("nothing"))
    elif change == 2:
        path.symlink_to(path)
    elif change == 3:
        path.mkdir()
    else:
        os.mkfifo(path)


def _weights_file(path, kind, chance):
    if kind in BYTES:
        path.write_bytes(kind(path.read_bytes(), chance))
        return
    gguf = path.suffix == ".gguf"
    fields, tensors = gguf_of(path) if gguf else ({}, safetensors_of(path.read_bytes()))
    kind(tensors, chance)
    path.write_bytes(as_gguf(fields, tensors) if gguf else as_safetensors(tensors))


def _metadata(path, kind, chance):
    fields, tensors = gguf_of(path)
    path.write_bytes(as_gguf(kind(fields, chance), tensors))


def _json_file(path, kind, chance):
    if kind is value_changed:
        path.write_text(kind(json.loads(path.read_text()), chance))
    else:
        path.write_bytes(kind(path.read_bytes(), chance))


def kinds(path):
    """Every way to damage the checkpoint with the weights `path`, by name: functions of the folder and chance."""
    weights = {kind.__name__: (path.name, _weights_file, kind) for kind in (*BYTES, *TENSORS)}
    if path.suffix == ".gguf":
        others = {kind.__name__: (path.name, _metadata, kind) for kind in (field_changed, list_changed)}
        replaceable = (path.name,)
    else:
        others = {
            f"{name}: {kind.__name__}": (name, _json_file, kind)
            for name in ("config.json", "tokenizer.json")
            for kind in (value_changed, flipped)
        }
        replaceable = (path.name, "config.json", "tokenizer.json", "generation_config.json")
        others["into_shards"] = ("", lambda folder, kind, chance: kind(folder, chance), into_shards)
    others["file_replaced"] = (
        "",
        lambda folder, kind, chance: kind(folder / chance.choice(replaceable), chance),
        file_replaced,
    )
    return {
        name: lambda folder, chance, file=file, apply=apply, kind=kind: apply(folder / file, kind, chance)
        for name, (file, apply, kind) in (weights | others).items()
    }
