"""Stage "quantize" of benchmarks/gpu.py: GPTQ, RTN and AWQ with 4 bits in groups of 128, of a model in the shape of
LLaMA3-8B, calibrated on 128 windows of 2048 tokens; and a small model on the card and on the processor.

Quantizing computes in bfloat16, the type that such models come in. A method that does not end in its share of the time
is stopped behind a linear, and what all blocks would take follows from those that were finished.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from gpu_models import TINY, shape, write_folder
from gpu_report import Report, peak_bytes, reset_peak
from safetensors.torch import load_file

from quant_engine.checkpoint_files import checkpoint_folder
from quant_engine.checkpoints.folder import Checkpoint
from quant_engine.models.shapes import Shape
from quant_engine.progress import Hooks, Progress, Stopped
from quant_engine.quantize.plan import WeightPlan
from quant_engine.runs import needs, weights
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import Calibration, QuantSetting, WeightSpec

SHARES = {"gptq": 0.6, "rtn": 0.5, "awq": 1.0}
"""The part of the time left that a method may take, in this order."""
CALIBRATION, DRY_CALIBRATION = Calibration(samples=128, length=2048), Calibration(samples=4, length=32)
GPTQ_MINUTES, GPTQ_GB = 4.0, 24.0


def run(report: Report, dry: bool) -> None:
    of = shape(dry)
    with tempfile.TemporaryDirectory(prefix="low-bit-lab-model-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        report.case("the same weights as on the processor", partial(compare, report, folder / "small"))
        started = time.monotonic()
        if not report.case("writing the model", lambda: write_folder(folder / "large", of, report.device) and None):
            return
        report.add(measured="writing the random model", seconds=time.monotonic() - started)
        for method, share in SHARES.items():
            report.case(method, partial(measure, report, method, folder / "large", of, share, dry))
            gc.collect()


def setting(method: str, dry: bool) -> QuantSetting:
    return QuantSetting(method=method, w_bits=4, group_size=16 if dry else 128)


def predicted_bytes(of: Shape, asked: QuantSetting, calibration: Calibration) -> float | None:
    """The peak of quantizing as it is counted for a processor, without the process; in bfloat16 its block and windows
    take half."""
    peak = needs.peak_memory(of, asked, (), 0, 1, calibration)
    return None if peak is None else peak - needs.PROCESS


def measure(report: Report, method: str, folder: Path, of: Shape, share: float, dry: bool) -> None:
    calibration, asked = DRY_CALIBRATION if dry else CALIBRATION, setting(method, dry)
    plan = resolve_weights(WeightSpec(model=str(folder), setting=asked, calibration=calibration, dtype="bfloat16"))
    reset_peak(report.device)
    finished, seconds = quantize(plan, report.device, share * report.seconds_left)
    if not finished:
        report.leave_out(method, f"no block was finished in {seconds:.0f} s")
        return
    whole, peak = seconds * of.layers / finished, peak_bytes(report.device) / 1e9
    predicted = predicted_bytes(of, asked, plan.spec.calibration)
    report.add(
        method=asked.label, blocks=finished, seconds=seconds, seconds_of_all_blocks=whole, peak_GB=peak,
        predicted_peak_GB=predicted and predicted / 1e9,
    )  # fmt: skip
    if method == "gptq":
        report.goal("GPTQ of all blocks", whole / 60, GPTQ_MINUTES, "min", at_least=False)
        report.goal("peak memory of GPTQ", peak, GPTQ_GB, "GB", at_least=False)


def quantize(plan: WeightPlan, device: str, limit: float) -> tuple[int, float]:
    """How many blocks were finished within `limit` seconds, and the seconds until the last of them."""
    started, ends = time.monotonic(), {}

    def note(progress: Progress) -> None:
        if progress.block and progress.blocks and progress.stage == "quantizing":
            ends[progress.block] = time.monotonic() - started  # of the block's last linear so far

    try:
        weights.quantize(plan, device, Hooks(note, lambda: time.monotonic() - started > limit))
    except Stopped:
        finished = Checkpoint(checkpoint_folder(plan.spec)).finished_blocks()
        return finished, ends.get(finished, time.monotonic() - started)
    return len(ends), time.monotonic() - started


def compare(report: Report, folder: Path) -> None:
    """How many codes of a small model differ between the card and the processor, and what its linears lose."""
    write_folder(folder, TINY, "cpu")
    for method in SHARES:
        plan = resolve_weights(
            WeightSpec(model=str(folder), setting=setting(method, dry=True), calibration=DRY_CALIBRATION)
        )
        codes, errors = [], []
        for device in ("cpu", report.device):
            with _home(folder.with_name(f"{method} by {len(codes)}")):
                path = weights.quantize(plan, device, Hooks())
                records = weights.layer_records(plan, device, Hooks())
            errors.append(sum(record.output_error for record in records))
            tensors = [load_file(file) for file in sorted(path.glob("*.safetensors"))]
            codes.append([t.view(torch.uint8) for block in tensors for name, t in block.items() if "codes" in name])
        same = sum(int((here == there).sum()) for here, there in zip(*codes, strict=True))
        report.add(
            compared=plan.spec.setting.label, same_bytes_of_codes=same / sum(map(torch.numel, codes[0])),
            error_on_the_processor=errors[0], error_on_the_card=errors[1],
        )  # fmt: skip


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    """What is quantized is written to a folder of its own."""
    before = os.environ["LOWBIT_HOME"]
    os.environ["LOWBIT_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ["LOWBIT_HOME"] = before
