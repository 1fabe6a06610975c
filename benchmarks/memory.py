"""How near is the memory that a run is said to take to what it takes?

    python benchmarks/memory.py [--only NAME …]

Each case is a run in a process of its own: of the demo models, and of random ones of LLaMA's architecture, the largest
3.9 GB in float32. Prints the estimate that is made before a run starts (`quant_engine.runs.needs`), the run's peak, and
how far apart they are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine import folders, notation
from quant_engine.failures import exits_plainly
from quant_engine.models.catalog import model_card
from quant_engine.models.files import folder_of
from quant_engine.runs import folder as run_folder
from quant_engine.runs.about import hardware
from quant_engine.runs.needs import needs

Widths = tuple[int, int, int, int]
"""Hidden state, MLP, keys (or values), blocks."""


@dataclass(frozen=True)
class Case:
    """A run by its options; the shape of the random model that it is of, or a demo model's name among the options."""

    options: str
    widths: Widths | None = None


RTN, GPTQ = "--method rtn --bits 4 --group-size 64", "--method gptq --bits 4 --group-size 64 --samples 16"
TEXT, SHORT = "--tasks perplexity --limit 2 --window 1024", "--tasks perplexity --limit 2 --window 256"
CASES = {
    "SmolLM2 FP16": Case(f"--model demo-llm {TEXT}"),
    "SmolLM2 RTN, long windows": Case(f"--model demo-llm {RTN} --tasks perplexity --limit 1 --window 4096"),
    "SmolLM2 FP16, long windows": Case("--model demo-llm --tasks perplexity --limit 1 --window 4096"),
    "SmolLM2 RTN": Case(f"--model demo-llm {RTN} {TEXT}"),
    "SmolLM2 GPTQ": Case(f"--model demo-llm {GPTQ} {SHORT}"),
    "SmolLM2 AWQ": Case(f"--model demo-llm --method awq --bits 4 --group-size 64 --samples 8 {SHORT}"),
    "SmolLM2 PB-LLM": Case(f"--model demo-llm --method pb_llm --bits 2 --group-size 64 --samples 8 {SHORT}"),
    "demo LLaVA-NeXT RTN": Case(f"--model demo {RTN} --tasks demo-docvqa --limit 4"),
    "0.1 billion GPTQ": Case(f"{GPTQ} {SHORT}", (512, 1408, 256, 8)),
    "0.5 billion GPTQ": Case(f"{GPTQ} {SHORT}", (1536, 4096, 512, 16)),
    "0.5 billion FP16": Case(TEXT, (1536, 4096, 512, 16)),
    "1 billion RTN": Case(f"{RTN} {SHORT}", (1024, 4096, 256, 64)),
    "1 billion GPTQ": Case(f"{GPTQ} {SHORT}", (1024, 4096, 256, 64)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    table = Table("run", *(Column(column, justify="right") for column in ("estimate", "peak", "estimate / peak")))
    table.title = hardware("cpu")
    with exits_plainly("benchmark", "start it again"), tempfile.TemporaryDirectory() as aside:
        for name in given.only:
            estimate, peak = measured(CASES[name], Path(aside))
            table.add_row(name, notation.size(estimate), notation.size(peak), f"{estimate / peak:.2f}")
    Console().print(table)


def measured(case: Case, aside: Path) -> tuple[float, float]:
    """The bytes that a run is said to take, and those that it took."""
    words = shlex.split(case.options)
    if case.widths:
        words += ["--model", str(random_model(case.widths, aside))]
    with tempfile.TemporaryDirectory(dir=aside) as home:
        os.environ["LOWBIT_HOME"] = home
        command = [sys.executable, "-m", "quant_engine", "run", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (path,) = folders.results().iterdir()
        run = run_folder.read(path)
        return needs(run.spec).memory or 0.0, run.about["peak_memory_bytes"]


def random_model(widths: Widths, aside: Path) -> Path:
    """The folder of a random LLaMA in bfloat16 with SmolLM2's tokenizer; made in a process of its own, whose memory
    goes back."""
    folder = aside / "-".join(map(str, widths))
    if not folder.exists():
        process = multiprocessing.get_context("spawn").Process(target=write_random_model, args=(widths, folder))
        process.start()
        process.join()
    return folder


def write_random_model(widths: Widths, folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder_of(model_card("demo-llm"), None))
    hidden, intermediate, keys, blocks = widths
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=keys // 64,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="200MB")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
