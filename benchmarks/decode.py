"""How fast is decoding from packed weights, beside dense ones and llama.cpp on the same machine?

    python benchmarks/decode.py [--threads 1 2] [--tokens 40] [--rounds 5] [--settings rtn-4 gptq-3 …] [--busy]
                                [--peer PYTHON] [--device cuda]

All read the same prompt of 512 tokens of the built-in text and continue it greedily, in turns, round after round, so
that all meet the same load on the machine. Prints medians of tokens per second, the ratio to torch's dense float32, and
the memory of the weights. "float16" is the unquantized model as it is answered from: 16 bits in memory, computed with
in float32. With --busy another process keeps a core busy. Methods that look at data see a single window of it, and
what is trained is trained for one step: what they make is as fast as any.

llama.cpp takes part where --peer names the Python of an environment that has it (make peers): the same weights as
its Q4_1 file, and Q8_0 and Q2_K made from that. Its products round activations to 8 bits; ours are exact in float32.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine.data.texts import calibration_windows
from quant_engine.failures import exits_plainly
from quant_engine.methods import METHODS
from quant_engine.models.catalog import model_card
from quant_engine.models.forward import Piece, last_states
from quant_engine.models.key_values import KeyValues
from quant_engine.models.load import Loaded, load_dense
from quant_engine.progress import Hooks
from quant_engine.runs import weights
from quant_engine.runs.about import hardware
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import Calibration, QuantSetting, WeightSpec

MODEL = "demo-llm"
PROMPT = 512
LLAMA_CPP = ("Q8_0", "Q4_1", "Q2_K")

Measure = Callable[[int], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", default=["rtn-8", "rtn-4", "rtn-3", "rtn-2", "normal_float-4"])
    parser.add_argument("--busy", action="store_true", help="keep a core busy")
    parser.add_argument("--peer", default="", help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    with exits_plainly("benchmark", "start it again"), tempfile.TemporaryDirectory() as aside:
        peers = {**ours(given), **(llama_cpp(given.peer, aside, given.tokens) if given.peer else {})}
        busy = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
        if given.busy:
            busy.start()
        found: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
        for round_ in range(given.rounds + 1):
            for threads in given.threads:
                for name, measure in peers.items():
                    result = measure(threads)
                    if round_:  # the first round warms up
                        found[name, threads].append(result)
        Console().print(table(found, given.threads, hardware(given.device) + ", one core busy" * given.busy))


def spin() -> None:
    while True:
        pass


def ours(given: argparse.Namespace) -> dict[str, Measure]:
    card = model_card(MODEL)
    models = {
        "torch float32": load_dense(card, None, "float32", given.device),
        "torch bfloat16": load_dense(card, None, "bfloat16", given.device),
        "float16": load(QuantSetting(), given.device),
    }
    for name in given.settings:
        method, _, bits = name.rpartition("-")
        grouped = 64 if METHODS[method].card.grouped else None
        made = METHODS[method]
        options = {"steps": 1, "batch": 1} if made.train else {}
        options |= {"steps": 1, "batch": 1, "held_out": 0} if made.fine_tunes else {}
        a_bits = 16 if 16 in made.card.a_bits else made.card.a_bits[-1]
        setting = QuantSetting(method=method, w_bits=float(bits), a_bits=a_bits, group_size=grouped, options=options)
        models[name] = load(setting, given.device)
    prompt = calibration_windows(Calibration(samples=1, length=PROMPT), models["torch float32"].tokenizer)[0]
    return {name: measure_ours(loaded, prompt, given.tokens) for name, loaded in models.items()}


def load(setting: QuantSetting, device: str) -> Loaded:
    spec = WeightSpec(model=MODEL, setting=setting, calibration=Calibration(samples=1))
    return weights.load(resolve_weights(spec), "float32", device, Hooks())


def measure_ours(loaded: Loaded, prompt: torch.Tensor, tokens: int) -> Measure:
    model, decoder = loaded.model, loaded.model.get_decoder()

    @torch.inference_mode()
    def measure(threads: int) -> dict[str, float]:
        torch.set_num_threads(threads)
        cache, ids = KeyValues(decoder), prompt.to(model.device)

        def read(ids: torch.Tensor) -> torch.Tensor:
            states = last_states(decoder, [Piece(model.get_input_embeddings()(ids), cache)])
            return model.get_output_embeddings()(states).argmax(-1)

        def now() -> float:
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter()

        started = now()
        token = read(ids)
        before = now()
        for _ in range(tokens):
            token = read(token)
        return {
            "prefill": len(prompt) / (before - started),
            "decode": tokens / (now() - before),
            "bytes": loaded.weight_bytes,
        }

    return measure


def llama_cpp(python: str, folder: str, tokens: int) -> dict[str, Measure]:
    script = Path(__file__).with_name("llama_cpp_peer.py")
    peer = subprocess.Popen([python, script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    prompt = list(range(1000, 1000 + PROMPT))  # which tokens they are makes no difference to the time

    def measure(kind: str) -> Measure:
        def ask(threads: int) -> dict[str, float]:
            asked: dict[str, Any] = {"type": kind, "threads": threads, "prompt": prompt, "tokens": tokens}
            print(json.dumps(asked), file=peer.stdin, flush=True)
            return json.loads(peer.stdout.readline())

        return ask

    return {f"llama.cpp {kind}": measure(kind) for kind in LLAMA_CPP}


def table(found: dict[tuple[str, int], list[dict[str, float]]], threads: list[int], title: str) -> Table:
    columns = ("threads", "tokens/s", "ratio", "prompt tokens/s", "MB")
    shown = Table("weights", *(Column(name, justify="right") for name in columns), title=title)

    def median(name: str, count: int, what: str) -> float:
        return statistics.median(result[what] for result in found[name, count])

    for count in threads:
        for name in dict.fromkeys(name for name, _ in found):
            rate, base = median(name, count, "decode"), median("torch float32", count, "decode")
            size = found[name, count][0].get("bytes")
            prompt = f"{median(name, count, 'prefill'):.0f}"
            cells = [name, str(count), f"{rate:.1f}", f"{rate / base:.2f}", prompt, f"{size / 1e6:.0f}" if size else ""]
            shown.add_row(*cells)
        shown.add_section()
    return shown


if __name__ == "__main__":
    main()
