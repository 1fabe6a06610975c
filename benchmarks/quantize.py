"""How long does quantizing take, in how much memory, and what is lost, beside GPTQModel?

    LOWBIT_DATA=FOLDER python benchmarks/quantize.py [--only rtn gptq awq] [--bits 4] [--rounds 1] [--peer PYTHON]
    python benchmarks/quantize.py --only blocks

SmolLM2-135M-Instruct in float32, groups of 64, asymmetric grids. GPTQ and AWQ see 32 windows of 512 tokens of the
built-in text; "ordered" takes columns in the order of their inputs' size within groups, which is how GPTQModel comes,
and stores no order. Each quantization is a process of its own, ours and GPTQModel's in turns; seconds are those of
quantizing and saving, without loading libraries and, for GPTQModel, without reading the model; the peak is of the whole
process until then. Perplexity is that of WikiText-2's first windows of 1024 tokens: GPTQModel's weights are dequantized
(in float16) into the same dense model. Its AWQ gets bfloat16, because it refuses float32. "blocks" is RTN of four
blocks in the shape of LLaVA-Next-8B, with random weights.

Needs the demo models and WikiText-2 (the Hub or LOWBIT_DATA). GPTQModel is measured where --peer names the Python of an
environment that has it: `make peers`, then --peer peers/bin/python.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine import folders
from quant_engine.data.texts import calibration_windows
from quant_engine.evaluate import Watch, parse_task
from quant_engine.failures import exits_plainly
from quant_engine.methods import METHODS
from quant_engine.models.architecture import LINEARS, empty_model
from quant_engine.models.catalog import ModelCard, model_card
from quant_engine.models.files import folder_of
from quant_engine.models.load import Loaded, load_dense, load_tokenizer
from quant_engine.progress import Hooks
from quant_engine.runs import weights
from quant_engine.runs.about import hardware
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import Calibration, QuantSetting, RunSpec, WeightSpec

MODEL, GROUP, CALIBRATION = "demo-llm", 64, Calibration(samples=32)
OURS = {
    "rtn": ("rtn", {}),
    "normal_float": ("normal_float", {}),
    "gptq": ("gptq", {}),
    "ordered": ("gptq", {"act_order": True, "groups": "static"}),
    "awq": ("awq", {}),
    "blocks": ("rtn", {}),
}
"""The method and its options."""
PEER = {
    "gptq": {"act_group_aware": False, "damp_percent": 0.01},
    "ordered": {},
    "awq": {"method": "awq", "format": "gemm"},
}
"""The options of GPTQModel besides bits and group."""
BLOCKS_LIKE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(OURS), default=list(OURS))
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--windows", type=int, default=16, help="of WikiText-2; 0 measures no perplexity")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peer", default="", help="the Python of an environment with GPTQModel")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)  # in a process of its own
    given = parser.parse_args()
    if given.measure:
        who, name, model, bits = given.measure
        measure = {"ours": measure_ours, "peer": measure_peer}[who]
        print(json.dumps(measure(name, model, int(bits), given.windows)))
        return
    if given.windows:
        with exits_plainly("benchmark", "start it again"):
            parse_task("wikitext2").prepare()  # before minutes of quantizing
    columns = ("seconds", "ratio", "peak MB", "perplexity")
    table = Table("setting", "by", *(Column(name, justify="right") for name in columns))
    table.title = f"{hardware('cpu')}; medians of {given.rounds}"
    console = Console()
    with tempfile.TemporaryDirectory() as aside:
        for name in given.only:
            model = MODEL if name != "blocks" else str(blocks_model(Path(aside) / "model"))
            pythons = {"ours": sys.executable} | ({"peer": given.peer} if given.peer and name in PEER else {})
            for bits in given.bits:
                runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
                for _ in range(given.rounds):
                    for who, python in pythons.items():
                        runs[who].append(in_a_process(python, [who, name, model, str(bits)], given.windows))
                        console.print(f"{name} W{bits} {who}: {runs[who][-1]}")
                ours, peer = medians(runs["ours"]), medians(runs["peer"])
                table.add_row(f"{name} W{bits} g{GROUP}", "ours", *cells(ours, peer))
                if peer:
                    table.add_row("", "GPTQModel", *cells(peer, None))
    console.print(table)


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]} if runs else {}


def cells(run: dict[str, float], peer: dict[str, float] | None) -> list[str]:
    ratio = f"{run['seconds'] / peer['seconds']:.2f}" if peer else ""
    perplexity = f"{run['perplexity']:.3f}" if "perplexity" in run else ""
    return [f"{run['seconds']:.1f}", ratio, f"{run['peak MB']:.0f}", perplexity]


def in_a_process(python: str, measure: list[str], windows: int) -> dict[str, float]:
    """What `--measure` prints, on a fresh cache."""
    with tempfile.TemporaryDirectory() as home:
        env = os.environ | {"LOWBIT_MODELS": str(folders.models()), "LOWBIT_HOME": home}
        env.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two cores it takes one, and refuses to start with that
        # -P: this folder's kernels.py would be taken for a package of that name.
        command = [python, "-P", __file__, "--measure", *measure, "--windows", str(windows)]
        out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def spent(started: float) -> dict[str, float]:
    return {
        "seconds": time.monotonic() - started,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def with_perplexity(numbers: dict[str, float], load: Callable[[], Loaded], windows: int) -> dict[str, float]:
    if not windows:
        return numbers
    spec = RunSpec(weights=WeightSpec(model=MODEL), tasks=("wikitext2",), limit=windows, window=1024)
    return numbers | {"perplexity": parse_task("wikitext2").measure(load(), spec, Watch()).value}


def measure_ours(name: str, model: str, bits: int, windows: int) -> dict[str, float]:
    method, options = OURS[name]
    group = GROUP if METHODS[method].card.grouped else None
    setting = QuantSetting(method=method, w_bits=bits, group_size=group, options=options)
    plan = resolve_weights(WeightSpec(model=model, setting=setting, calibration=CALIBRATION))
    started = time.monotonic()
    weights.quantize(plan, "cpu", Hooks())
    load = lambda: weights.load(plan, "float32", "cpu", Hooks())  # noqa: E731
    return with_perplexity(spent(started), load, windows if model == MODEL else 0)


def measure_peer(name: str, model: str, bits: int, windows: int) -> dict[str, float]:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    options, card = PEER[name], model_card(model)
    samples = calibration_windows(CALIBRATION, load_tokenizer(folder_of(card, None)))
    inputs = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in samples]
    config = QuantizeConfig(bits=bits, group_size=GROUP, sym=False, desc_act=False, **options)
    # Its AWQ refuses float32, and CPUs are slow in float16.
    dtype = torch.bfloat16 if name == "awq" else torch.float32
    quantizing = GPTQModel.load(str(folder_of(card, None)), config, device="cpu", dtype=dtype)
    with tempfile.TemporaryDirectory() as aside:
        started = time.monotonic()
        # AWQ has to be told that there is no CUDA.
        quantizing.quantize(inputs, backend=BACKEND.AWQ_TORCH if name == "awq" else BACKEND.AUTO)
        quantizing.save(aside)
        numbers = spent(started)
        read = GPTQModel.load(aside, device="cpu", backend="torch", dtype=torch.float16)  # its layers take no float32
    return with_perplexity(numbers, lambda: dequantized(read.model, card), windows)


@torch.no_grad()
def dequantized(quantized: torch.nn.Module, card: ModelCard) -> Loaded:
    """The dense model with the weights of GPTQModel's."""
    dense = load_dense(card, None, "float32", "cpu")
    for block, source in zip(dense.model.model.layers, quantized.model.layers, strict=True):
        for name in LINEARS:
            packed = source.get_submodule(name)
            block.get_submodule(name).weight.copy_(packed(torch.eye(packed.in_features, dtype=torch.float16)).T)
        for norm in ("input_layernorm", "post_attention_layernorm"):  # AWQ folds scales into them
            block.get_submodule(norm).weight.copy_(source.get_submodule(norm).weight)
    return dense


def blocks_model(folder: Path) -> Path:
    """A LLaVA-NeXT whose blocks have the shape of LLaVA-Next-8B's, with random weights in bfloat16; all else is the
    demo model's, or as small."""
    card = model_card("demo")
    shutil.copytree(folder_of(card, None), folder, ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= BLOCKS_LIKE
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = empty_model(card, folder, torch.bfloat16)
    tied = set(model.all_tied_weights_keys)
    tensors = {
        name: (torch.randn(tensor.shape) * 0.02).to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


if __name__ == "__main__":
    main()
