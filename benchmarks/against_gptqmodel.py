"""Do our GPTQ and AWQ lose as little as GPTQModel's?

    LOWBIT_DATA=FOLDER python benchmarks/against_gptqmodel.py [--bits 4 3] [--only ordered] [--windows 16]

Both sides get SmolLM2-135M-Instruct in float32 (GPTQModel's AWQ in bfloat16: it refuses float32), the same windows of
512 tokens of the built-in text (32, for AWQ 8, which both search in full), groups of 64 and asymmetric grids. "plain"
is GPTQ with columns as they come and damping 0.01, which is our default and the reference code's; "ordered" is
GPTQModel as it comes, which takes columns in the order of their inputs' size within groups, beside ours with act-order
on static groups; neither stores an order. GPTQModel's quantized weights are dequantized (in float16) into the same
dense model, so that one forward pass measures both: WikiText-2 perplexity of the first windows of 1024 tokens. Needs
the demo models, WikiText-2 (the Hub or LOWBIT_DATA) and GPTQModel: pip install -r requirements.txt, then gptqmodel, in
an environment of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine.data.texts import calibration_windows
from quant_engine.evaluate import Watch, parse_task
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import model_card
from quant_engine.models.files import folder_of
from quant_engine.models.load import Loaded, load_dense
from quant_engine.progress import Hooks
from quant_engine.runs import weights
from quant_engine.runs.about import hardware
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import Calibration, QuantSetting, RunSpec, WeightSpec

MODEL, GROUP = "demo-llm", 64
COMPARED = {
    "plain": (32, "gptq", {}, {"act_group_aware": False, "damp_percent": 0.01}),
    "ordered": (32, "gptq", {"act_order": True, "groups": "static"}, {}),
    "awq": (8, "awq", {}, {"method": "awq", "format": "gemm"}),
}
"""How many windows, the method, our options, and the options of GPTQModel besides bits and group."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--only", nargs="+", choices=tuple(COMPARED), default=list(COMPARED))
    parser.add_argument("--windows", type=int, default=16)
    given = parser.parse_args()
    table = Table("setting", "ours", "GPTQModel", "ratio")
    table.title = f"WikiText-2 perplexity, {given.windows} windows of 1024; {hardware('cpu')}"
    console = Console()
    for name in given.only:
        for bits in given.bits:
            samples, method, options, peer_options = COMPARED[name]
            calibration = Calibration(samples=samples)
            setting = QuantSetting(method=method, w_bits=bits, group_size=GROUP, options=options)
            ours = measure_ours(setting, calibration, given.windows)
            theirs = measure_peer(bits, peer_options, calibration, given.windows)
            table.add_row(f"{name} W{bits} g{GROUP}", f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.3f}")
            console.print(f"{name} W{bits}: {ours:.3f}, GPTQModel {theirs:.3f}")
    console.print(table)


def perplexity(loaded: Loaded, windows: int) -> float:
    spec = RunSpec(weights=WeightSpec(model=MODEL), tasks=("wikitext2",), limit=windows, window=1024)
    return parse_task("wikitext2").measure(loaded, spec, Watch()).value


def measure_ours(setting: QuantSetting, calibration: Calibration, windows: int) -> float:
    plan = resolve_weights(WeightSpec(model=MODEL, setting=setting, calibration=calibration))
    return perplexity(weights.load(plan, "float32", "cpu", Hooks()), windows)


def measure_peer(bits: int, options: dict[str, Any], calibration: Calibration, windows: int) -> float:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    dense = load_dense(model_card(MODEL), None, "float32", "cpu")
    samples = calibration_windows(calibration, dense.tokenizer)
    config = QuantizeConfig(bits=bits, group_size=GROUP, sym=False, desc_act=False, **options)
    # Its AWQ refuses float32, and CPUs are slow in float16.
    dtype = torch.bfloat16 if "method" in options else torch.float32
    with tempfile.TemporaryDirectory() as aside:
        model = GPTQModel.load(str(folder_of(model_card(MODEL), None)), config, device="cpu", dtype=dtype)
        inputs = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in samples]
        # AWQ has to be told that there is no CUDA.
        model.quantize(inputs, backend=BACKEND.AWQ_TORCH if "method" in options else BACKEND.AUTO)
        model.save(aside)
        read = GPTQModel.load(aside, device="cpu", backend="torch", dtype=torch.float16)  # its layers take no float32
    with torch.no_grad():
        for block, quantized in zip(dense.model.model.layers, read.model.model.layers, strict=True):
            for name in LINEARS:
                packed = quantized.get_submodule(name)
                block.get_submodule(name).weight.copy_(packed(torch.eye(packed.in_features, dtype=torch.float16)).T)
            for norm in ("input_layernorm", "post_attention_layernorm"):  # AWQ folds scales into them
                block.get_submodule(norm).weight.copy_(quantized.get_submodule(norm).weight)
    return perplexity(dense, windows)


if __name__ == "__main__":
    main()
