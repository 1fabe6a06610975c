"""The pipeline: stream decoder blocks, collect statistics, call the method on each linear, swap the layer.

One block is dense at a time. Calibration activations move on block by block, through blocks already quantized, so that
later blocks see the error of earlier ones. After each block a checkpoint is saved; a stopped or killed quantization
goes on behind the last finished block.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask

from quant_engine import __version__, folders
from quant_engine.checkpoints.folder import FORMAT, Checkpoint, ledger_of
from quant_engine.data.texts import calibration_windows
from quant_engine.evaluate.task import Stopped
from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods import METHODS, Method, Options, Statistics
from quant_engine.models.catalog import find
from quant_engine.models.files import folder_of
from quant_engine.models.load import LINEARS, SEQUENTIAL_SETS, Skeleton, load_tokenizer
from quant_engine.spec import LayerRecord, Progress, RunSpec, UserError, digest

TOKENS_AT_ONCE = 4096
"""Calibration tokens that go through a block together."""


@dataclass(frozen=True)
class Hooks:
    """How a quantization is watched: told of each linear, asked after each whether to stop, and given log lines."""

    progress: Callable[[Progress], None] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False
    log: Callable[[str], None] = lambda line: None


def checkpoint_id(spec: RunSpec) -> str:
    """Identifies quantized weights: all runs of a resolved spec that differ only in tasks share them."""
    kept = spec.model_dump(mode="json", include={"model", "revision", "setting", "calibration", "seed", "dtype"})
    return digest({**kept, "format": FORMAT})


def quantize(spec: RunSpec, hooks: Hooks) -> Path:
    """The checkpoint folder of a resolved spec's model and setting: found if made before, else made or completed.

    Raises UserError where the user can change something, and Stopped when asked to stop (finished blocks are kept).
    """
    checkpoint = Checkpoint(folders.checkpoints() / checkpoint_id(spec))
    if checkpoint.is_complete():
        return checkpoint.path
    with _alone(checkpoint.path, hooks):
        if not checkpoint.is_complete():
            with torch.inference_mode():
                _Pipeline(spec, checkpoint, hooks).run()
    return checkpoint.path


@contextmanager
def _alone(path: Path, hooks: Hooks) -> Iterator[None]:
    """Waits until no other process makes the same checkpoint. The lock ends with its process, however that ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("a")
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror}): make it writable, or set LOWBIT_HOME to another folder."
        ) from None
    with lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                hooks.progress(Progress(stage="waiting", message="another process is quantizing the same model"))
                if hooks.should_stop():
                    raise Stopped from None
                time.sleep(0.5)
        yield


class _SeenEnough(Exception):
    """Leaves a block's forward pass in the middle."""


class _Pipeline:
    def __init__(self, spec: RunSpec, checkpoint: Checkpoint, hooks: Hooks) -> None:
        self.spec, self.checkpoint, self.hooks = spec, checkpoint, hooks
        self.card = find(spec.model)
        # The revision of a demo model or a folder is our own fingerprint; only the hub's means something to the hub.
        self.hub_revision = spec.revision if self.card.origin == "hub" else None
        hooks.progress(Progress(stage="loading", message=f"loading {self.card.title}"))
        folder = folder_of(self.card, self.hub_revision)
        self.skeleton = Skeleton(self.card, folder, getattr(torch, spec.dtype), spec.device)
        self.method: Method = METHODS[spec.setting.method]
        self.options: Options = self.method.options(spec.setting)
        self.started = time.monotonic()
        self.linears_before = 0

    def run(self) -> None:
        blocks = self.skeleton.blocks
        done = self.checkpoint.finished_blocks()
        if done:
            self.hooks.log(f"{done} of {len(blocks)} blocks were finished before; going on behind them.")
        self.linears_before = done * len(LINEARS)
        hidden = self._calibration_hidden() if self.method.card.calibrated else None
        for index in range(len(blocks)):
            if index < done:
                if hidden is None:
                    continue
                self._say("calibrating", index, message="running finished blocks again")
                self.checkpoint.fill_block(index, blocks[index], self.spec.device, self.skeleton.dtype)
            else:
                self._quantize_block(index, hidden)
            # The last block's outputs are not needed.
            if hidden is not None and index + 1 < len(blocks):
                self._forward(blocks[index], hidden)
            self.skeleton.release_block(index)
            if self.hooks.should_stop():
                raise Stopped
        self.checkpoint.finish(
            {
                "format": FORMAT,
                "engine": __version__,
                "model": self.spec.model,
                "revision": self.spec.revision,
                "hub_revision": self.hub_revision,
                "setting": self.spec.setting.model_dump(mode="json"),
                "calibration": self.spec.calibration and self.spec.calibration.model_dump(mode="json"),
                "seed": self.spec.seed,
                "dtype": self.spec.dtype,
                "blocks": len(blocks),
            }
        )

    def _calibration_hidden(self) -> torch.Tensor:
        """The inputs of the first block for all calibration windows: [samples, length, hidden]."""
        self.hooks.progress(Progress(stage="calibrating", message="reading the calibration text"))
        windows = calibration_windows(self.spec.calibration, load_tokenizer(self.skeleton.folder))
        self.skeleton.fill_outside_blocks()
        decoder = self.skeleton.decoder
        hidden = decoder.embed_tokens(windows.to(self.spec.device))
        # The same for all samples and blocks: every window has positions 0 to length - 1 and a causal mask.
        positions = torch.arange(windows.shape[1], device=self.spec.device)[None]
        self.fixed = {
            "position_ids": positions,
            "position_embeddings": decoder.rotary_emb(hidden[:1], positions),
            "attention_mask": create_causal_mask(
                config=decoder.config,
                inputs_embeds=hidden[:1],
                attention_mask=None,
                past_key_values=None,
                position_ids=positions,
            ),
        }
        return hidden

    def _forward(self, block: nn.Module, hidden: torch.Tensor) -> None:
        """Sends all windows through a block, each chunk overwriting its own inputs."""
        for chunk in self._chunks(hidden):
            chunk.copy_(_first(block(chunk, **self.fixed)))

    def _chunks(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return hidden.split(max(1, TOKENS_AT_ONCE // hidden.shape[1]))

    def _quantize_block(self, index: int, hidden: torch.Tensor | None) -> None:
        block = self.skeleton.fill_block(index)
        sequential = hidden is not None and self.method.true_sequential(self.options)
        records = []
        for names in SEQUENTIAL_SETS if sequential else (LINEARS,):
            statistics = {} if hidden is None else self._collect(block, names, hidden, index)
            for name in names:
                records.append(self._quantize_linear(block, index, name, statistics.get(name)))
                if self.hooks.should_stop():
                    raise Stopped
        self.checkpoint.save_block(index, block, records)
        ledger = ledger_of(block)
        self.hooks.log(f"block {index}: {ledger.bits_per_weight:.3f} stored bits per weight")

    def _collect(
        self, block: nn.Module, names: tuple[str, ...], hidden: torch.Tensor, index: int
    ) -> dict[str, Statistics]:
        """The Hessian of each named linear's inputs; linears that share their input share one Hessian.

        The block is left as soon as the last of these inputs is seen: what comes behind it has no say here.
        """
        self._say("calibrating", index, linear=names[0] if len(names) < len(LINEARS) else None)
        shared = {name: inputs[0] for inputs in SEQUENTIAL_SETS for name in inputs}
        leaders = list(dict.fromkeys(shared[name] for name in names))
        gathered: dict[str, Statistics] = {}

        def gather(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
                if name not in gathered:
                    gathered[name] = Statistics(torch.zeros((x.shape[1],) * 2, device=x.device), len(hidden))
                # Scaled as it is added up: the mean over samples of 2 x x^T.
                gathered[name].hessian.addmm_(x.T, x, alpha=2 / len(hidden))
                if name == leaders[-1]:
                    raise _SeenEnough

            return hook

        handles = [block.get_submodule(name).register_forward_pre_hook(gather(name)) for name in leaders]
        try:
            for chunk in self._chunks(hidden):
                with suppress(_SeenEnough):
                    block(chunk, **self.fixed)
                if self.hooks.should_stop():
                    raise Stopped
        finally:
            for handle in handles:
                handle.remove()
        return {name: gathered[shared[name]] for name in names}

    def _quantize_linear(self, block: nn.Module, index: int, name: str, statistics: Statistics | None) -> LayerRecord:
        started = time.monotonic()
        layer = block.get_submodule(name)
        weight = layer.weight.float()
        stored = self.method.quantize(
            weight.clone(),
            statistics,
            self.spec.setting,
            self.options,
            lambda line: self.hooks.log(f"block {index} {name}: {line}"),
        )
        seconds = time.monotonic() - started
        change = weight - stored.dequantize()
        record = LayerRecord(
            block=index,
            linear=name,
            out_features=stored.out_features,
            in_features=stored.in_features,
            stored_bits=stored.ledger().bits_per_weight,
            weight_error=(change.square().sum() / weight.square().sum()).item(),
            output_error=None if statistics is None else _output_error(weight, change, statistics.hessian),
            seconds=seconds,
        )
        parent, _, leaf = name.rpartition(".")
        bias = None if layer.bias is None else layer.bias.data
        setattr(block.get_submodule(parent), leaf, QuantLinear(stored, bias))
        self._say("quantizing", index, linear=name, output_error=record.output_error, finished=True)
        return record

    def _say(
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
        blocks = len(self.skeleton.blocks)
        done = block * len(LINEARS) + (LINEARS.index(linear) + finished if linear else 0)
        total = blocks * len(LINEARS)
        fresh = done - self.linears_before
        elapsed = time.monotonic() - self.started
        self.hooks.progress(
            Progress(
                stage=stage,
                fraction=done / total,
                block=block + 1,
                blocks=blocks,
                linear=linear,
                output_error=output_error,
                eta_s=elapsed / fresh * (total - done) if fresh > 0 else None,
                message=message,
            )
        )


def _first(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _output_error(weight: torch.Tensor, change: torch.Tensor, hessian: torch.Tensor) -> float:
    """||X (W - Q)^T||^2 / ||X W^T||^2, by the Hessian of X."""
    before = ((weight @ hessian) * weight).sum()
    return (((change @ hessian) * change).sum() / before).item() if before > 0 else 0.0
