"""The training loop: adapters on a finished low-bit base, with its state kept so that a killed training goes on.

    training/state.safetensors   adapters and AdamW's moments; how far training is stands in the file's header

Examples, their order and dropout follow from the seed and the step, so training that was interrupted ends with the same
adapters as training that was not. When it is done, the adapters are written into the checkpoint's blocks beside the
base (weights/low_rank.py).
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from quant_engine import disk
from quant_engine.checkpoints.folder import Checkpoint
from quant_engine.finetune import adapters, examples
from quant_engine.methods.ir_qlora import IrQloraOptions
from quant_engine.models.files import folder_of
from quant_engine.models.load import Skeleton
from quant_engine.progress import Hooks, Progress, Stopped
from quant_engine.quantize.plan import WeightPlan
from quant_engine.spec import UserError

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}
"""A step's examples go through the model in parts of at most so many tokens; gradients add up."""
LARGEST_GRADIENT = 0.3
"""Norm that the gradient of a step is clipped to."""
SAVE_SECONDS = 60.0
LOGGED_STEPS = 50


class FineTuning:
    """Training of one plan's adapters. Making it reads the data, so that bad data are said before any work is done."""

    def __init__(self, plan: WeightPlan, checkpoint: Checkpoint, folder: Path, device: str, hooks: Hooks) -> None:
        self.plan, self.checkpoint, self.device, self.hooks = plan, checkpoint, device, hooks
        self.seed, self.options, self.card = plan.spec.seed, plan.options, plan.card
        self.model_folder = folder_of(plan.card, plan.spec.revision)
        self.dtype = getattr(torch, plan.spec.dtype)
        empty = Skeleton(self.card, self.model_folder, self.dtype, device)
        processor = empty.load_processor() if self.options.data == "demo" and self.card.pictures else None
        context = empty.model.config.get_text_config().max_position_embeddings
        self.examples = examples.load(self.options, self.card, empty.tokenizer, processor, self.dtype, context)
        self.state_file = folder / "state.safetensors"
        self.done: dict[str, Any] = {"step": 0, "losses": [], "seconds": 0.0, "held_out_before": None}

    def run(self) -> dict[str, Any]:
        """Trains, or goes on, writes the adapters into the checkpoint, and returns what is to be known of it.

        Raises UserError if an adapter gets no gradient or training diverges, Stopped when asked to stop.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError("Adapters can't be trained in inference mode.")
        self._load()
        self._train()
        adapters.settle(self.model)
        after = self._held_out_loss("after training")
        self._write()
        if after is not None:
            self.hooks.log(f"held-out loss {self.done['held_out_before']:.4f} before training, {after:.4f} after")
        return {
            "data": self.examples.revision,
            "train_examples": len(self.examples.train),
            "held_out_examples": len(self.examples.held_out),
            "held_out_loss_before": self.done["held_out_before"],
            "held_out_loss_after": after,
            "steps": self.done["step"],
            "losses": self.done["losses"],
            "shortcuts": self.shortcuts,
            "seconds": round(self.done["seconds"], 2),
        }

    def _load(self) -> None:
        self.hooks.progress(Progress(stage="loading", message="loading the low-bit base"))
        skeleton = Skeleton(self.card, self.model_folder, self.dtype, self.device)
        skeleton.fill_outside_blocks()
        for index, block in enumerate(skeleton.blocks):
            self.checkpoint.fill_block(index, block, self.device, self.dtype)
        adapters.unsettle(skeleton.model)
        torch.manual_seed(self.seed)
        adapters.attach(skeleton.model, skeleton.block_prefix(0).removesuffix("0."), self.options)
        self.skeleton, self.model = skeleton, skeleton.model
        self.trained = adapters.trained(self.model)
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=self.options.learning_rate, betas=(0.9, 0.999), weight_decay=0.0
        )
        values = sum(parameter.numel() for parameter in self.trained.values())
        train, held_out = len(self.examples.train), len(self.examples.held_out)
        self.hooks.log(f"{values:,} adapter values; {train:,} examples to train on, {held_out:,} held out")
        self._restore()

    def _train(self) -> None:
        options, steps = self.options, self.options.steps
        if self.done["step"] == 0:
            self.done["held_out_before"] = self._held_out_loss("before training")
        self._set_training(True)
        begun, first, saved = time.monotonic(), self.done["step"], time.monotonic()
        spent_before = self.done["seconds"]
        for step in range(first, steps):
            torch.manual_seed(self.seed * 1_000_003 + step)
            loss = self._step(self.examples.step(step, options.batch, self.seed), check=step == first)
            self.done["step"] = step + 1
            self.done["seconds"] = spent_before + time.monotonic() - begun
            if (step + 1) % max(1, steps // LOGGED_STEPS) == 0 or step + 1 == steps:
                self.done["losses"].append([step + 1, round(loss, 5)])
                self.hooks.log(f"step {step + 1} of {steps}: loss {loss:.4f}")
            self._report(f"step {step + 1} of {steps}, loss {loss:.3f}", (step + 1) / steps, begun, first)
            stop = self.hooks.should_stop()
            if stop or step + 1 == steps or time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
            if stop:
                raise Stopped
        self._set_training(False)
        self.shortcuts = self._shortcuts()

    def _step(self, wanted: list[examples.Example], check: bool) -> float:
        """One optimizer step; the mean loss of its answer tokens."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = examples.batches(wanted, TOKENS_AT_ONCE[self.device], self.device)
        answers = sum(_answered(part) for part in parts)
        total = 0.0
        for part in parts:
            loss = summed_loss(self.model, part) / answers
            loss.backward()
            total += loss.item()
        if check:
            adapters.check_gradients(self.model)
        norm = nn.utils.clip_grad_norm_(self.trained.values(), LARGEST_GRADIENT)
        if not (math.isfinite(total) and torch.isfinite(norm)):
            raise UserError(f"Training diverged in step {self.done['step'] + 1}; try a smaller learning_rate.")
        self.optimizer.step()
        return total

    def _held_out_loss(self, when: str) -> float | None:
        """Mean loss of the held-out answers' tokens, in nats; None if nothing is held out."""
        held_out = self.examples.held_out
        if not held_out:
            return None
        self._set_training(False)
        total, answers, seen = 0.0, 0, 0
        with torch.no_grad():
            for part in examples.batches(held_out, TOKENS_AT_ONCE[self.device], self.device):
                total += summed_loss(self.model, part).item()
                answers += _answered(part)
                seen += len(part["input_ids"])
                self.hooks.progress(
                    Progress(
                        stage="training",
                        fraction=self.done["step"] / self.options.steps,
                        message=f"held-out examples {when}: {seen} of {len(held_out)}",
                    )
                )
                self.hooks.check_stop()
        return total / answers

    def _set_training(self, on: bool) -> None:
        self.model.train(on)
        if self.card.pictures:
            self.model.model.vision_tower.eval()
        if not self.options.gradient_checkpointing:
            return
        if on:
            self.model.activation_checkpointing_enable()
        else:
            self.model.activation_checkpointing_disable()

    def _shortcuts(self) -> dict[str, float] | None:
        """Mean magnitudes of the trained shortcuts. Raises UserError if they have not moved."""
        if not isinstance(self.options, IrQloraOptions):
            return None
        means = {}
        for kind in ("lora_shortcut_in", "lora_shortcut_out"):
            values = [getattr(layer, kind)[adapters.NAME].item() for _, layer in adapters.adapted(self.model)]
            means[kind.removeprefix("lora_")] = sum(map(abs, values)) / len(values)
        # The first step moves one of them only: the other's gradient is zero until then.
        if self.done["step"] > 1 and not all(means.values()):
            raise UserError("The shortcuts of IR-QLoRA's adapters were not trained.")
        return means

    def _write(self) -> None:
        """The adapters beside the base, block by block; each block is replaced in one step."""
        records = self.checkpoint.records()
        for index, block in enumerate(self.skeleton.blocks):
            changed = []
            for record in records:
                if record.block == index:
                    ledger = block.get_submodule(record.linear).weight.ledger()
                    changed.append(record.model_copy(update={"stored_bits": ledger.bits_per_weight}))
            self.checkpoint.save_block(index, block, changed)

    def _save(self) -> None:
        tensors = {}
        for name, parameter in self.trained.items():
            state = self.optimizer.state[parameter]
            tensors |= {f"value.{name}": parameter.detach()}
            tensors |= {f"{moment}.{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
        metadata = {"done": json.dumps(self.done), "data": self.examples.revision}
        with disk.replacing(self.state_file) as aside:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, aside, metadata)

    def _restore(self) -> None:
        """Goes on where an earlier training was saved. Raises UserError if its data were others."""
        if not self.state_file.exists():
            return
        try:
            with safe_open(self.state_file, "pt", device=self.device) as file:
                metadata = file.metadata()
                done = json.loads(metadata["done"])
                if metadata["data"] != self.examples.revision:
                    raise UserError(f"The training data have changed since training began: delete {self.state_file}.")
                for name, parameter in self.trained.items():
                    parameter.data = file.get_tensor(f"value.{name}")
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(done["step"])),
                        **{moment: file.get_tensor(f"{moment}.{name}") for moment in ("exp_avg", "exp_avg_sq")},
                    }
        except (OSError, KeyError, ValueError, SafetensorError):
            raise UserError(f"The state of training is damaged: delete {self.state_file}.") from None
        self.done = done
        self.hooks.log(f"{done['step']} of {self.options.steps} training steps were done before; going on behind them.")

    def _report(self, message: str, fraction: float, begun: float, first: int) -> None:
        rate = (time.monotonic() - begun) / (self.done["step"] - first)
        left = rate * (self.options.steps - self.done["step"])
        self.hooks.progress(Progress(stage="training", fraction=fraction, message=message, eta_s=left))


def summed_loss(model: nn.Module, part: dict[str, Any]) -> torch.Tensor:
    """The sum of the losses of all answer tokens of a batch (`labels` other than -100), in nats.

    Only the places that predict such a token go through the output head: logits for all would be the largest tensor.
    """
    inputs = {name: tensor for name, tensor in part.items() if name != "labels"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    labels = part["labels"][:, 1:]
    wanted = labels != examples.IGNORED
    return cross_entropy(model.lm_head(hidden[:, :-1][wanted]).float(), labels[wanted], reduction="sum")


def _answered(part: dict[str, Any]) -> int:
    return int((part["labels"][:, 1:] != examples.IGNORED).sum())
