"""How fast does each storage form multiply, beside torch's own products of the same shape?

    python benchmarks/kernels.py [--forms W4 W3 …] [--rows 1 4 16] [--threads 1 2] [--shapes 576x576 …] [--rounds 30]
                                 [--json FILE]

All multiply the same activations in turns, round after round, so that all meet the same load on the machine. Prints
medians in microseconds and the ratio of float32's to each form's (above 1: faster than dense), and writes every number
as JSON. torch's int4 and int8 products round activations to bfloat16; ours and float32 do not. Weights are random
words: what a product takes does not depend on what it multiplies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine.kernels.matmul import matmul, warm_up
from quant_engine.runs.about import hardware
from quant_engine.weights.binary import Binary, PartlyBinary, ResidualBinary
from quant_engine.weights.codebook import Codebook
from quant_engine.weights.dual_binary import DualBinary
from quant_engine.weights.form import StoredWeight
from quant_engine.weights.grouped import GroupedInt
from quant_engine.weights.int_activations import IntActivations
from quant_engine.weights.low_rank import LowRank
from quant_engine.weights.mixed_width import MixedWidth
from quant_engine.weights.rotated import RotatedInt

SHAPES = ["576x576", "1536x576", "576x1536", "4096x4096", "14336x4096"]
GROUP = 64


def partly_binary(m: int, n: int) -> PartlyBinary:
    marks = torch.rand(m, n) < 0.1
    return PartlyBinary.pack(
        torch.rand(m, n) < 0.5, torch.rand(m, -(-n // GROUP), 2), torch.ones(n, dtype=torch.bool), GROUP,
        marks=marks, codes=torch.randint(0, 256, (m, n), dtype=torch.uint8),
        grid_scales=torch.rand(m), grid_zeros=torch.full((m,), 128),
    )  # fmt: skip


def mixed_width(m: int, n: int) -> MixedWidth:
    columns = n // GROUP // 4 * GROUP
    weight = MixedWidth(m, n, 3, GROUP, columns, columns)
    groups = columns // GROUP
    widths = torch.tensor([2] * groups + [3] * (n // GROUP - 2 * groups) + [4] * groups, dtype=torch.uint8)
    return filled(weight, widths=widths)


def filled(weight: StoredWeight, **given: torch.Tensor) -> StoredWeight:
    """`weight` with random numbers in all its buffers but those that are `given`."""
    for name, buffer in weight.named_buffers():
        if name in given:
            buffer.copy_(given[name])
        elif buffer.dtype.is_floating_point:
            buffer.uniform_(0.5, 1)
        else:
            least, most = torch.iinfo(buffer.dtype).min, torch.iinfo(buffer.dtype).max
            buffer.random_(least, most)
    return weight


FORMS: dict[str, Callable[[int, int], StoredWeight]] = {
    **{f"W{b}": lambda m, n, b=b: filled(GroupedInt(m, n, b, GROUP, False, False)) for b in range(1, 9)},
    "W4 symmetric": lambda m, n: filled(GroupedInt(m, n, 4, GROUP, True, False)),
    "W4 ordered": lambda m, n: filled(GroupedInt(m, n, 4, GROUP, False, True), order=torch.randperm(n)),
    "W4 whole rows": lambda m, n: filled(GroupedInt(m, n, 4, n, False, False)),
    "mixed 2-4": mixed_width,
    **{f"rotated {b}": lambda m, n, b=b: filled(RotatedInt(m, n, b, 0, "kronecker")) for b in (2, 4)},
    **{f"NF{b}": lambda m, n, b=b: filled(Codebook(m, n, b, GROUP, True, False)) for b in (2, 3, 4)},
    "NF4 shifted": lambda m, n: filled(Codebook(m, n, 4, GROUP, True, True)),
    "NF4 low rank": lambda m, n: LowRank(FORMS["NF4"](m, n), torch.rand(16, n), torch.rand(m, 16), 1.0),
    "binary": lambda m, n: filled(Binary(m, n, GROUP)),
    "partly binary": partly_binary,
    "residual binary": lambda m, n: filled(ResidualBinary(m, n, GROUP), salient=torch.full((n // 32,), 1)),
    "dual binary": lambda m, n: filled(DualBinary(m, n, GROUP)),
    **{f"W{b}A{b}": lambda m, n, b=b: filled(IntActivations(m, n, b, b, False)) for b in (4, 8)},
}


def torch_products(m: int, n: int, x: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """torch's own products of `x` [rows, n] with weights [m, n]."""
    dense, half = torch.randn(m, n), x.bfloat16()
    dense16, codes8 = dense.bfloat16(), torch.randint(-128, 128, (m, n), dtype=torch.int8)
    scales8 = torch.rand(m).bfloat16()
    packed = torch._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (m, n), dtype=torch.int32), 2)
    scales4 = torch.rand(n // GROUP, m, 2).bfloat16()
    return {
        "float32": lambda: x @ dense.T,
        "bfloat16": lambda: half @ dense16.T,
        "int8": lambda: torch._weight_int8pack_mm(half, codes8, scales8),
        "int4": lambda: torch._weight_int4pack_mm_for_cpu(half, packed, GROUP, scales4),
    }


def measure(products: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, float]:
    """The median time of each, in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in products}
    for round_ in range(rounds + 2):
        for name, product in products.items():
            started = time.perf_counter()
            product()
            if round_ > 1:  # the first rounds warm up
                times[name].append(1e6 * (time.perf_counter() - started))
    return {name: statistics.median(of_product) for name, of_product in times.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", nargs="+", choices=tuple(FORMS), default=list(FORMS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    console, results = Console(), []
    for shape in given.shapes:
        m, n = map(int, shape.split("x"))
        weights = {name: FORMS[name](m, n) for name in given.forms}
        for rows in given.rows:
            x = torch.randn(rows, n)
            products = torch_products(m, n, x)
            products |= {name: lambda weight=weight, x=x: matmul(x, weight) for name, weight in weights.items()}
            for threads in given.threads:
                torch.set_num_threads(threads)
                warm_up(weights.values(), torch.float32)
                times = measure(products, given.rounds)
                table = Table(shape, "µs", "float32 / it", "int4 / it")
                table.title = f"{rows} rows, {threads} threads; {hardware('cpu')}"
                for name, taken in times.items():
                    table.add_row(
                        name, f"{taken:.0f}", f"{times['float32'] / taken:.2f}", f"{times['int4'] / taken:.2f}"
                    )
                console.print(table)
                results.append({"shape": shape, "rows": rows, "threads": threads, "microseconds": times})
    if given.json:
        given.json.write_text(json.dumps({"hardware": hardware("cpu"), "results": results}, indent=1))


if __name__ == "__main__":
    main()
