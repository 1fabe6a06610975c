"""Weights as a plan says: found, if they were quantized before, else made; and loaded, ready to answer."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from quant_engine import __version__, disk
from quant_engine.checkpoint_files import checkpoint_folder
from quant_engine.checkpoints.folder import Checkpoint, load_quantized
from quant_engine.formats.load import load_published, skeleton_of
from quant_engine.models.load import Loaded, check_pictures, load_dense
from quant_engine.progress import Hooks, Progress
from quant_engine.quantize.losses import measure_losses
from quant_engine.quantize.plan import WeightPlan
from quant_engine.quantize.stream import Stream
from quant_engine.quantize.whole_model import TRAINING_SHARE, trained_tensors
from quant_engine.results import LayerRecord
from quant_engine.spec import UserError

LOCK_S = 0.5


def load(plan: WeightPlan, dtype: str, device: str, hooks: Hooks, sibling: Loaded | None = None) -> Loaded:
    """The model of a plan, computing in `dtype` on `device`; quantized now, if it never was. What it has in common with
    a `sibling`, the same model in another setting, is held once.

    Raises UserError where the user can change something, and Stopped when asked to stop.
    """
    if plan.published:
        hooks.progress(Progress(stage="loading", message=f"loading {plan.published.source.location}"))
        loaded = load_published(plan.published, plan.card, dtype, device)
    elif plan.method is None:
        hooks.progress(Progress(stage="loading", message=f"loading {plan.card.title}"))
        loaded = load_dense(plan.card, plan.spec.revision, dtype, device, sibling, in_halves=True)
    else:
        path = quantize(plan, device, hooks)
        gc.collect()  # models refer to themselves in circles: what quantizing held makes room first
        hooks.progress(Progress(stage="loading", fraction=1, message="loading the quantized model"))
        loaded = load_quantized(path, dtype, device, sibling)
    loaded.revision = (plan.spec.checkpoint or plan.spec).revision
    return loaded


def check_takes_pictures(plan: WeightPlan, dtype: str, device: str) -> None:
    """Raises UserError, before any work, if questions about pictures can't be put to a plan's model."""
    if plan.published:
        skeleton_of(plan.published, plan.card, dtype, device).load_processor()
    else:
        check_pictures(plan.card, plan.spec.revision)


def quantize(plan: WeightPlan, device: str, hooks: Hooks, *, with_tokenizer: bool = True) -> Path:
    """The checkpoint folder of a plan's weights: found if made before, else made or completed, on `device`. Without
    `with_tokenizer` nothing is said of a model whose tokenizer can't be read, unless calibrating takes it.

    Raises UserError where the user can change something, and Stopped when asked to stop (finished blocks are kept).
    """
    checkpoint = Checkpoint(checkpoint_folder(plan.spec))
    if not checkpoint.is_complete():
        with _locked(checkpoint.path, hooks):
            if not checkpoint.is_complete():
                _make(plan, checkpoint, device, hooks, with_tokenizer)
    return checkpoint.path


def layer_records(plan: WeightPlan, device: str, hooks: Hooks) -> list[LayerRecord]:
    """What each linear of a plan's finished checkpoint cost. What it lost, where the method looked at no data, is
    measured now and saved with it. Raises as `quantize` does."""
    checkpoint = Checkpoint(checkpoint_folder(plan.spec))
    if any(record.output_error is None for record in checkpoint.records()):

        def watch(block: int, blocks: int) -> None:
            hooks.check_stop()
            hooks.progress(Progress(stage="evaluating", message=f"errors of block {block + 1} of {blocks}"))

        losses = measure_losses(plan, checkpoint, device, watch)
        try:
            checkpoint.save_losses(losses)
        except OSError as error:
            raise _unwritable(checkpoint.path, error) from error
        gc.collect()
    return checkpoint.records()


def adopt(path: Path, hooks: Hooks) -> None:
    """Makes the finished checkpoint in `path` the one that is found for its weights.

    A folder that was moved or copied from elsewhere is copied to its place. Raises UserError if it is damaged, if this
    machine has another version of its base model, or if other weights of the same spec are in that place.
    """
    checkpoint = Checkpoint(path)
    checkpoint.base_model()
    files = checkpoint.files()
    target = checkpoint_folder(checkpoint.spec())
    if path.resolve() == target.resolve():
        return
    with _locked(target, hooks):
        disk.remove_left_overs(target)
        if not Checkpoint(target).is_complete():
            try:
                with disk.replacing_folder(target) as aside:
                    for file in files:
                        shutil.copyfile(file, aside / file.name)
            except OSError as error:
                raise _unwritable(target, error) from error
        elif not checkpoint.equals(Checkpoint(target)):
            raise UserError(
                f"{path} holds other weights than {target}, which were made from the same setting: delete one of them."
            )


@contextmanager
def _locked(path: Path, hooks: Hooks) -> Iterator[None]:
    """Waits until no other process makes the same checkpoint. The lock ends with its process, however that ends."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=LOCK_S)
            break
        except Timeout:
            hooks.progress(Progress(stage="waiting", message="another process is quantizing the same model"))
            hooks.check_stop()
        except OSError as error:
            raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path.parent} can't be written ({error.strerror}): make room there or make it writable, or set LOWBIT_HOME "
        "to another folder."
    )


def _make(plan: WeightPlan, checkpoint: Checkpoint, device: str, hooks: Hooks, with_tokenizer: bool) -> None:
    """What a method trains on the whole model comes before all blocks, adapters behind them. Both keep their state in
    the folder "training" until everything is finished."""
    hooks.progress(Progress(stage="loading", message=f"loading {plan.card.title}"))
    checkpoint.path.mkdir(parents=True, exist_ok=True)
    for left_over in checkpoint.path.glob(".*.part"):  # of a process that was killed while it wrote
        left_over.unlink()
    training = checkpoint.path / "training"
    fine_tuning = None
    if plan.fine_tunes:
        from quant_engine.finetune.training import FineTuning  # peft takes seconds to load

        fine_tuning = FineTuning(plan, checkpoint, training, device, _last_share(hooks))
    trained, seconds = trained_tensors(plan, training, device, hooks) if plan.method.train else ({}, 0.0)
    Stream(plan, checkpoint, device, hooks, trained, seconds, with_tokenizer).run()
    about = fine_tuning.run() if fine_tuning else None
    checkpoint.finish(plan.spec, engine=__version__, fine_tuning=about)
    shutil.rmtree(training, ignore_errors=True)


def _last_share(hooks: Hooks) -> Hooks:
    """Hooks whose progress fills the part of quantization's bar that fine-tuning takes."""

    def progress(state: Progress) -> None:
        fraction = 1 - TRAINING_SHARE + TRAINING_SHARE * state.fraction
        hooks.progress(state.model_copy(update={"fraction": fraction}))

    return Hooks(progress, hooks.should_stop, hooks.log)
