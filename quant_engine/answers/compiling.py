"""The machine code of the CPU's kernels, made while answers go on: in a process of its own,
`python -m quant_engine.answers.compiling`.

numba keeps what it compiled on disk, so that this is work of the first start on a machine, where it takes seconds.
Until what FP16 and rounding to 4 bits take is there, models are read by torch alone: slower, and no visitor waits for a
compiler. The process says so with a line, goes on with what other settings take, and ends when its standard input does.
It steps back from the processor for answers.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import llvmlite.binding as llvm
import numba
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from quant_engine.children import end_with_parent, start_child
from quant_engine.kernels import attention, compiled, matmul
from quant_engine.kernels.linear import HalfLinear
from quant_engine.kernels.stored_vectors import PARTLY_BINARY
from quant_engine.kernels.vectors import Halves, Integers, Levels, TwoPlanes
from quant_engine.models.load import get_ready
from quant_engine.weights.grouped import GroupedInt
from quant_engine.weights.half import Half

NICE = 10
COMMAND = (sys.executable, "-m", "quant_engine.answers.compiling")
_DOUBLE = Levels.DOUBLE, Levels.DOUBLE | Levels.SHIFTED
KINDS = (
    *((0, bits, Integers.ZEROS) for bits in (4, 2, 3, 8, 5, 6, 7, 1)),
    *((0, bits, variant) for bits in (8, 4) for variant in (Integers.MIDDLE, Integers.WHOLE)),
    *((0, bits, Integers.ROTATED) for bits in (4, 3, 2)),
    *((1, bits, variant) for variant in _DOUBLE for bits in (4, 3, 2)),
    (2, 1, 0),
    *((3, 1, variant) for variant in (TwoPlanes.RESIDUAL, TwoPlanes.DUAL)),
    *((4, 16, variant) for variant in (Halves.FLOAT16, Halves.BFLOAT16)),
    (PARTLY_BINARY, 1, 0),
)
"""Form, bits and variant (kernels/cpu.py) of what the methods make with their defaults, and of models as they come."""

HEADS = (64, 3), (128, 4)
"""Sizes of heads and how many share a key head, in the demo models and in LLaMA3-8B."""


class Compiling:
    """Keeps a process compile what was never compiled on this machine, and answers from the kernels until then."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._ready = _marker().exists()
        if not self._ready:
            matmul.use_cpu_kernels(False)
            threading.Thread(target=self._watch, args=(tuple(command),), name="compiling", daemon=True).start()

    def take_up(self) -> None:
        """Lets the kernels compute from now on, if they are there. For the thread that computes, between answers."""
        if self._ready and not matmul.CPU_KERNELS:
            matmul.use_cpu_kernels(True)

    def _watch(self, command: tuple[str, ...]) -> None:
        with suppress(OSError):  # without the process, whoever needs a kernel compiles it
            process = start_child(command, subprocess.PIPE, subprocess.PIPE, None, nice=NICE)
            process.stdout.readline()
            self._ready = True
            process.wait()
        self._ready = True


def _marker() -> Path:
    """A file beside the machine code that is there once all of it is; its name says of what, and for which CPU."""
    code = b"".join(file.read_bytes() for file in sorted(Path(compiled.__file__).parent.glob("*.py")))
    cpu = llvm.get_host_cpu_name(), sorted(llvm.get_host_cpu_features().items())
    digest = hashlib.sha256(code + repr((numba.__version__, llvm.llvm_version_info, cpu)).encode()).hexdigest()
    return Path(compiled.multiplier(False).stats.cache_path) / f"compiled-{digest[:16]}"


def main() -> None:
    """Compile everything that is not on disk."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    shape, groups = (1024, 1024), (1024, 16)
    codes, numbers = torch.zeros(shape, dtype=torch.uint8), torch.zeros(groups, dtype=torch.uint8)
    rounded = GroupedInt.pack(codes, torch.ones(groups), numbers, 4, 64)
    for threads in (1, 2):  # what threads share is another function than what one runs alone
        torch.set_num_threads(threads)
        halves = [Half.pack(torch.zeros(shape, dtype=dtype)) for dtype in (torch.float16, torch.bfloat16)]
        matmul.warm_up([*halves, rounded], torch.float32)
    get_ready(_small_decoder(), torch.float32)
    for heads in HEADS:
        attention.attention(*heads)
    print(flush=True)
    for kind in KINDS:
        compiled.product(*kind)
        compiled.dequantizer(*kind)
    with suppress(OSError):
        _marker().touch()


def _small_decoder() -> nn.Module:
    """A decoder of a block whose linears are held in 16 bits."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1}
    decoder = LlamaModel(LlamaConfig(vocab_size=32, **sizes))
    for parent in list(decoder.layers.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, HalfLinear(Half.pack(child.weight.data.half())))
    return decoder


if __name__ == "__main__":
    main()
