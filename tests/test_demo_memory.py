"""Really low-bit: the memory of a process that holds a quantized model, and its files, agree with the ledger."""

import json
import statistics
import subprocess
import sys

import pytest

from quant_engine.checkpoints import Checkpoint
from quant_engine.quantize import Hooks, quantize
from quant_engine.runs.resolve import resolve
from quant_engine.spec import QuantSetting, RunSpec

pytestmark = pytest.mark.demo

# In a process of its own: what its private memory grows by while the quantized blocks come in and answer once. The
# first block is filled before, so that what any first use allocates (threads, buffers) is not counted.
MEASURE = """
import ctypes, gc, json, sys
import psutil, torch
from pathlib import Path
from quant_engine.checkpoints import Checkpoint, ledger_of
from quant_engine.models.catalog import find
from quant_engine.models.files import folder_of
from quant_engine.models.load import Skeleton

card = find("demo-llm")
skeleton = Skeleton(card, folder_of(card, None), torch.float32, "cpu")
skeleton.fill_outside_blocks()
checkpoint = Checkpoint(Path(sys.argv[1]))
hidden = torch.randn(1, 1, 576)
position = skeleton.decoder.rotary_emb(hidden, torch.zeros(1, 1, dtype=torch.long))

def fill(indices):
    for index in indices:
        checkpoint.fill_block(index, skeleton.blocks[index], "cpu", torch.float32)
        with torch.inference_mode():
            skeleton.blocks[index](hidden, position_embeddings=position)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is not held
    return psutil.Process().memory_full_info().uss

before = fill(range(1))
after = fill(range(1, 30))
print(json.dumps({"grown": after - before, "ledger": ledger_of(skeleton.blocks[1:]).bytes}))
"""


@pytest.mark.parametrize("bits", [3, 4])
def test_process_memory_and_files_agree_with_the_ledger_within_3_percent(lab, bits):
    setting = QuantSetting(method="rtn", w_bits=bits, group_size=64)
    path = quantize(resolve(RunSpec(model="demo-llm", setting=setting, tasks=("perplexity",))), Hooks())
    # The median of three processes: on a busy machine one may catch an allocation that is not the model's.
    measured = [json.loads(subprocess.check_output([sys.executable, "-c", MEASURE, str(path)])) for _ in range(3)]
    grown = statistics.median(one["grown"] for one in measured)
    assert grown == pytest.approx(measured[0]["ledger"], rel=0.03)

    files = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    stored = sum(one.stored_bits * one.out_features * one.in_features for one in Checkpoint(path).records()) / 8
    assert files == pytest.approx(stored, rel=0.03)
    assert stored * 8 / 106_168_320 == pytest.approx(bits + (16 + bits) / 64, rel=0.001)
