"""Packing of b-bit codes, b from 1 to 8, into 32-bit words.

A row of n codes is one stream of bits: code j takes bits j*b to j*b + b - 1, bit 0 being the lowest bit of the row's
first word (little-endian, so eight codes start at a byte and take b bytes). A code may lie across two words. A row
takes ceil(n * b / 32) words; only the last one can have unused bits, which are zero. 32 codes take exactly b words.

Eight codes are moved together, as the eight bytes of a 64-bit number: neighbours close up to pairs of 2b bits, pairs to
fours, fours to the eight in the lowest 8b bits; and back.
"""

from __future__ import annotations

from quant_engine.deferred import deferred

torch = deferred("torch")

WORD = 32
EIGHT = 8
"""So many codes begin at a byte and take `bits` bytes; with zeros behind them they are one 64-bit number."""
AT_ONCE = 2**18
LOWER_HALVES = ((8, 0x00FF00FF00FF00FF), (16, 0x0000FFFF0000FFFF), (32, 0x00000000FFFFFFFF))
"""Of each way to cut 64 bits into pairs of equal fields: the width of a field, and a mask of the lower ones."""

WHOLE = {1: "uint8", 2: "int16", 4: "int32"}
"""The type that eight codes of so many bits fill."""


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
    words = torch.zeros((rows, words_per_row(count, bits)), dtype=torch.int32, device=codes.device)
    into = words.view(torch.uint8)
    for part in parts(rows, count):
        stream = _packed(codes[part].to(torch.uint8), bits)
        # What is left out, if anything, lies behind the last code.
        size = min(into.shape[1], stream.shape[1])
        into[part, :size] = stream[:, :size]
    return words


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The bytes of uint8 `codes` [rows, n]: `bits` for each eight of them."""
    rows, count = codes.shape
    if count % EIGHT:
        codes = torch.nn.functional.pad(codes, (0, -count % EIGHT))
    wide = codes.reshape(-1).view(torch.int64)
    for field, lower in LOWER_HALVES if bits < EIGHT else ():
        upper = (wide >> field).bitwise_and_(lower).bitwise_left_shift_(field // EIGHT * bits)
        wide = (wide & lower).bitwise_or_(upper)
    if bits in WHOLE:
        return wide.to(getattr(torch, WHOLE[bits])).view(torch.uint8).view(rows, -1)
    return wide.view(torch.uint8).view(-1, EIGHT)[:, :bits].reshape(rows, -(-count // EIGHT) * bits)


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` codes of each row, uint8 [rows, count], from `words` int32 [rows, ceil(count * bits / 32)]."""
    _check(bits)
    rows, columns = words.shape
    if columns != words_per_row(count, bits):
        raise ValueError(f"{count} codes of {bits} bits take {words_per_row(count, bits)} words, not {columns}")
    codes = torch.empty((rows, count), dtype=torch.uint8, device=words.device)
    for part in parts(rows, count):
        codes[part] = _unpacked(words[part], bits, count)[:, :count]
    return codes


def _unpacked(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The codes in `words`, uint8 [rows, n] with `count` filled up to whole eights."""
    eights = -(-count // EIGHT)
    stream = words.contiguous().view(torch.uint8)
    if eights * bits > stream.shape[1]:
        stream = torch.nn.functional.pad(stream, (0, eights * bits - stream.shape[1]))
    stream = stream[:, : eights * bits].reshape(-1, bits)
    wide = torch.nn.functional.pad(stream, (0, EIGHT - bits)).view(-1).view(torch.int64)
    for field, _ in reversed(LOWER_HALVES) if bits < EIGHT else ():
        shift = field // EIGHT * bits
        lowest = sum((2**shift - 1) << start for start in range(0, 64, 2 * field))
        wide = (wide & lowest) | ((wide >> shift & lowest) << field)
    return wide.view(torch.uint8).view(len(words), eights * EIGHT)


def parts(rows: int, count: int) -> list[slice]:
    """Slices of rows with `count` numbers each, so few at once that a processor's cache holds what is computed."""
    step = max(1, AT_ONCE // max(count, 1))
    return [slice(start, start + step) for start in range(0, rows, step)]


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, not {bits}")
