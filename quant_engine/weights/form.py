"""What every storage form of low-bit weights can do. One module per form; `registry.py` names them."""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import nn

from quant_engine.weights.interleaving import interleaved, restored
from quant_engine.weights.ledger import Ledger


class StoredWeight(nn.Module):
    """A weight [out_features, in_features] kept in few bits. All its data are buffers, and there is no dense copy.

    The buffers are what goes to disk, bit for bit; `config` is the rest that is needed to read them back:
    `type(self).empty(**config)` has buffers of the right shapes and types, to be filled from a file. A form keeps the
    arguments of its constructor as attributes of the same names.

    While a CPU multiplies by it, the rows of a weight may lie interleaved (weights/interleaving.py). What is read of it
    is the same: state dicts have rows as files have them, and a move to another device lays them so.
    """

    form: ClassVar[str]
    by_rows: ClassVar[tuple[str, ...]] = ()
    """The buffers [..., out_features, count] of which rows can be interleaved."""
    interleaved = False

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features

    def config(self) -> dict[str, Any]:
        """The numbers that, with the buffers, are the whole weight: what the constructor was given."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @classmethod
    def empty(cls, **config: Any) -> StoredWeight:
        """A weight with unset buffers."""
        return cls(**config)

    @abstractmethod
    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        """Rows `start` to `end` as float32 [end - start, in_features], in the original order of columns."""

    def transform_input(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [rows, in_features] as `stored_rows` want it: x W^T = transform_output(transform_input(x) stored^T)."""
        return x

    def transform_output(self, y: torch.Tensor) -> torch.Tensor:
        """The product [rows, out_features] with `stored_rows` as the weight's own."""
        return y

    def stored_rows(self, start: int, end: int) -> torch.Tensor:
        """Rows `start` to `end` of the matrix between the two transforms, float32 [end - start, in_features]."""
        return self.dequantize(start, end)

    @abstractmethod
    def ledger(self) -> Ledger:
        """What is stored, by purpose; its sum is the exact size of the buffers."""

    def _ledger(self, bits: dict[str, int], padding: int) -> Ledger:
        """A ledger of `bits` by purpose, and of the `padding` that fills up packed words."""
        return Ledger(self.out_features * self.in_features, {**bits, "padding": padding} if padding else bits)

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        """What a layer with this weight makes of its output `y`, bias added: nothing, for most forms."""
        return y

    @torch.inference_mode(False)
    @torch.no_grad()
    def interleave(self) -> None:
        """Interleaves the rows of all buffers `by_rows`, in place of them as they were.

        All others are copied, so that nothing is left of a file that they were mapped from.
        """
        for name, buffer in list(self._buffers.items()):
            if buffer is not None:
                setattr(self, name, interleaved(buffer) if name in self.by_rows else buffer.clone())
        self.interleaved = True

    def restore(self) -> None:
        """Undoes `interleave`."""
        for name in self.by_rows:
            setattr(self, name, restored(getattr(self, name), self.out_features))
        self.interleaved = False

    def canonical(self) -> Self:
        """This weight with its rows as files have them: itself, or a copy."""
        if not self.interleaved:
            return self
        weight = copy.copy(self)
        weight._buffers = self._buffers.copy()
        weight.restore()
        return weight

    def _save_to_state_dict(self, *args: Any) -> None:
        super(StoredWeight, self.canonical())._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        if self.interleaved:
            self.restore()
        super()._load_from_state_dict(*args)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        if self.interleaved:
            self.restore()
        return super()._apply(fn, recurse)

    def stored_bytes(self) -> int:
        """Bytes of all buffers: what the weight takes in memory and in a file."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())
