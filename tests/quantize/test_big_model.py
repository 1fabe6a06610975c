"""Quantizing a big model takes a block, its statistics and the calibration, not the model: at most a quarter of it.

In `make test` the model has 0.3 GB in float32, too small for GPTQ, whose buffers alone are 0.2; LOWBIT_LARGE_TESTS
takes one of 3.9 GB.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from models import tiny_chat
from safetensors.torch import save_file
from transformers import LlamaConfig

from quant_engine import folders

LARGE = "LOWBIT_LARGE_TESTS" in os.environ
WIDTH, MIDDLE, KEYS, BLOCKS = (1024, 4096, 256, 64) if LARGE else (512, 1536, 128, 24)
BLOCK = 2 * WIDTH * WIDTH + 2 * KEYS * WIDTH + 3 * WIDTH * MIDDLE
"""Weights of one block."""
QUANTIZE = """
import sys
from pathlib import Path
from quant_engine.progress import Hooks
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs import weights
from quant_engine.spec import Calibration, QuantSetting, WeightSpec

def quantized(model):
    setting = QuantSetting(method=sys.argv[1], w_bits=4, group_size=16)
    calibration = Calibration(samples=8, length=128) if setting.method != "rtn" else None
    plan = resolve_weights(WeightSpec(model=model, setting=setting, calibration=calibration))
    return weights.quantize(plan, "cpu", Hooks())

def resident(name):
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024

quantized(sys.argv[2])  # imports, threads and their buffers
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
quantized(sys.argv[3])
print(resident("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A random LLaMA in bfloat16, a file for each block."""
    folder = tmp_path_factory.mktemp("big")
    tokenizer = tiny_chat.tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=MIDDLE,
        num_hidden_layers=BLOCKS,
        num_attention_heads=WIDTH // 64,
        num_key_value_heads=KEYS // 64,
        vocab_size=len(tokenizer),
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    generator, where = torch.Generator().manual_seed(0), {}

    def save(file, shapes):
        tensors = {
            name: (
                torch.randn(shape, generator=generator) / shape[-1] ** 0.5 if len(shape) > 1 else torch.ones(shape)
            ).bfloat16()
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, file))

    save(
        "outside.safetensors",
        {
            "model.embed_tokens.weight": (len(tokenizer), WIDTH),
            "model.norm.weight": (WIDTH,),
            "lm_head.weight": (len(tokenizer), WIDTH),
        },
    )
    for block in range(BLOCKS):
        attention = {
            "q_proj": (WIDTH, WIDTH),
            "k_proj": (KEYS, WIDTH),
            "v_proj": (KEYS, WIDTH),
            "o_proj": (WIDTH, WIDTH),
        }
        mlp = {"gate_proj": (MIDDLE, WIDTH), "up_proj": (MIDDLE, WIDTH), "down_proj": (WIDTH, MIDDLE)}
        shapes = {f"self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"mlp.{name}.weight": shape for name, shape in mlp.items()}
        shapes |= {f"{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
        save(f"block-{block}.safetensors", {f"model.layers.{block}.{name}": shape for name, shape in shapes.items()})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.mark.parametrize(
    ("method", "part"), [("rtn", 4), *([pytest.param("gptq", 4, marks=pytest.mark.timeout(1800))] if LARGE else [])]
)
def test_quantizing_takes_a_part_of_a_models_memory(tiny_models, big, method, part, tmp_path):
    """By how much quantizing a big model lets a process grow that has quantized a tiny one before."""
    done = subprocess.run(
        [sys.executable, "-c", QUANTIZE, method, str(tiny_models / "llama"), str(big)],
        env=os.environ | {"LOWBIT_HOME": str(tmp_path), "PYTHONPATH": str(folders.PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    grown, size = int(done.stdout.split()[-1]), 4 * BLOCK * BLOCKS  # float32, which quantizing computes in
    assert grown * part < size
