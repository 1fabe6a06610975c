"""Checkpoints that go between Low-Bit Lab and other programs: what they write is read here, and what is written here
they read, with the same logits.

    peers/bin/python benchmarks/interop.py [WORD …] [--smollm2 FOLDER]

Runs under the environment that `make peers` makes, which has GPTQModel, compressed-tensors, bitsandbytes and llama.cpp.
A small random Llama is quantized by each of them in every width and layout that is read, and each of our exports is
loaded by them; so is SmolLM2 (demo-llm) in one layout each, and with llama.cpp in more, with the perplexity of a text
and ten answers.
A line for each says how far the logits (of LLM.int8(): the outputs of each linear) are apart, and the bound of the type
that they are computed in; the last line, whether all are within their bounds. A line that begins with "skip" says why
a program can't do something, and "note" is measured without a bound. With --smollm2, only
a checkpoint that `quantize` made of demo-llm goes to llama.cpp.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "4")  # it takes as many as there are cores, and needs two more

import interop_cases
import interop_gguf
import interop_safetensors
import interop_tokenizers
import torch
import transformers
from interop_cases import REPORT, Case, Unavailable

THREADS = 2


GPTQ = "gptq 4 bits groups of 32"


def all_cases(root: Path, base: Path) -> Iterator[Case]:
    for cases in (
        interop_safetensors.bitsandbytes_cases,
        interop_safetensors.compressed_tensors_cases,
        interop_safetensors.gptqmodel_cases,
        interop_safetensors.export_cases,
        interop_safetensors.smollm2_cases,
        interop_gguf.read_cases,
        interop_gguf.export_cases,
        interop_tokenizers.tokenizer_cases,
    ):
        yield from cases(root, base)
    for title, options in ((GPTQ, {}), (f"symmetric {GPTQ}", {"symmetric": True})):
        yield from interop_gguf.answer_cases(root, title, partial(of_smollm2, **options))


@cache
def of_smollm2(**options: object) -> Path:
    return interop_cases.quantized(interop_cases.demo_model(), "gptq", 4, 32, **options)


def run(cases: Iterator[Case]) -> Counter[str]:
    """Prints a line for each case. Returns how many are ok, failed and had to be left out."""
    counts: Counter[str] = Counter()
    for case in cases:
        started = time.monotonic()
        try:
            off = case.measure()
        except Unavailable as reason:
            counts["skip"] += 1
            print(f"skip                      {case.title}: {reason}.", file=REPORT)
            continue
        except Exception as error:  # one program's failure takes no other case down
            off = math.nan
            print(f"      {type(error).__name__}: {str(error).strip()[:500]}", file=REPORT)
        outcome = "FAIL" if not off <= case.bound else "note" if case.bound == math.inf else "ok"
        counts[outcome] += 1
        bound = "" if case.bound == math.inf else f"{case.bound:.0e}"
        print(f"{outcome:4} {off:.1e} {bound:>5} {time.monotonic() - started:4.0f} s  {case.title}", file=REPORT)
        gc.collect()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", help="only cases whose titles have one of these words in them")
    parser.add_argument("--smollm2", type=Path, help="only this folder, which quantize made of demo-llm, in llama.cpp")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        base = interop_cases.base_model(root / "base")
        if asked.smollm2:
            cases = interop_gguf.answer_cases(root, asked.smollm2.name, lambda: asked.smollm2)
        else:
            cases = all_cases(root, base)
        counts = run(case for case in cases if not asked.words or any(word in case.title for word in asked.words))
    ended = f"{counts['ok'] + counts['FAIL']} cases in {time.monotonic() - started:.0f} s"
    if counts["FAIL"]:
        sys.exit(f"{counts['FAIL']} of {ended} FAILED.")
    print(
        f"All of {ended} are within their bounds, but for {counts['skip']} that a program can't do (skip).", file=REPORT
    )


if __name__ == "__main__":
    main()
