"""Which device and type a model computes in when nobody says so."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from functools import cache
from pathlib import Path

from quant_engine.deferred import deferred
from quant_engine.spec import UserError

torch = deferred("torch")

CLEARLY = 1.25
"""By what factor bfloat16 must be faster than float32 to be worth its roundings."""
NVIDIA_SMI_S = 10.0
_DEVICE_FILES = Path("/dev")
_lent = False


def default_device() -> str:
    """ "cuda" on a machine with an NVIDIA GPU that this process may see, else "cpu"; asked without loading torch."""
    if zero_gpu() and not _lent:
        return "cpu"
    first_visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not first_visible or first_visible.startswith("-"):  # an invalid number hides all that stand behind it
        return "cpu"
    if any(_DEVICE_FILES.glob("nvidia[0-9]*")):  # a container may have been given any of them
        return "cuda"
    return "cuda" if (_DEVICE_FILES / "dxg").exists() and _has_driver() else "cpu"


def answering_device() -> str:
    """The device that questions are answered on, maybe in another process than this one."""
    return "cuda" if zero_gpu() else default_device()


def zero_gpu() -> bool:
    """Whether this is a Space with ZeroGPU: there a process has no GPU but during calls that ask for one."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def lend_gpu() -> None:
    """This process has been given a GPU of ZeroGPU."""
    global _lent
    _lent = True


def _has_driver() -> bool:
    """Whether the CUDA driver is there: under Windows' Linux subsystem GPUs of all makes share one device file."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@cache
def gpu_memory() -> int | None:
    """Bytes that were free on the first GPU that this process may see when it asked for the first time, before anything
    of its own lay there; None where the driver's tool does not say, and with ZeroGPU."""
    if zero_gpu():
        return None
    first_visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", first_visible]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True)
        return int(done.stdout.splitlines()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def default_dtype(device: str) -> str:
    """float32 on the CPU, so that numbers are the same on every machine; bfloat16 on a GPU, as models come."""
    return "float32" if device == "cpu" else "bfloat16"


@cache
def prompt_dtype(device: str) -> str:
    """What the products of a prompt are computed in where an answer is read and not measured: bfloat16 on a CPU that is
    clearly faster at it, as those with AMX are, which is tried once; else the default."""
    if device == "cpu" and _seconds("float32") > CLEARLY * _seconds("bfloat16"):
        return "bfloat16"
    return default_dtype(device)


def _seconds(dtype: str) -> float:
    """What a product of a small model's size takes, at best."""
    x, weight = (torch.ones(shape, dtype=getattr(torch, dtype)) for shape in ((128, 1024), (1024, 1024)))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        torch.mm(x, weight)
        times.append(time.perf_counter() - started)
    return min(times)


def check_device(device: str) -> None:
    """Raises UserError if the machine has no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("This machine has no CUDA device that torch can use; choose device cpu.")
