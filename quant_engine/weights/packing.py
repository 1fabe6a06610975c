"""Packing of b-bit codes, b from 1 to 8, into 32-bit words.

A row of n codes is one stream of bits: code j takes bits j*b to j*b + b - 1, bit 0 being the lowest bit of the row's
first word (little-endian, so eight codes start at a byte and take b bytes). A code may lie across two words. A row
takes ceil(n * b / 32) words; only the last one can have unused bits, which are zero. 32 codes take exactly b words.
"""

from __future__ import annotations

from functools import cache

from quant_engine.deferred import deferred

torch = deferred("torch")

WORD = 32
EIGHT = 8
"""So many codes begin at a byte and take `bits` bytes; with zeros behind them they are one 64-bit number."""


def words_per_row(count: int, bits: int) -> int:
    """The 32-bit words that a row of `count` codes takes."""
    return -(-count * bits // WORD)


def packed_bits(rows: int, count: int, bits: int) -> int:
    """The bits that so many rows of `count` codes take, whole words each."""
    return rows * WORD * words_per_row(count, bits)


def unused_bits(rows: int, count: int, bits: int) -> int:
    """The bits that are left over in the words of so many rows of `count` codes."""
    return packed_bits(rows, count, bits) - rows * count * bits


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """`codes` [rows, n], integers from 0 to 2^bits - 1, as int32 words [rows, ceil(n * bits / 32)].

    Raises ValueError for bits outside 1 to 8 or codes that do not fit.
    """
    _check(bits)
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise ValueError(f"codes must be from 0 to {2**bits - 1} to fit {bits} bits")
    rows, count = codes.shape
    eights = -(-count // EIGHT)
    padded = torch.nn.functional.pad(codes.to(torch.int64), (0, eights * EIGHT - count)).view(rows, eights, EIGHT)
    wide = (padded << _offsets(bits, codes.device)).sum(-1, keepdim=True)
    stream = wide.view(torch.uint8)[..., :bits].reshape(rows, eights * bits)
    packed = torch.zeros((rows, words_per_row(count, bits)), dtype=torch.int32, device=codes.device)
    # What is left out, if anything, lies behind the last code.
    size = min(4 * packed.shape[1], stream.shape[1])
    packed.view(torch.uint8)[:, :size] = stream[:, :size]
    return packed


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` codes of each row, uint8 [rows, count], from `words` int32 [rows, ceil(count * bits / 32)]."""
    _check(bits)
    rows, columns = words.shape
    if columns != words_per_row(count, bits):
        raise ValueError(f"{count} codes of {bits} bits take {words_per_row(count, bits)} words, not {columns}")
    eights = -(-count // EIGHT)
    stream = torch.nn.functional.pad(words.contiguous().view(torch.uint8), (0, eights * bits - 4 * columns))
    wide = torch.nn.functional.pad(stream.reshape(rows, eights, bits), (0, EIGHT - bits)).view(torch.int64)
    codes = (wide >> _offsets(bits, words.device)).bitwise_and_(2**bits - 1)
    return codes.to(torch.uint8).view(rows, eights * EIGHT)[:, :count]


@cache
def _offsets(bits: int, device: torch.device) -> torch.Tensor:
    return bits * torch.arange(EIGHT, device=device)


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, not {bits}")
