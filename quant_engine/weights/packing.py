"""Packing of b-bit codes, b from 1 to 8, into 32-bit words.

A row of n codes is one stream of bits: code j takes bits j*b to j*b + b - 1, bit 0 being the lowest bit of the row's
first word (little-endian, so eight codes start at a byte and take b bytes). A code may lie across two words. A row
takes ceil(n * b / 32) words; only the last one can have unused bits, which are zero. 32 codes take exactly b words.
"""

from __future__ import annotations

import torch

WORD = 32


def words_per_row(count: int, bits: int) -> int:
    """The 32-bit words that a row of `count` codes takes."""
    return -(-count * bits // WORD)


def unused_bits(rows: int, count: int, bits: int) -> int:
    """The bits that are left over in the words of so many rows of `count` codes."""
    return rows * (WORD * words_per_row(count, bits) - count * bits)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """`codes` [rows, n], integers from 0 to 2^bits - 1, as int32 words [rows, ceil(n * bits / 32)].

    Raises ValueError for bits outside 1 to 8 or codes that do not fit.
    """
    _check(bits)
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise ValueError(f"codes must be from 0 to {2**bits - 1} to fit {bits} bits")
    rows, count = codes.shape
    words = words_per_row(count, bits)
    # 32 codes at a time, padded with zeros: they fill exactly `bits` words, the same way in every row.
    padded = torch.zeros((rows, -(-count // WORD) * WORD), dtype=torch.int64, device=codes.device)
    padded[:, :count] = codes
    padded = padded.view(rows, -1, WORD)
    packed = torch.zeros((rows, padded.shape[1], bits), dtype=torch.int64, device=codes.device)
    for j in range(WORD):
        word, offset = divmod(j * bits, WORD)
        packed[:, :, word] |= padded[:, :, j] << offset
        if offset + bits > WORD:
            packed[:, :, word + 1] |= padded[:, :, j] >> (WORD - offset)
    packed = packed.view(rows, -1)[:, :words] & 0xFFFFFFFF
    # To the same 32 bits as a signed number, as int32 holds them.
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` codes of each row, uint8 [rows, count], from `words` int32 [rows, ceil(count * bits / 32)]."""
    _check(bits)
    rows, columns = words.shape
    if columns != words_per_row(count, bits):
        raise ValueError(f"{count} codes of {bits} bits take {words_per_row(count, bits)} words, not {columns}")
    blocks = -(-count // WORD)
    wide = torch.zeros((rows, blocks * bits), dtype=torch.int64, device=words.device)
    wide[:, :columns] = words
    wide = (wide & 0xFFFFFFFF).view(rows, blocks, bits)
    codes = torch.empty((rows, blocks, WORD), dtype=torch.uint8, device=words.device)
    for j in range(WORD):
        word, offset = divmod(j * bits, WORD)
        value = wide[:, :, word] >> offset
        if offset + bits > WORD:
            value = value | (wide[:, :, word + 1] << (WORD - offset))
        codes[:, :, j] = value & (2**bits - 1)
    return codes.view(rows, -1)[:, :count]


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, not {bits}")
