"""Grouped integer weights on the CPU: multiply one activation row straight from the packed words, and dequantize.

For a row of weights with scale s and zero z per group, and an input x:

    y = sum over groups of s * ( sum of code_j x_j  -  z * sum of x_j )

Codes come in blocks of 32, which fill exactly b words (weights/packing.py). One vector lane takes one block: the words
of a row are laid out lane by lane in a small buffer, and then code j of all blocks is cut out with one shift and one
mask and multiplied with x_j of all blocks. The shifts are constants, since a function is compiled for each width.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
from functools import cache
from pathlib import Path
from textwrap import indent
from types import ModuleType

import numpy as np
import torch
from numba import njit, prange

from quant_engine import disk, folders
from quant_engine.weights.grouped import GroupedInt

BLOCK = 32
LANES = 8
ROWS_AT_ONCE = 16

FLOAT16 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""The float32 value of every float16 bit pattern."""


def fits(weight: GroupedInt) -> bool:
    """Whether the kernels of one width can take this weight: whole blocks of 32, which do not lie across groups."""
    return weight.in_features % BLOCK == 0 and (weight.group % BLOCK == 0 or weight.groups == 1)


def code_terms(bits: int) -> list[str]:
    """Python for each of the 32 codes that the words w0, w1 … of a block hold."""
    codes = []
    for j in range(BLOCK):
        word, offset = divmod(j * bits, 32)
        code = f"w{word} >> np.uint32({offset})"
        if offset + bits > 32:
            code = f"{code} | w{word + 1} << np.uint32({32 - offset})"
        codes.append(f"(({code}) & np.uint32({2**bits - 1}))")
    return codes


_TEMPLATE = """import numpy as np
from numba import njit, prange

{head}

@njit(fastmath=True, nogil=True, cache=True)
def by_lane(given, used, lanes):
    # Not part of the parallel function: there even making an empty array would be handed out to threads.
    x = np.zeros((32, lanes), np.float32)
    sums = np.zeros(used, np.float32)
    for k in range(used):
        for j in range(32):
            x[j, k] = given[k * 32 + j]
            sums[k] += given[k * 32 + j]
    return x, sums


@njit(parallel=True, fastmath=True, nogil=True, error_model="numpy", cache=True)
def multiply(given, words, {side}, y):
    rows, used = words.shape[0], given.shape[0] // 32
    lanes = (used + {lanes} - 1) // {lanes} * {lanes}
    x, sums = by_lane(given, used, lanes)
    for chunk in prange((rows + {rows_at_once} - 1) // {rows_at_once}):
        lane_words = np.zeros(({bits}, lanes), np.uint32)
        dots = np.empty(lanes, np.float32)
        for row in range(chunk * {rows_at_once}, min(chunk * {rows_at_once} + {rows_at_once}, rows)):
            for k in range(used):
                for word in range({bits}):
                    lane_words[word, k] = words[row, k * {bits} + word]
            for k in range(lanes):
{load_lane}
                dot = np.float32(0)
{dots}
                dots[k] = dot
            total = np.float32(0)
{sum_up}
            y[row] = total


@njit(parallel=True, nogil=True, error_model="numpy", cache=True)
def dequantize(words, {side}, start, out):
    used = out.shape[1] // 32
    for i in prange(out.shape[0]):
        row = start + i
{lanes_of_row}
{load_row}
{weights}
"""


def row_kernels(
    form: str, bits: int, *, head: str, side: str, code: str, sum_up: str, lanes_of_row: str, weight: str
) -> ModuleType:
    """A form's kernels for one width: `multiply(x, words, *side, y)` and `dequantize(words, *side, start, out)`.

    All but `form` and `bits` is Python: `head` is what the functions need, `side` the names of their arguments for what
    is stored beside the codes, `code` a code's number from its bits {}. `sum_up` adds a row's product to `total`, from
    the products `dots[k]` of the codes of each lane k below `used` with their inputs, and the sums `sums[k]` of these
    inputs. `lanes_of_row` are the loops over a row's lanes, of which the last is over k, and `weight` is what they make
    of a code's number {}.

    The 32 steps of a lane are written out: the compiler turns them into vector code with constant shifts, five times
    faster than the same steps as a loop.
    """
    steps = list(enumerate(code.format(term) for term in code_terms(bits)))
    inner = " " * 16
    source = _TEMPLATE.format(
        head=head,
        side=side,
        bits=bits,
        rows_at_once=ROWS_AT_ONCE,
        lanes=LANES,
        load_lane="\n".join(f"{inner}w{word} = lane_words[{word}, k]" for word in range(bits)),
        load_row="\n".join(f"{inner}w{word} = words[row, k * {bits} + {word}]" for word in range(bits)),
        dots="\n".join(f"{inner}dot += {number} * x[{j}, k]" for j, number in steps),
        sum_up=indent(sum_up, " " * 12),
        lanes_of_row=indent(lanes_of_row, " " * 8),
        weights="\n".join(f"{inner}out[i, k * 32 + {j}] = {weight.format(number)}" for j, number in steps),
    )
    return module_of(f"{form}{bits}", source)


_ZERO_OF = """
@njit(inline="always")
def zero_of(zeros, middle, group):
    if zeros.shape[0] == 0:
        return np.float32(middle)
    at = group * {bits}
    code = np.uint64(zeros[at // 32])
    if at % 32 + {bits} > 32:
        code |= np.uint64(zeros[at // 32 + 1]) << np.uint64(32)
    return np.float32(np.int32((code >> np.uint64(at % 32)) & np.uint64({highest})))
"""
_SUM_UP = """
for group in range(scales.shape[1]):
    part = np.float32(0)
    zero = zero_of(zeros, middle, row * scales.shape[1] + group)
    for k in range(group * per_group, min(group * per_group + per_group, used)):
        part += dots[k] - zero * sums[k]
    total += float16[scales[row, group]] * part
"""
_LANES_OF_ROW = """
for group in range(scales.shape[1]):
    scale = float16[scales[row, group]]
    zero = zero_of(zeros, middle, row * scales.shape[1] + group)
    for k in range(group * per_group, min(group * per_group + per_group, used)):
"""


@cache
def _compiled(bits: int) -> ModuleType:
    """The kernels of one width."""
    return row_kernels(
        "grouped_int",
        bits,
        head=_ZERO_OF.format(bits=bits, highest=2**bits - 1),
        side="scales, zeros, middle, per_group, float16",
        code="np.float32(np.int32({}))",
        sum_up=_SUM_UP,
        lanes_of_row=_LANES_OF_ROW,
        weight="scale * ({} - zero)",
    )


def module_of(name: str, source: str) -> ModuleType:
    """Generated kernels as a module. They lie in a file so that the machine code is kept beside it for the next
    process."""
    name = f"{name}_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    path = folders.home() / "kernels" / f"{name}.py"
    if not path.exists():
        try:
            disk.write_text(path, source)
        except OSError:
            path = Path(tempfile.mkdtemp(prefix="low-bit-lab-kernels-")) / path.name
            disk.write_text(path, source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # The cached machine code is found again through the module's name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def multiply_row(x: torch.Tensor, weight: GroupedInt) -> torch.Tensor:
    """`x` [in_features] float32, transformed, to [out_features] float32. The weight must be one that `fits`."""
    y = np.empty(weight.out_features, np.float32)
    _compiled(weight.bits).multiply(
        x.detach().numpy(),
        weight.codes.numpy().view(np.uint32),
        weight.scales.view(torch.uint16).numpy(),
        *_zeros(weight),
        _blocks_per_group(weight),
        FLOAT16,
        y,
    )
    return torch.from_numpy(y)


def dequantize_rows(weight: GroupedInt, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` of the matrix between the weight's transforms, float32 [end - start, in_features]."""
    out = np.empty((end - start, weight.in_features), np.float32)
    words, scales = weight.codes.numpy().view(np.uint32), weight.scales.view(torch.uint16).numpy()
    rest = (scales, *_zeros(weight))
    if fits(weight):
        _compiled(weight.bits).dequantize(words, *rest, _blocks_per_group(weight), FLOAT16, start, out)
    else:
        _dequantize_any(words, weight.bits, *rest, weight.group, FLOAT16, start, out)
    return torch.from_numpy(out)


def integer_rows(weight: GroupedInt, start: int, end: int) -> torch.Tensor:
    """Rows `start` to `end` of code - zero as int8 [end - start, in_features], for symmetric weights with a group a
    row that `fits`."""
    out = np.empty((end - start, weight.in_features), np.float32)
    ones = np.full((weight.out_features, 1), np.float16(1).view(np.uint16))
    words = weight.codes.numpy().view(np.uint32)
    _compiled(weight.bits).dequantize(words, ones, *_zeros(weight), _blocks_per_group(weight), FLOAT16, start, out)
    return torch.from_numpy(out).to(torch.int8)


def _blocks_per_group(weight: GroupedInt) -> int:
    return weight.in_features // BLOCK if weight.groups == 1 else weight.group // BLOCK


def _zeros(weight: GroupedInt) -> tuple[np.ndarray, float]:
    """The packed zero points, or none and the zero that all groups share."""
    if weight.zeros is None:
        return np.empty(0, np.uint32), float(weight.middle)
    return weight.zeros.numpy().view(np.uint32), 0.0


@njit(parallel=True, nogil=True, error_model="numpy", cache=True)
def _dequantize_any(words, bits, scales, zeros, middle, group_size, float16, start, out):  # type: ignore[no-untyped-def]
    rows, columns = out.shape
    groups = scales.shape[1]
    mask = np.uint64(2**bits - 1)
    for i in prange(rows):
        row = start + i
        for group in range(groups):
            zero = np.float32(middle)
            if zeros.shape[0] > 0:
                zero = np.float32(np.int32(code_at(zeros, (row * groups + group) * bits, bits, mask)))
            scale = float16[scales[row, group]]
            for column in range(group * group_size, min(group * group_size + group_size, columns)):
                code = np.float32(np.int32(code_at(words[row], column * bits, bits, mask)))
                out[i, column] = scale * (code - zero)


@njit(inline="always")
def code_at(words, at, bits, mask):  # type: ignore[no-untyped-def]
    """The code that starts at bit `at` of a stream of words."""
    word, offset = at // 32, at % 32
    code = np.uint64(words[word])
    if offset + bits > 32:
        code |= np.uint64(words[word + 1]) << np.uint64(32)
    return (code >> np.uint64(offset)) & mask
