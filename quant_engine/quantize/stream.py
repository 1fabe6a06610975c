"""The pipeline: stream decoder blocks, collect statistics, call the method on each linear, swap the layer.

One block is dense at a time. Calibration activations move on block by block, through blocks already quantized, so that
later blocks see the error of earlier ones; through original blocks for methods that want it so. Where the method looks
at no data, nothing runs through the blocks at all. After each block a checkpoint is saved; a stopped or killed
quantization goes on behind the last finished block.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from quant_engine import memory
from quant_engine.checkpoints.folder import Checkpoint, ledger_of
from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods.block import CalibratedBlock
from quant_engine.methods.contract import Layer, Statistics
from quant_engine.models.architecture import LINEARS, SEQUENTIAL_SETS
from quant_engine.models.files import folder_of
from quant_engine.models.load import Skeleton, narrowest
from quant_engine.progress import Hooks, Progress
from quant_engine.quantize.inputs import calibration_inputs
from quant_engine.quantize.plan import WeightPlan
from quant_engine.quantize.record import layer_record, losses_of
from quant_engine.quantize.statistics import collect
from quant_engine.quantize.whole_model import TRAINING_SHARE
from quant_engine.results import LayerRecord
from quant_engine.weights.half import Half


@dataclass
class Stream:
    """One model on its way through a method. `trained` are the tensors of `Method.train`, made in so many seconds.
    Without `with_tokenizer` the model's tokenizer is not read where the method looks at no data."""

    plan: WeightPlan
    checkpoint: Checkpoint
    device: str
    hooks: Hooks
    trained: dict[str, torch.Tensor] = field(default_factory=dict)
    training_seconds: float = 0.0
    with_tokenizer: bool = True

    @torch.inference_mode()
    def run(self) -> None:
        """Quantizes the blocks that the checkpoint does not have yet.

        Raises UserError where the user can change something, and Stopped when asked to stop.
        """
        finished = self.checkpoint.finished_blocks()
        card, spec = self.plan.card, self.plan.spec
        self.skeleton = Skeleton(
            card,
            folder_of(card, spec.revision),
            getattr(torch, spec.dtype),
            self.device,
            with_tokenizer=self.with_tokenizer or self.plan.method.card.calibrated,
        )
        self.blocks = self.skeleton.blocks
        if finished:
            self.hooks.log(f"{finished} of {len(self.blocks)} blocks were finished before; going on behind them.")
        if finished == len(self.blocks):
            return
        self.started, self.linears_before = time.monotonic(), finished * len(LINEARS)
        if self.plan.method.card.calibrated:
            self._calibrate_blocks(finished)
            return
        for index in range(finished, len(self.blocks)):
            self.skeleton.fill_block(index)
            self._save(index, [self._quantize_linear(index, name) for name in LINEARS])
            self.skeleton.release_block(index)
            memory.give_back()

    def _calibrate_blocks(self, finished: int) -> None:
        """Sends the calibration through all blocks, and quantizes those behind the `finished` ones."""
        self.hooks.progress(Progress(stage="calibrating", message="reading the calibration data"))
        hidden, self.block_kwargs = calibration_inputs(self.skeleton, self.plan.spec.calibration)
        self.skeleton.release_outside_blocks()
        for index in range(len(self.blocks)):
            hidden = self._advance(index, hidden) if index < finished else self._quantize_block(index, hidden)
            self.skeleton.release_block(index)
            memory.give_back()
            self.hooks.check_stop()

    def _advance(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Sends the calibration through a block that was finished before."""
        self._report("calibrating", index, message="running finished blocks again")
        if self.plan.method.original_inputs:
            self.skeleton.fill_block(index)
        else:
            self.checkpoint.fill_block(index, self.blocks[index], self.device, self.skeleton.dtype)
        self._calibrated(index, hidden).advance(hidden)
        return hidden

    def _calibrated(self, index: int, hidden: torch.Tensor) -> CalibratedBlock:
        at_once = self.plan.spec.calibration.at_once
        return CalibratedBlock(self.blocks[index], hidden, self.block_kwargs, self.hooks.check_stop, at_once)

    def _quantize_block(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Quantizes and saves a block. Returns the inputs of the next one."""
        method, last = self.plan.method, index + 1 == len(self.blocks)  # the last block's outputs are not needed
        self.skeleton.fill_block(index)
        block = self._calibrated(index, hidden)
        following = hidden
        if method.original_inputs and not last:
            following = torch.empty_like(hidden)
            block.advance(following)
        # What was done for all of a block's linears together, or all of a model's, is shared out evenly.
        shared_seconds = self.training_seconds / len(self.blocks) + self._prepare(index, block)
        parts: list[tuple[CalibratedBlock, Sequence[Sequence[str]]]] = [(block, (LINEARS,))]
        if method.true_sequential(self.plan.options):
            parts = list(zip(block.halves(), (SEQUENTIAL_SETS[:2], SEQUENTIAL_SETS[2:]), strict=True))
        records: list[LayerRecord] = []
        for number, (part, sets) in enumerate(parts, 1):
            for names in sets:
                self._report("calibrating", index, linear=names[0] if len(names) < len(LINEARS) else None)
                records += self._quantize_set(index, part, names)
            if number < len(parts) or not (last or method.original_inputs):
                part.advance(hidden)
        seconds = shared_seconds / len(LINEARS)
        self._save(index, [record.model_copy(update={"seconds": record.seconds + seconds}) for record in records])
        return following

    def _quantize_set(self, index: int, part: CalibratedBlock, names: Sequence[str]) -> list[LayerRecord]:
        """Quantizes linears on inputs that are collected together. A Hessian is dropped behind its last linear."""
        method = self.plan.method
        wanted = [name for name in names if self.plan.quantizes(index, name)]
        statistics = collect(part, wanted, method.input_tokens, hessian=method.hessian) if wanted else {}
        return [
            self._quantize_linear(index, name, self._of_linear(index, statistics.pop(name)) if name in wanted else None)
            for name in names
        ]

    def _prepare(self, index: int, block: CalibratedBlock) -> float:
        """What the method does to a dense block first; the seconds that it took."""
        if not self.plan.method.prepare:
            return 0.0
        started = time.monotonic()
        self._report("calibrating", index, message="preparing the block")
        log = lambda line: self.hooks.log(f"block {index}: {line}")  # noqa: E731
        self.plan.method.prepare(block, self.plan.spec.setting, self.plan.options, log)
        return time.monotonic() - started

    def _of_linear(self, index: int, statistics: Statistics) -> Statistics:
        """The statistics with the spec's seed, and with what was trained for the linear."""
        prefix = f"{index}.{statistics.linear}."
        return replace(
            statistics,
            seed=self.plan.spec.seed,
            trained={name.removeprefix(prefix): t for name, t in self.trained.items() if name.startswith(prefix)},
        )

    def _quantize_linear(self, index: int, name: str, statistics: Statistics | None = None) -> LayerRecord:
        """Quantizes one linear and puts it into its block."""
        setting, method = self.plan.spec.setting, self.plan.method
        started = time.monotonic()
        dense: nn.Linear = self.blocks[index].get_submodule(name)
        layer = Layer(
            weight=dense.weight.float().clone(),
            statistics=statistics,
            setting=setting,
            options=self.plan.options,
            log=lambda line: self.hooks.log(f"block {index} {name}: {line}"),
        )
        stored = method.quantize(layer) if self.plan.quantizes(index, name) else self._in_16_bits(layer)
        seconds = time.monotonic() - started
        quantized = QuantLinear(stored, None if dense.bias is None else dense.bias.data)
        losses = losses_of(dense, quantized, statistics) if statistics else {}
        record = layer_record(index, name, quantized, seconds, losses)
        parent, _, leaf = name.rpartition(".")
        setattr(self.blocks[index].get_submodule(parent), leaf, quantized)
        self._report("quantizing", index, linear=name, output_error=record.output_error, finished=True)
        self.hooks.check_stop()
        return record

    def _in_16_bits(self, layer: Layer) -> Half:
        """The weight of a linear that is not quantized; rounded where no 16 bits hold it exactly."""
        dtype = narrowest(layer.weight)
        if dtype == torch.float32:
            fits = layer.weight.abs().max() <= torch.finfo(torch.float16).max
            dtype = torch.float16 if fits else torch.bfloat16
            layer.log(f"not quantized, but rounded to {dtype}: no 16 bits hold its weights")
        return Half.pack(layer.weight.to(dtype))

    def _save(self, index: int, records: list[LayerRecord]) -> None:
        """Saves a block whose linears are quantized."""
        block = self.blocks[index]
        self.checkpoint.save_block(index, block, records)
        ledger = ledger_of(block)
        self.hooks.log(
            f"block {index}: {ledger.bits_per_weight:.3f} stored bits per weight, headline {ledger.headline_bits:.3f}"
        )

    def _report(
        self,
        stage: str,
        block: int,
        *,
        linear: str | None = None,
        output_error: float | None = None,
        finished: bool = False,
        message: str = "",
    ) -> None:
        """Progress within quantization: fraction and time left count linears."""
        done = block * len(LINEARS) + (LINEARS.index(linear) + finished if linear else 0)
        total = len(self.blocks) * len(LINEARS)
        fresh = done - self.linears_before
        elapsed = time.monotonic() - self.started
        before = TRAINING_SHARE if self.plan.method.train else 0
        after = TRAINING_SHARE if self.plan.method.fine_tunes else 0
        self.hooks.progress(
            Progress(
                stage=stage,
                fraction=before + (1 - before - after) * done / total,
                block=block + 1,
                blocks=len(self.blocks),
                linear=linear,
                output_error=output_error,
                eta_s=elapsed / fresh * (total - done) if fresh > 0 else None,
                message=message,
            )
        )
