"""Rotated integers: b-bit codes on one grid for the whole matrix, between two random rotations and a column scaling.

    W = U^T stored V diag(r)          stored = scale * (code - (2^b - 1) / 2)

so that y = x W^T is computed as (((x * r) V^T) stored^T) U: the inputs are scaled and rotated, the packed integers
multiplied, the outputs rotated back. The rotations follow from a seed; nothing of them is stored, and all weights of a
size and seed share them in memory. Chee et al., QuIP, arXiv 2307.13304, section 4.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch

from quant_engine.weights.form import StoredWeight
from quant_engine.weights.ledger import Ledger
from quant_engine.weights.packing import pack, unpack, unused_bits, words_per_row

Kind = Literal["kronecker", "blocked"]


class Rotation:
    """A random orthogonal matrix M [size, size] that multiplies in size * (p1 + p2) steps, with size = p1 * p2.

    A vector is permuted, laid out as [p1, p2], rotated along both axes and permuted again. `kronecker` has one rotation
    for each axis (the form of the paper), `blocked` an independent one for each slice.
    """

    def __init__(self, size: int, seed: tuple[int, ...], kind: Kind, dtype: torch.dtype, device: torch.device) -> None:
        # NumPy promises that these legacy streams never change, so that a seed gives the same rotation for ever.
        random = np.random.RandomState(seed)
        self.shape = p1, p2 = factors(size)
        into, out = random.permutation(size), random.permutation(size)
        slices = ((), ()) if kind == "kronecker" else ((p2,), (p1,))
        self.left, self.right = (
            torch.from_numpy(_haar((*count, p, p), random)).to(device, dtype)
            for count, p in zip(slices, (p1, p2), strict=True)
        )
        self.into, self.out, self.back_into, self.back_out = (
            torch.from_numpy(order).to(device) for order in (into, out, np.argsort(into), np.argsort(out))
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [rows, size] times M^T."""
        x = x.index_select(1, self.into).view(-1, *self.shape)
        if self.left.dim() == 2:
            x = self.left @ x @ self.right.T
        else:
            x = torch.einsum("bca,rab->rcb", self.left, x)
            x = torch.einsum("adb,rab->rad", self.right, x)
        return x.flatten(1).index_select(1, self.out)

    def back(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [rows, size] times M: undoes the rotation."""
        x = x.index_select(1, self.back_out).view(-1, *self.shape)
        if self.left.dim() == 2:
            x = self.left.T @ x @ self.right
        else:
            x = torch.einsum("adb,rad->rab", self.right, x)
            x = torch.einsum("bca,rcb->rab", self.left, x)
        return x.flatten(1).index_select(1, self.back_into)


def factors(size: int) -> tuple[int, int]:
    """size = p1 * p2: of its prime factors in ascending order, every other one goes to p1, the rest to p2."""
    primes, rest, divisor = [], size, 2
    while rest > 1:
        while rest % divisor == 0:
            primes.append(divisor)
            rest //= divisor
        divisor += 1
    return int(np.prod(primes[::2], dtype=int)), int(np.prod(primes[1::2], dtype=int))


def _haar(shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    """Rotations [..., p, p], uniform over all of them: determinant 1."""
    q, r = np.linalg.qr(random.standard_normal(shape))
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    q[..., 0] *= np.linalg.det(q).round()[..., None]
    return q


@cache
def rotation(
    size: int, seed: int, side: str, kind: Kind, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Rotation:
    """The rotation of one side ("inputs" or "outputs") of weights of this size. Sides differ: one matrix on both sides
    would leave a weight near the identity as it is."""
    return Rotation(size, (seed, int(side == "outputs"), size), kind, dtype, torch.device(device))


class RotatedInt(StoredWeight):
    """Codes int32 words [m, ceil(n b / 32)], scale float16 [1], column scales r float16 [n]."""

    form = "rotated_int"
    by_rows = ("codes",)
    groups = 1

    def __init__(self, out_features: int, in_features: int, bits: int, seed: int, rotation: Kind) -> None:
        super().__init__(out_features, in_features)
        self.bits, self.seed, self.rotation = bits, seed, rotation
        self.group = in_features
        self.middle = (2**bits - 1) / 2
        words = words_per_row(in_features, bits)
        self.register_buffer("codes", torch.empty((out_features, words), dtype=torch.int32))
        self.register_buffer("scale", torch.empty(1, dtype=torch.float16))
        self.register_buffer("column_scales", torch.empty(in_features, dtype=torch.float16))

    @classmethod
    def pack(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        column_scales: torch.Tensor,
        bits: int,
        seed: int,
        rotation: Kind = "kronecker",
    ) -> RotatedInt:
        """From `codes` [m, n] of the rotated weight, its `scale` [1] and `column_scales` [n], both float16."""
        with torch.device("meta"):
            weight = cls(*codes.shape, bits, seed, rotation)
        weight.codes = pack(codes, bits)
        weight.scale, weight.column_scales = scale, column_scales
        return weight

    def transform_input(self, x: torch.Tensor) -> torch.Tensor:
        return self._rotation("inputs")(x.float() * self.column_scales).to(x.dtype)

    def transform_output(self, y: torch.Tensor) -> torch.Tensor:
        return self._rotation("outputs").back(y.float()).to(y.dtype)

    def stored_rows(self, start: int, end: int) -> torch.Tensor:
        codes = unpack(self.canonical().codes[start:end], self.bits, self.in_features).float()
        return self.scale.float() * (codes - self.middle)

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        """Rows of the weight in its own axes. Every one takes all stored rows: not for use while a model answers."""
        stored = self._rotation("inputs").back(self.stored_rows(0, self.out_features))
        weight = self._rotation("outputs").back(stored.T).T * self.column_scales
        return weight[start:end].contiguous()

    def _rotation(self, side: str) -> Rotation:
        size = self.in_features if side == "inputs" else self.out_features
        return rotation(size, self.seed, side, self.rotation, device=str(self.device))

    def ledger(self) -> Ledger:
        rows, columns = self.out_features, self.in_features
        bits = {"codes": rows * columns * self.bits, "scale": 16, "column scales": 16 * columns}
        return self._ledger(bits, unused_bits(rows, columns, self.bits))
