"""The next token of several texts through a decoder's blocks in compiled code (kernels/decoding.py).

It takes decoders of the plain LLaMA type in float32 on a CPU whose linears all keep stored weights that the compiled
kernels read. Others, and whatever reads several tokens of a text, go module by module (forward.py).
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from quant_engine.kernels import attention, cpu, decoding, low_rank, rotation
from quant_engine.kernels.linear import StoredLinear
from quant_engine.kernels.matmul import CPU_KERNELS
from quant_engine.kernels.threads import Pace, share_threads
from quant_engine.models.architecture import LINEARS, SEQUENTIAL_SETS
from quant_engine.models.key_values import KeyValues
from quant_engine.weights.binary import Binary
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.grouped import GroupedInt
from quant_engine.weights.int_activations import IntActivations, highest_code
from quant_engine.weights.interleaving import ROWS
from quant_engine.weights.low_rank import LowRank
from quant_engine.weights.mixed_width import MixedWidth
from quant_engine.weights.rotated import RotatedInt

_STEPS: WeakKeyDictionary[nn.Module, Step] = WeakKeyDictionary()
_ANGLES = 512
"""Positions whose rotary angles are computed at once."""


def step_of(decoder: nn.Module) -> Step | None:
    """The compiled step of a decoder; None where there is none."""
    step = _STEPS.get(decoder)
    if step is None or not step.is_current():
        if not _is_supported(decoder):
            return None
        step = _STEPS[decoder] = Step(decoder)
    return step


def _is_supported(decoder: nn.Module) -> bool:
    norm = decoder.norm.weight
    if norm.device.type != "cpu" or norm.dtype != torch.float32 or decoder.config.hidden_act != "silu":
        return False
    linears = (block.get_submodule(path) for block in decoder.layers for path in LINEARS)
    return all(isinstance(linear, StoredLinear) and _fits(linear.weight) for linear in linears)


def _fits(weight: StoredWeight) -> bool:
    return all(CPU_KERNELS.get(part.form) is cpu and _is_known(part) and cpu.fits(part) for _, part in _parts(weight))


def _is_known(weight: StoredWeight) -> bool:
    """Whether the step does all that a weight does to inputs and outputs."""
    changed = [
        name
        for name in ("transform_input", "transform_output", "finish")
        if getattr(type(weight), name) is not getattr(StoredWeight, name)
    ]
    ordered = isinstance(weight, GroupedInt) and set(changed) <= {"transform_input", "finish"}
    return not changed or ordered or isinstance(weight, RotatedInt)


def _parts(weight: StoredWeight) -> Iterator[tuple[torch.Tensor | None, StoredWeight]]:
    """The weights whose products add up to that of a weight, and the columns that each takes, None for all in order.
    An adapter is no part."""
    weight = weight.base if isinstance(weight, LowRank) else weight
    if isinstance(weight, MixedWidth):
        for name, part in weight.parts.items():
            yield weight.columns(name), part
    else:
        yield getattr(weight, "order", None), weight


def _ranks(decoder: nn.Module) -> Iterator[int]:
    """The rank of each adapter."""
    weights = (block.get_submodule(path).weight for block in decoder.layers for path in LINEARS)
    return (weight.rank for weight in weights if isinstance(weight, LowRank))


def _column_scales(weight: StoredWeight) -> np.ndarray | None:
    """What the columns of a product's inputs are multiplied with, float32, if anything."""
    if isinstance(weight, RotatedInt):
        return weight.column_scales.float().numpy()
    return cpu.live_columns(weight).astype(np.float32) if isinstance(weight, Binary) else None


def _bytes(values: torch.Tensor | np.ndarray | None) -> bytes:
    return b"" if values is None else np.asarray(values).tobytes()


class Step:
    """The tables of one decoder that the compiled step reads, and the room that it works in."""

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = weakref.ref(decoder)
        self._plans: list[tuple[StoredWeight, cpu.Plan]] = []
        self._held: list[np.ndarray] = []  # the tables hold addresses of these
        tables, sets = [], [0]
        self._most_rank = max(_ranks(decoder), default=0)
        for block in decoder.layers:
            for paths in SEQUENTIAL_SETS:
                tables.append(self._table([block.get_submodule(path) for path in paths]))
                sets.append(sets[-1] + len(tables[-1]))
        self._entries, self._sets = np.concatenate(tables), np.array(sets)
        norms = [n.weight for b in decoder.layers for n in (b.input_layernorm, b.post_attention_layernorm)]
        self._norms = torch.stack([*norms, decoder.norm.weight]).detach().numpy()
        own, config = decoder.layers[0].self_attn, decoder.config
        self._eps = decoder.norm.variance_epsilon
        self._head_size, self._scale = own.head_dim, np.array([own.scaling], np.float32)
        self._heads, self._key_heads = config.num_attention_heads, config.num_key_value_heads
        self._attend = attention.attention(self._head_size, self._heads // self._key_heads).address
        self._intermediate = config.intermediate_size
        self._angles = torch.empty((2, 0, self._head_size))
        self._rooms: dict[int, tuple[np.ndarray, ...]] = {}
        self._paces: defaultdict[int, Pace] = defaultdict(Pace)  # by the number of texts
        self._lock = threading.Lock()  # the rooms are for a step at a time

    def _table(self, linears: Sequence[StoredLinear]) -> np.ndarray:
        """The entries of linears that share their input."""
        table: list[tuple[Any, ...]] = []
        inputs: dict[tuple[Any, ...], int] = {}
        for linear in linears:
            output = len(table)
            for order, weight in _parts(linear.weight):
                plan = cpu.plan(weight)
                self._plans.append((weight, plan))
                scales = _column_scales(weight)
                rounded = highest_code(weight.a_bits) if isinstance(weight, IntActivations) else 0
                finished = rounded if rounded and weight.quantized_output else 0
                turned, turned_back = self._rotations(weight)
                kind = (plan.factors.tobytes(), plan.weight[2], _bytes(order), _bytes(scales), rounded, turned)
                bias = self._bias(linear, plan) if output == len(table) else 0
                adapter = self._adapter(linear.weight) if output == len(table) else 0
                table.append(
                    (
                        plan.product, plan.weight, plan.groups, plan.factors.ctypes.data,
                        self._address(order), self._address(scales), bias, inputs.setdefault(kind, len(table)), output,
                        rounded, finished, turned, turned_back, adapter,
                    )
                )  # fmt: skip
        return np.array(table, decoding.ENTRY).view(np.int64).reshape(len(table), decoding.FIELDS)

    def _rotations(self, weight: StoredWeight) -> tuple[int, int]:
        """Where the numbers of a weight's rotations stand: of its inputs, and of its outputs."""
        if not isinstance(weight, RotatedInt):
            return 0, 0
        sizes = {"inputs": weight.in_features, "outputs": weight.out_features}
        plans = [rotation.plan(size, weight.seed, side, weight.rotation) for side, size in sizes.items()]
        self._held += [array for plan in plans for array in plan]
        inputs, outputs = (plan[0].ctypes.data for plan in plans)
        return inputs, outputs

    def _adapter(self, weight: StoredWeight) -> int:
        """Where the numbers of a weight's adapter stand."""
        if not isinstance(weight, LowRank):
            return 0
        plan = low_rank.plan(weight.a.numpy(), weight.b.numpy(), weight.scale)
        self._held += plan
        return plan[0].ctypes.data

    def _bias(self, linear: StoredLinear, plan: cpu.Plan) -> int:
        if linear.bias is None:
            return 0
        short = plan.tiles * ROWS - linear.out_features
        return self._address(torch.nn.functional.pad(linear.bias.detach().float(), (0, short)))

    def _address(self, values: torch.Tensor | np.ndarray | None) -> int:
        if values is None:
            return 0
        self._held.append(np.ascontiguousarray(values))
        return self._held[-1].ctypes.data

    def is_current(self) -> bool:
        """Whether all weights still lie where the tables say."""
        return all(cpu.is_current(weight, plan) for weight, plan in self._plans)

    def __call__(self, embeddings: torch.Tensor, texts: Sequence[KeyValues]) -> torch.Tensor:
        """What the output head gets [texts, hidden_size] for one more token of each text, given as `embeddings`
        [texts, hidden_size] float32. The texts are extended by it."""
        x = embeddings.clone().numpy()
        positions = [text.length for text in texts]
        angles = self._angles_to(max(positions) + 1)[:, positions].contiguous().numpy()
        for text in texts:
            text.reserve(1)
        where = np.array([text.location for text in texts], np.int64)
        with self._lock, self._paces[len(texts)].threads() as threads:
            self._run(x, angles, where, max(positions) + 1, threads)
        for text in texts:
            text.length += 1
        return torch.from_numpy(x)

    def _run(self, x: np.ndarray, angles: torch.Tensor, where: np.ndarray, length: int, threads: int) -> None:
        shared = self._heads // self._key_heads
        scores = np.empty((threads, shared, length), np.float32)
        decoding.stepper(threads > 1)(
            self._entries, self._sets, self._norms, np.float32(self._eps), x, *angles, where, self._attend,
            self._key_heads, self._scale, *self._room(len(x)), scores, threads,
        )  # fmt: skip

    def warm_up(self) -> None:
        """Compiles the step, or loads it from earlier, for one thread and for all, so that no answer waits for it."""
        text = KeyValues(self._decoder())
        text.reserve(1)
        angles = self._angles_to(1)[:, :1].contiguous().numpy()
        for threads in {1, share_threads()}:
            x = np.zeros((1, self._norms.shape[1]), np.float32)
            with self._lock:
                self._run(x, angles, np.array([text.location], np.int64), 1, threads)

    def _angles_to(self, positions: int) -> torch.Tensor:
        """Cosine and sine of the rotary angles [2, at least so many positions, head_size]."""
        if self._angles.shape[1] < positions:
            whole = torch.arange(positions + _ANGLES)[None]
            rotary = self._decoder().rotary_emb
            self._angles = torch.cat(rotary(torch.empty(1), whole))
        return self._angles

    def _room(self, rows: int) -> tuple[np.ndarray, ...]:
        """Arrays for so many rows."""
        if rows not in self._rooms:
            padded = cpu.padded_rows(rows)
            entries = np.diff(self._sets).max()
            columns, groups = 32 * self._entries[:, 4].max(), self._entries[:, 6].max()
            outputs, ranks = ROWS * self._entries[:, 5].max(), self._most_rank
            empty = partial(np.empty, dtype=np.float32)
            self._rooms[rows] = (
                empty((rows, self._norms.shape[1])), empty((rows, self._intermediate)),
                empty((rows, self._heads, self._head_size)), empty((entries, padded * columns)),
                empty((entries, padded * groups)), empty((entries, padded * outputs)),
                empty(padded * max(columns, outputs, ranks)), empty((entries, rows)),
            )  # fmt: skip
        return self._rooms[rows]
