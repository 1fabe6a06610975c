"""How fast is decoding from packed weights, beside dense ones on the same machine?

    python benchmarks/decode.py [--tokens 40] [--rounds 5] [--device cuda]

Dense float32, dense bfloat16 and RTN at each width answer the same question in turns, round after round, so that all
meet the same load on the machine. Prints medians of tokens per second and of the time to first token, the memory of the
weights, and the ratio to dense float32. Needs the demo models (python -m quant_engine get demo).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine.models.decode import answer
from quant_engine.progress import Hooks
from quant_engine.runs import weights
from quant_engine.runs.about import hardware
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import QuantSetting, WeightSpec

QUESTION = "Tell me a story about a small bird that lives in a forest."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()

    def load(setting: QuantSetting, dtype: str = "float32"):
        plan = resolve_weights(WeightSpec(model="demo-llm", setting=setting))
        return weights.load(plan, dtype, given.device, Hooks())

    peers = {"dense float32": load(QuantSetting()), "dense bfloat16": load(QuantSetting(), "bfloat16")}
    for bits in (8, 4, 3, 2):
        peers[f"RTN W{bits}A16 g64"] = load(QuantSetting(method="rtn", w_bits=bits, group_size=64))
    rates: dict[str, list[float]] = {name: [] for name in peers}
    firsts: dict[str, list[float]] = {name: [] for name in peers}
    for round_ in range(given.rounds + 1):
        for name, loaded in peers.items():
            *_, last = answer(loaded, None, QUESTION, given.tokens)
            if round_:  # the first round warms up
                rates[name].append(last.stats.tokens_per_s)
                firsts[name].append(last.stats.ttft_s)
    table = Table("weights", "tokens/s", "ratio", "first token s", "weights MB", title=hardware(given.device))
    base = statistics.median(rates["dense float32"])
    for name, loaded in peers.items():
        rate, first = statistics.median(rates[name]), statistics.median(firsts[name])
        table.add_row(name, f"{rate:.1f}", f"{rate / base:.2f}", f"{first:.2f}", f"{loaded.weight_bytes / 1e6:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
