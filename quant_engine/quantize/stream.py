"""The pipeline: stream decoder blocks, collect statistics, call the method on each linear, swap the layer.

One block is dense at a time. Calibration activations move on block by block, through blocks already quantized, so that
later blocks see the error of earlier ones; through original blocks for methods that want it so. After each block a
checkpoint is saved; a stopped or killed quantization goes on behind the last finished block. What a method trains on
the whole model comes before all blocks, and is kept beside them until all are finished.
"""

from __future__ import annotations

import fcntl
import gc
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from quant_engine import __version__, folders
from quant_engine.checkpoints.folder import FORMAT, Checkpoint, ledger_of
from quant_engine.data import pictures
from quant_engine.data.texts import calibration_windows
from quant_engine.kernels.linear import QuantLinear
from quant_engine.methods import METHODS, Layer, Method, Options, Statistics, Training
from quant_engine.methods.block import CalibratedBlock, block_kwargs, first_inputs
from quant_engine.models.catalog import model_card
from quant_engine.models.files import folder_of
from quant_engine.models.load import (
    LINEARS,
    SEQUENTIAL_SETS,
    Loaded,
    Skeleton,
    load_dense,
    load_processor,
    load_tokenizer,
)
from quant_engine.progress import Hooks, Progress, Stopped
from quant_engine.quantize.inputs import picture_inputs
from quant_engine.results import LayerRecord
from quant_engine.spec import Calibration, RunSpec, UserError, digest

if TYPE_CHECKING:
    from quant_engine.finetune.training import FineTuning

TRAINING_SHARE = 0.9
"""The part of quantization's progress that training fills, where a method trains."""

MEASURED_ON = Calibration(samples=4)
"""What linears get as inputs where the method looks at no data, so that their output error can be told all the same."""

HISTOGRAM_PARTS = 81
HISTOGRAM_REACH = 4.5
"""How far histograms of weights reach, in root mean squares of the weights."""


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


class _Pipeline:
    def __init__(self, spec: RunSpec, checkpoint: Checkpoint, hooks: Hooks) -> None:
        self.spec, self.checkpoint, self.hooks = spec, checkpoint, hooks
        self.card = model_card(spec.model)
        # The revision of a demo model or a folder is our own fingerprint; only the hub's means something to the hub.
        self.hub_revision = spec.revision if self.card.origin == "hub" else None
        hooks.progress(Progress(stage="loading", message=f"loading {self.card.title}"))
        self.folder = folder_of(self.card, self.hub_revision)
        self.method: Method = METHODS[spec.setting.method]
        self.options: Options = self.method.options(spec.setting)
        self.calibration = spec.calibration or MEASURED_ON
        self.training_folder = checkpoint.path / "training"
        self.trained: dict[str, torch.Tensor] = {}
        self.training_seconds = 0.0
        self.fine_tuning = self._fine_tuning() if self.method.fine_tunes else None

    def _fine_tuning(self) -> FineTuning:
        # Not above: peft takes seconds to load.
        from quant_engine.finetune.training import FineTuning

        def progress(one: Progress) -> None:
            fraction = 1 - TRAINING_SHARE + TRAINING_SHARE * one.fraction
            self.hooks.progress(one.model_copy(update={"fraction": fraction}))

        hooks = Hooks(progress, self.hooks.should_stop, self.hooks.log)
        return FineTuning(self.spec, self.options, self.card, self.folder, self.checkpoint, hooks)

    def run(self) -> None:
        if self.method.train:
            self.trained = self._trained()
        with torch.inference_mode():
            self._stream()
        if self.fine_tuning:
            self.fine_tuning.run()
        self._finish()
        shutil.rmtree(self.training_folder, ignore_errors=True)

    def _stream(self) -> None:
        self.skeleton = Skeleton(self.card, self.folder, getattr(torch, self.spec.dtype), self.spec.device)
        self.started = time.monotonic()
        blocks = self.skeleton.blocks
        done = self.checkpoint.finished_blocks()
        if done:
            self.hooks.log(f"{done} of {len(blocks)} blocks were finished before; going on behind them.")
        self.linears_before = done * len(LINEARS)
        hidden = self._calibration_hidden()
        for index in range(len(blocks)):
            # The last block's outputs are not needed.
            last = index + 1 == len(blocks)
            if index >= done:
                hidden = self._quantize_block(index, hidden, last=last)
            elif not last:
                self._say("calibrating", index, message="running finished blocks again")
                if self.method.original_inputs:
                    self.skeleton.fill_block(index)
                else:
                    self.checkpoint.fill_block(index, blocks[index], self.spec.device, self.skeleton.dtype)
                self._calibrated(index, hidden).advance(hidden)
            self.skeleton.release_block(index)
            self._check_stop()

    def _finish(self) -> None:
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
                "blocks": len(self.skeleton.blocks),
                "fine_tuning": self.fine_tuning and self.fine_tuning.said,
            }
        )

    def _trained(self) -> dict[str, torch.Tensor]:
        """What the method trains on the whole dense model: found, if it was done before an interruption, else made."""
        kept = self.training_folder / "trained.safetensors"
        try:
            if not kept.exists():
                self._train(kept)
            trained = load_file(kept, device=self.spec.device)
        except (OSError, SafetensorError):
            raise UserError(f"{kept} can't be written or read back: delete {self.training_folder}.") from None
        self.training_seconds = trained.pop("seconds").item()
        return trained

    def _train(self, kept: Path) -> None:
        started = time.monotonic()
        self.training_folder.mkdir(parents=True, exist_ok=True)
        loaded = load_dense(self.card, self.hub_revision, self.spec.dtype, self.spec.device)
        model = loaded.model
        training = Training(
            model=model,
            decoder=model.model.language_model if self.card.pictures else model.model,
            sets=SEQUENTIAL_SETS,
            windows=calibration_windows(self.spec.calibration, loaded.tokenizer).to(self.spec.device),
            setting=self.spec.setting,
            options=self.options,
            seed=self.spec.seed,
            folder=self.training_folder,
            progress=lambda share, message: self.hooks.progress(
                Progress(stage="training", fraction=TRAINING_SHARE * share, message=message)
            ),
            check_stop=self._check_stop,
            log=self.hooks.log,
        )
        trained = self.method.train(training)
        seconds = torch.tensor(time.monotonic() - started, dtype=torch.float64)
        aside = kept.with_suffix(".part")
        save_file({**{name: tensor.cpu() for name, tensor in trained.items()}, "seconds": seconds}, aside)
        aside.replace(kept)
        del loaded, model, training, trained
        gc.collect()

    def _check_stop(self) -> None:
        if self.hooks.should_stop():
            raise Stopped

    def _calibration_hidden(self) -> torch.Tensor:
        """The inputs of the first block for all calibration windows: [samples, length, hidden]."""
        skeleton, calibration = self.skeleton, self.calibration
        self.hooks.progress(Progress(stage="calibrating", message="reading the calibration data"))
        tokenizer = load_tokenizer(skeleton.folder)
        if not pictures.named(calibration.source):
            windows = calibration_windows(calibration, tokenizer)
            skeleton.fill_outside_blocks()
            hidden, self.block_kwargs = first_inputs(skeleton.decoder, windows.to(self.spec.device))
            return hidden
        skeleton.fill_outside_blocks()
        processor = load_processor(skeleton.folder, tokenizer)
        loaded = Loaded(self.card, skeleton.model, tokenizer, processor, 16.0, skeleton.folder)
        turns = pictures.turns(calibration.source, calibration.seed)
        hidden = picture_inputs(loaded, turns, calibration.samples, calibration.length)
        self.block_kwargs = block_kwargs(skeleton.decoder, hidden)
        return hidden

    def _calibrated(self, index: int, hidden: torch.Tensor) -> CalibratedBlock:
        return CalibratedBlock(self.skeleton.blocks[index], hidden, self.block_kwargs, self._check_stop)

    def _quantize_block(self, index: int, hidden: torch.Tensor, *, last: bool) -> torch.Tensor:
        """Quantizes and saves a block. Returns the inputs of the next one."""
        block = self.skeleton.fill_block(index)
        calibrated = self._calibrated(index, hidden)
        following = hidden
        if self.method.original_inputs and not last:
            following = torch.empty_like(hidden)
            calibrated.advance(following)
        # What was done for all of a block's linears together, or all of a model's, is shared out evenly.
        shared_seconds = self.training_seconds / len(self.skeleton.blocks)
        if self.method.prepare:
            started = time.monotonic()
            self._say("calibrating", index, message="preparing the block")
            self.method.prepare(
                calibrated, self.spec.setting, self.options, lambda line: self.hooks.log(f"block {index}: {line}")
            )
            shared_seconds += time.monotonic() - started
        records = []
        for names in SEQUENTIAL_SETS if self.method.true_sequential(self.options) else (LINEARS,):
            statistics = self._collect(calibrated, names, index)
            for name in names:
                record = self._quantize_linear(block, index, name, statistics[name])
                records.append(record.model_copy(update={"seconds": record.seconds + shared_seconds / len(LINEARS)}))
                self._check_stop()
        self.checkpoint.save_block(index, block, records)
        ledger = ledger_of(block)
        self.hooks.log(
            f"block {index}: {ledger.bits_per_weight:.3f} stored bits per weight, headline {ledger.headline_bits:.3f}"
        )
        if not self.method.original_inputs and not last:
            calibrated.advance(hidden)
        return following

    def _collect(self, block: CalibratedBlock, names: tuple[str, ...], index: int) -> dict[str, Statistics]:
        """What the named linears' inputs look like; linears that share their input share one Hessian."""
        self._say("calibrating", index, linear=names[0] if len(names) < len(LINEARS) else None)
        shared = {name: inputs[0] for inputs in SEQUENTIAL_SETS for name in inputs}
        leaders = list(dict.fromkeys(shared[name] for name in names))
        samples, length = block.hidden.shape[:2]
        stride = max(1, samples * length // self.method.input_tokens) if self.method.input_tokens else 0
        hessians: dict[str, torch.Tensor] = {}
        kept: dict[str, list[torch.Tensor]] = {name: [] for name in leaders}
        tokens = dict.fromkeys(leaders, 0)

        def see(name: str, x: torch.Tensor) -> None:
            x = x.reshape(-1, x.shape[-1]).float()
            if name not in hessians:
                hessians[name] = torch.zeros((x.shape[1],) * 2, device=x.device)
            # Scaled as it is added up: the mean over samples of 2 x x^T.
            hessians[name].addmm_(x.T, x, alpha=2 / samples)
            if stride:
                kept[name].append(x[-tokens[name] % stride :: stride].clone())
                tokens[name] += len(x)

        block.watch(leaders, see)
        inputs = {name: torch.cat(parts) if parts else None for name, parts in kept.items()}
        return {
            name: Statistics(
                hessians[shared[name]],
                samples,
                linear=name,
                seed=int(digest([self.spec.seed, index, name])[:8], 16),
                inputs=inputs[shared[name]],
                trained=self._trained_of(f"{index}.{name}."),
            )
            for name in names
        }

    def _trained_of(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.trained.items() if name.startswith(prefix)}

    def _quantize_linear(self, block: nn.Module, index: int, name: str, statistics: Statistics) -> LayerRecord:
        started = time.monotonic()
        layer = block.get_submodule(name)
        weight = layer.weight.float()
        stored = self.method.quantize(
            Layer(
                weight.clone(),
                statistics if self.method.card.calibrated else None,
                self.spec.setting,
                self.options,
                lambda line: self.hooks.log(f"block {index} {name}: {line}"),
            )
        )
        seconds = time.monotonic() - started
        after = stored.dequantize().float()
        change = weight - after
        reach = HISTOGRAM_REACH * weight.square().mean().sqrt().item() or 1.0
        ledger = stored.ledger()
        bias = None if layer.bias is None else layer.bias.data
        quantized = QuantLinear(stored, bias)
        if self.spec.setting.a_bits < 16:
            output_error = _sampled_output_error(layer, quantized, statistics.inputs)
        else:
            output_error = _output_error(weight, change, statistics.hessian)
        record = LayerRecord(
            block=index,
            linear=name,
            out_features=stored.out_features,
            in_features=stored.in_features,
            stored_bits=ledger.bits_per_weight,
            headline_bits=ledger.headline_bits,
            weight_error=(change.square().sum() / weight.square().sum()).item(),
            output_error=output_error,
            seconds=seconds,
            weights_reach=reach,
            weights_before=histogram(weight, reach),
            weights_after=histogram(after, reach),
        )
        parent, _, leaf = name.rpartition(".")
        setattr(block.get_submodule(parent), leaf, quantized)
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
        before = TRAINING_SHARE if self.method.train else 0
        after = TRAINING_SHARE if self.method.fine_tunes else 0
        self.hooks.progress(
            Progress(
                stage=stage,
                fraction=before + (1 - before - after) * done / total,
                block=block + 1,
                blocks=blocks,
                linear=linear,
                output_error=output_error,
                eta_s=elapsed / fresh * (total - done) if fresh > 0 else None,
                message=message,
            )
        )


def histogram(weight: torch.Tensor, reach: float) -> list[int]:
    """How many weights lie in each of HISTOGRAM_PARTS equal parts of [-reach, reach]; those beyond in the outermost."""
    counts = torch.zeros(HISTOGRAM_PARTS, dtype=torch.int64, device=weight.device)
    for part in weight.flatten().split(1 << 24):  # counts in float32, which holds no more exactly
        counts += torch.histc(part.clamp(-reach, reach), HISTOGRAM_PARTS, -reach, reach).long()
    return counts.tolist()


def _sampled_output_error(layer: nn.Module, quantized: QuantLinear, inputs: torch.Tensor) -> float:
    """The same on single inputs, where the layer changes its activations too."""
    inputs = inputs.to(layer.weight.dtype)
    expected = layer(inputs).float()
    change = quantized(inputs).float() - expected
    before = expected.square().sum()
    return (change.square().sum() / before).item() if before > 0 else 0.0


def _output_error(weight: torch.Tensor, change: torch.Tensor, hessian: torch.Tensor) -> float:
    """||X (W - Q)^T||^2 / ||X W^T||^2, by the Hessian of X."""
    before = ((weight @ hessian) * weight).sum()
    return (((change @ hessian) * change).sum() / before).item() if before > 0 else 0.0
