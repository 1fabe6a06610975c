"""What each linear of a run's model lost, as far as that is known: block by block while it is quantized.

Finished blocks are read from the checkpoint folder, and once each; a finished run has them in its own folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from leaderboard.run_figures import LINEARS
from quant_engine import checkpoint_files
from quant_engine.results import LayerRecord
from quant_engine.runs import folder as run_folder
from quant_engine.runs.queue import QueuedRun
from quant_engine.spec import UserError

WORKING_STAGES = ("calibrating", "quantizing")


@dataclass(frozen=True)
class LinearError:
    """What a quantized linear lost, as relative errors (see results.LayerRecord), None where not measured (yet), and
    the bits that it stores per weight."""

    block: int
    linear: str
    weight_error: float | None
    output_error: float | None
    stored_bits: float


@dataclass(frozen=True)
class ErrorMap:
    """Blocks × linears. `errors` has the cells whose error is known, by (block, linear), and `bits` all that are
    quantized; `what` is the error's name, empty while there is none. `working` is the block in work with its linear, or
    None for all of its linears."""

    blocks: int
    linears: tuple[str, ...]
    what: str
    errors: dict[tuple[int, str], float]
    bits: dict[tuple[int, str], float]
    working: tuple[int, str | None] | None = None

    @property
    def finished_blocks(self) -> int:
        return len({block for block, _ in self.bits})


def error_map(run: QueuedRun) -> ErrorMap | None:
    """The map of a run; None where nothing is quantized, or nothing is known of it."""
    weights, progress = run.spec.weights, run.progress
    if weights.setting.method == "fp16" or weights.checkpoint is not None:
        return None
    if run.state == "done":
        rows = _rows_of_run(run.run_id)
        return _arranged(rows, len({row.block for row in rows})) if rows else None
    rows = _rows_of_checkpoint(checkpoint_files.checkpoint_folder(weights))
    blocks = max(len({row.block for row in rows}), progress.blocks or 0)
    if not blocks:
        return None
    working = None
    if run.state == "running" and progress.stage in WORKING_STAGES and progress.block:
        linear = progress.linear and progress.linear.rpartition(".")[2]
        working = progress.block - 1, linear
        if not rows and progress.block > 1:  # it is quantized on another machine
            return None
    return _arranged(rows, blocks, working, progress.output_error)


def _arranged(
    rows: Sequence[LinearError],
    blocks: int,
    working: tuple[int, str | None] | None = None,
    latest_error: float | None = None,
) -> ErrorMap:
    """The map of finished linears. `latest_error` is the output error of the linear in work."""
    names = {row.linear for row in rows} or set(LINEARS)
    linears = tuple(sorted(names, key=lambda name: LINEARS.index(name) if name in LINEARS else len(LINEARS)))
    outputs = {(row.block, row.linear): row.output_error for row in rows}
    weights = {(row.block, row.linear): row.weight_error for row in rows}
    what, errors = "", {}
    if None not in outputs.values():
        what, errors = "output error", outputs
        if latest_error is not None and working and working[1]:
            errors = errors | {working: latest_error}
    elif None not in weights.values():
        what, errors = "weight error", weights
    bits = {(row.block, row.linear): row.stored_bits for row in rows}
    return ErrorMap(blocks, linears, what if errors else "", errors, bits, working)


def _rows_of_run(run_id: str) -> Sequence[LinearError]:
    file = run_folder.run_path(run_id) / "layers.parquet"
    try:
        return _rows_of_run_file(file, file.stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=8)
def _rows_of_run_file(file: Path, stamp: int) -> tuple[LinearError, ...]:
    return _rows(run_folder.read_layers(file.parent))


def _rows_of_checkpoint(folder: Path) -> Sequence[LinearError]:
    """The linears of finished blocks. The files are looked at, and read only if another block is finished."""
    count = checkpoint_files.finished_blocks(folder)
    try:
        files = [checkpoint_files.block_file(folder, index) for index in range(count)]
        stamps = tuple(file.stat().st_mtime_ns for file in files)
        losses = folder / checkpoint_files.LOSSES
        return _rows_of_folder(folder, stamps, losses.stat().st_mtime_ns if losses.exists() else 0)
    except (OSError, UserError):  # it is deleted just now, or damaged, which the run itself says
        return ()


@lru_cache(maxsize=4)
def _rows_of_folder(folder: Path, stamps: tuple[int, ...], losses_stamp: int) -> tuple[LinearError, ...]:
    if losses_stamp:
        return _rows(checkpoint_files.layer_records(folder))
    files = (checkpoint_files.block_file(folder, index) for index in range(len(stamps)))
    return tuple(row for file, stamp in zip(files, stamps, strict=True) for row in _rows_of_block(file, stamp))


@lru_cache(maxsize=512)
def _rows_of_block(file: Path, stamp: int) -> tuple[LinearError, ...]:
    return _rows(checkpoint_files.records_of_block(file))


def _rows(records: Sequence[LayerRecord]) -> tuple[LinearError, ...]:
    return tuple(
        LinearError(
            record.block,
            record.linear.rpartition(".")[2],
            record.weight_error,
            record.output_error,
            record.stored_bits,
        )
        for record in records
    )
