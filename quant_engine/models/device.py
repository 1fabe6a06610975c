"""Which device and type a model computes in when nobody says so."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from quant_engine.spec import UserError

_DEVICE_FILES = Path("/dev")


def default_device() -> str:
    """ "cuda" on a machine with an NVIDIA GPU that this process may see, else "cpu"; asked without loading torch."""
    first_visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not first_visible or first_visible.startswith("-"):  # an invalid number hides all that stand behind it
        return "cpu"
    if any(_DEVICE_FILES.glob("nvidia[0-9]*")):  # a container may have been given any of them
        return "cuda"
    return "cuda" if (_DEVICE_FILES / "dxg").exists() and _has_driver() else "cpu"


def _has_driver() -> bool:
    """Whether the CUDA driver is there: under Windows' Linux subsystem GPUs of all makes share one device file."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def default_dtype(device: str) -> str:
    """float32 on the CPU, so that numbers are the same on every machine; bfloat16 on a GPU, as models come."""
    return "float32" if device == "cpu" else "bfloat16"


def check_device(device: str) -> None:
    """Raises UserError if the machine has no such device."""
    import torch  # here: the page asks for the default device and never loads torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("This machine has no CUDA device that torch can use; choose device cpu.")
