"""Do our GPTQ and AWQ lose as little as GPTQModel's, and which is faster?

    LOWBIT_DATA=FOLDER python benchmarks/against_gptqmodel.py [--bits 4 3] [--methods gptq awq] [--windows 16]

Both sides get SmolLM2-135M-Instruct (float32), the same 32 windows of 512 tokens of the built-in text, groups
of 64, asymmetric grids, and columns in their order. GPTQModel's quantized weights are dequantized into the same dense
model, so that one forward pass measures both: WikiText-2 perplexity of the first windows of 1024 tokens. The seconds
are those of quantization. Needs the demo models, WikiText-2 (the Hub or LOWBIT_DATA) and GPTQModel
(pip install gptqmodel, in an environment of its own if its numpy is another).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine.data.texts import calibration_windows
from quant_engine.evaluate import Watch, find_task
from quant_engine.models.catalog import find
from quant_engine.models.files import folder_of
from quant_engine.models.load import LINEARS, Loaded
from quant_engine.quantize import Hooks, quantize
from quant_engine.runs.execute import hardware, load_setting
from quant_engine.runs.resolve import resolve
from quant_engine.spec import Calibration, QuantSetting, RunSpec

MODEL, GROUP = "demo-llm", 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--methods", nargs="+", choices=("gptq", "awq"), default=["gptq", "awq"])
    parser.add_argument("--windows", type=int, default=16)
    given = parser.parse_args()
    table = Table("setting", "ours", "GPTQModel", "ratio", "ours s", "GPTQModel s")
    table.title = f"WikiText-2 perplexity, {given.windows} windows of 1024; {hardware('cpu')}"
    console = Console()
    for method in given.methods:
        for bits in given.bits:
            setting = QuantSetting(method=method, w_bits=bits, group_size=GROUP)
            ours, seconds = measure_ours(setting, given.windows)
            theirs, peer_seconds = measure_peer(setting, given.windows)
            numbers = (f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.3f}", f"{seconds:.0f}", f"{peer_seconds:.0f}")
            table.add_row(setting.label, *numbers)
            console.print(*numbers)
    console.print(table)


def perplexity(loaded: Loaded, windows: int) -> float:
    spec = RunSpec(model=MODEL, tasks=("wikitext2",), limit=windows, window=1024)
    return find_task("wikitext2").measure(loaded, spec, Watch()).value


def measure_ours(setting: QuantSetting, windows: int) -> tuple[float, float]:
    """Perplexity, and the seconds of quantization as its records hold them."""
    spec = resolve(RunSpec(model=MODEL, setting=setting, tasks=("wikitext2",), limit=windows, window=1024))
    started = time.perf_counter()
    quantize(spec, Hooks())
    seconds = time.perf_counter() - started
    return perplexity(load_setting(MODEL, spec.setting, lambda progress: None), windows), seconds


def measure_peer(setting: QuantSetting, windows: int) -> tuple[float, float]:
    from gptqmodel import GPTQModel, QuantizeConfig

    dense = load_setting(MODEL, QuantSetting(), lambda progress: None)
    samples = calibration_windows(Calibration(), dense.tokenizer)
    config = QuantizeConfig(
        bits=int(setting.w_bits),
        group_size=GROUP,
        sym=False,
        desc_act=False,
        **({"method": "awq", "format": "gemm"} if setting.method == "awq" else {}),
    )
    with tempfile.TemporaryDirectory() as aside:
        model = GPTQModel.load(str(folder_of(find(MODEL), None)), config, device="cpu", dtype=torch.float32)
        started = time.perf_counter()
        model.quantize([{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in samples])
        seconds = time.perf_counter() - started
        model.save(aside)
        read = GPTQModel.load(aside, device="cpu", backend="torch")
    with torch.no_grad():
        for block, quantized in zip(dense.model.model.layers, read.model.model.layers, strict=True):
            for name in LINEARS:
                packed = quantized.get_submodule(name)
                block.get_submodule(name).weight.copy_(packed.dequantize_weight().T.float())
            for norm in ("input_layernorm", "post_attention_layernorm"):  # AWQ folds scales into them
                block.get_submodule(norm).weight.copy_(quantized.get_submodule(norm).weight)
    return perplexity(dense, windows), seconds


if __name__ == "__main__":
    main()
