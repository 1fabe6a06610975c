"""Grouped integers whose groups differ in width: b - 1, b or b + 1 bits, the same for all rows of a group.

The columns of one width lie together as a weight of their own: `GroupedInt`, or `Binary` for one bit. Their groups keep
their order, and `widths` says which group is where.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import nn

from quant_engine.weights.binary import Binary
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.grouped import GroupedInt
from quant_engine.weights.ledger import Ledger


class MixedWidth(StoredWeight):
    """widths uint8 [groups], and a part for each width: columns in groups of `group`, only the last one shorter."""

    form = "mixed_width"

    def __init__(self, out_features: int, in_features: int, bits: int, group: int, low: int, high: int) -> None:
        """`low` and `high` are the numbers of columns with `bits` - 1 and `bits` + 1 bits; the others have `bits`."""
        super().__init__(out_features, in_features)
        self.bits, self.group, self.low, self.high = bits, min(group, in_features), low, high
        self.register_buffer("widths", torch.empty(-(-in_features // self.group), dtype=torch.uint8))
        self.parts = nn.ModuleDict()
        for width, columns in ((bits - 1, low), (bits, in_features - low - high), (bits + 1, high)):
            if columns and width == 1:
                self.parts[str(width)] = Binary(out_features, columns, group)
            elif columns:
                self.parts[str(width)] = GroupedInt(out_features, columns, width, group, symmetric=False, ordered=False)

    @classmethod
    def pack(
        cls,
        widths: list[int],
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        means: torch.Tensor,
        live: torch.Tensor,
        bits: int,
        group: int,
    ) -> MixedWidth:
        """From the `widths` of the groups, `codes` uint8 [m, n], and `scales`, `zeros` and `means` [m, groups].

        In one-bit groups code 1 is the sign +, the scale is the spread beside the mean, and columns that are not `live`
        [n] are zero; the others have no means, their zero is a point of the grid.
        """
        rows, columns = codes.shape
        width_of_group = torch.tensor(widths, dtype=torch.uint8, device=codes.device)
        width_of_column = width_of_group.repeat_interleave(group)[:columns]
        low, high = (int((width_of_column == width).sum()) for width in (bits - 1, bits + 1))
        with torch.device("meta"):
            weight = cls(rows, columns, bits, group, low, high)
        weight.widths = width_of_group
        for name in weight.parts:
            width = int(name)
            mine, groups = width_of_column == width, width_of_group == width
            if width == 1:
                terms = torch.stack([means[:, groups], scales[:, groups]], 2)
                weight.parts[name] = Binary.pack(codes[:, mine].bool(), terms, live[mine], group)
            else:
                weight.parts[name] = GroupedInt.pack(codes[:, mine], scales[:, groups], zeros[:, groups], width, group)
        return weight

    @cached_property
    def _columns(self) -> dict[str, list[slice]]:
        """The columns of each part, as runs of groups."""
        columns: dict[str, list[slice]] = {name: [] for name in self.parts}
        for index, width in enumerate(self.widths.tolist()):
            start, end = index * self.group, min(index * self.group + self.group, self.in_features)
            runs = columns[str(width)]
            if runs and runs[-1].stop == start:
                runs[-1] = slice(runs[-1].start, end)
            else:
                runs.append(slice(start, end))
        return columns

    def split(self, x: torch.Tensor) -> list[tuple[torch.Tensor, StoredWeight]]:
        """The columns of `x` [rows, in_features] that belong to each part, and the part."""
        return [(torch.cat([x[:, run] for run in self._columns[name]], 1), part) for name, part in self.parts.items()]

    def columns(self, name: str) -> torch.Tensor:
        """The numbers of the columns that belong to a part, int32."""
        return torch.cat([torch.arange(run.start, run.stop, dtype=torch.int32) for run in self._columns[name]])

    def dequantize(self, start: int = 0, end: int | None = None) -> torch.Tensor:
        end = self.out_features if end is None else end
        weight = torch.empty((end - start, self.in_features), device=self.widths.device)
        for name, part in self.parts.items():
            runs = self._columns[name]
            values = part.dequantize(start, end).split([run.stop - run.start for run in runs], 1)
            for run, value in zip(runs, values, strict=True):
                weight[:, run] = value
        return weight

    def ledger(self) -> Ledger:
        parts = Ledger.sum(part.ledger() for part in self.parts.values())
        return Ledger(parts.weights, {**parts.bits, "widths": 8 * self.widths.numel()})
