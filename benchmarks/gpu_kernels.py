"""Stage "kernels" of benchmarks/gpu.py: the product of each storage form at LLaMA3-8B's shapes, as a share of the
bandwidth that the card copies with; and many rows against a dense product in bfloat16.

Bytes are those of the stored weight, its inputs and its outputs; the copy counts bytes read and written. So many copies
of a weight take turns that none is found in the card's cache, and all of them are launched as one graph, so that what
is measured is the card and not the program that launches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from gpu_models import filled, shape
from gpu_report import Report
from kernels import FORMS as ALL_FORMS

from quant_engine.kernels import gpu
from quant_engine.kernels.matmul import matmul
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.grouped import GroupedInt

GROUP = 128
ROWS, DRY_ROWS = (1, 2, 4, 8, 16), (1, 3)
MANY_ROWS, DRY_MANY_ROWS = (64, 512, 2048), (20,)
COPY_BYTES, DRY_COPY_BYTES = 2**31, 2**20
BEYOND_CACHE = 4 * 2**26
"""Bytes of weights that take turns: several times the cache of any card."""
REPLAYS = 10
GOAL = 0.6
"""The share of the copy bandwidth that products of one row with 4 bits should reach."""

Work = Sequence[Callable[[], object]]

FORMS: dict[str, Callable[[int, int], StoredWeight]] = {
    **{
        f"W{bits} g{GROUP}": partial(lambda m, n, bits: filled(GroupedInt(m, n, bits, GROUP, False, False)), bits=bits)
        for bits in (4, 3, 2, 8, 1, 5, 6, 7)
    },
    f"W4 g{GROUP} symmetric": lambda m, n: filled(GroupedInt(m, n, 4, GROUP, True, False)),
    **{
        name: ALL_FORMS[name]
        for name in (
            *("NF4", "NF3", "NF2", "NF4 shifted", "NF4 low rank", "rotated 4", "rotated 2", "binary"),
            *("partly binary", "residual binary", "dual binary", "mixed 2-4", "W4A4", "W8A8"),
        )
    },
}
DRY_FORMS = (f"W4 g{GROUP}", f"W3 g{GROUP}", "NF4", "partly binary")


def run(report: Report, dry: bool) -> None:
    device, of = report.device, shape(dry)
    copied = 1.0

    def copy() -> None:
        nonlocal copied
        copied = copy_bandwidth(device, DRY_COPY_BYTES if dry else COPY_BYTES)
        report.add(measured="copy", GB_per_s=copied / 1e9)

    report.case("copy bandwidth", copy)
    linears = list(dict.fromkeys(of.linears))[-1 if dry else 0 :]
    predicted = max(m * n for m, n in linears) * 2 + BEYOND_CACHE + 3 * (DRY_COPY_BYTES if dry else COPY_BYTES)
    report.add(predicted="peak memory", GB=predicted / 1e9)
    for form in DRY_FORMS if dry else FORMS:
        for m, n in linears:
            report.case(f"{form} {m}x{n}", partial(few_rows, report, form, m, n, copied, dry))
    for form in DRY_FORMS if dry else FORMS:
        m, n = linears[-1]
        report.case(f"{form} {m}x{n}, many rows", partial(many_rows, report, form, m, n, dry))
    shares = [row["of_copy"] for row in report.rows if row.get("form") == f"W4 g{GROUP}" and row["rows"] == 1]
    if shares:
        what = f"W4 g{GROUP} with one row, the least share of the copy bandwidth at these shapes"
        report.goal(what, min(shares), GOAL, "of it", at_least=True)


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes read and written by the second where large tensors are copied on the device."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_each([lambda: target.copy_(source)] * 3, device)


def few_rows(report: Report, form: str, m: int, n: int, copied: float, dry: bool) -> None:
    """A row of the report for each number of activation rows."""
    for rows in DRY_ROWS if dry else ROWS:
        weights = list(copies(form, m, n, report.device, 1 if dry else BEYOND_CACHE))
        x = torch.randn((rows, n), device=report.device, dtype=torch.float32 if dry else torch.bfloat16)
        by_kernel = isinstance(weights[0], gpu.FORMS)
        if by_kernel and not gpu.fits(weights[0], x.dtype):
            report.leave_out(f"{form} {m}x{n}", "the kernel does not compile here, or its products are off")
            return
        product = gpu.multiply if by_kernel else matmul
        # A tensor of a graph that is not kept would be reused by the next product: all of them are.
        work = [partial(product, x, weight) for weight in weights]
        seconds = seconds_each(work, report.device)
        moved = weights[0].stored_bytes() + x.nbytes + 4 * rows * m
        report.add(
            form=form, shape=f"{m}x{n}", rows=rows, us=1e6 * seconds, GB_per_s=moved / seconds / 1e9,
            of_copy=moved / seconds / copied, by="kernel" if by_kernel else "all of the product",
        )  # fmt: skip


def many_rows(report: Report, form: str, m: int, n: int, dry: bool) -> None:
    """As prompts are read: against a dense product in the same type."""
    with torch.device(report.device):
        weight, dtype = FORMS[form](m, n), torch.float32 if dry else torch.bfloat16
        dense = torch.randn((m, n), dtype=dtype)
    for rows in DRY_MANY_ROWS if dry else MANY_ROWS:
        x = torch.randn((rows, n), device=report.device, dtype=dtype)
        seconds = seconds_each([lambda x=x: matmul(x, weight)], report.device)
        dense_seconds = seconds_each([lambda x=x: x @ dense.T] * 4, report.device)
        report.add(
            prefill=form, shape=f"{m}x{n}", rows=rows, us=1e6 * seconds, dense_us=1e6 * dense_seconds,
            speed_of_dense=dense_seconds / seconds,
        )  # fmt: skip


def copies(form: str, m: int, n: int, device: str, size: int) -> Iterator[StoredWeight]:
    """Weights of a form, together at least `size` bytes."""
    total = 0
    while total < size:
        with torch.device(device):
            weight = FORMS[form](m, n)
        total += weight.stored_bytes()
        yield weight


@torch.inference_mode()
def seconds_each(work: Work, device: str) -> float:
    """The median time of a piece of `work`, launched one after the other: as a graph on a GPU."""
    for piece in work:
        piece()
    if device != "cuda":
        started = time.perf_counter()
        for piece in work:
            piece()
        return (time.perf_counter() - started) / len(work)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [piece() for piece in work]
    times = []
    for _ in range(REPLAYS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    del results
    return statistics.median(times[2:]) / len(work)
