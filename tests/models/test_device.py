"""The default device: any NVIDIA GPU that the process may see."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quant_engine.models import device
from quant_engine.spec import UserError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An empty folder in place of /dev, and a process from which no GPU is hidden."""
    monkeypatch.setattr(device, "_DEVICE_FILES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["nvidia0", "nvidia3", "nvidia12"])
def test_a_gpu_of_any_number_is_found(files, name):
    (files / name).touch()
    assert device.default_device() == "cuda"


def test_without_a_gpu_it_is_the_cpu(files):
    for name in ("nvidiactl", "nvidia-uvm", "null"):  # a driver alone computes nothing
        (files / name).touch()
    assert device.default_device() == "cpu"


@pytest.mark.parametrize(
    ("visible", "expected"), [("", "cpu"), ("-1", "cpu"), ("-1,0", "cpu"), ("1", "cuda"), ("GPU-8932f937", "cuda")]
)
def test_a_gpu_that_is_hidden_from_the_process_is_none(files, monkeypatch, visible, expected):
    (files / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.default_device() == expected


@pytest.mark.parametrize(("driver", "expected"), [(True, "cuda"), (False, "cpu")])
def test_windows_shared_device_file_counts_with_nvidias_driver(files, monkeypatch, driver, expected):
    (files / "dxg").touch()
    monkeypatch.setattr(device, "_has_driver", lambda: driver)
    assert device.default_device() == expected


def test_a_device_that_torch_can_not_use_is_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device.check_device("cpu")
    with pytest.raises(UserError, match="no CUDA device that torch can use; choose device cpu"):
        device.check_device("cuda")


def test_asking_for_the_default_loads_no_torch():
    code = (
        "import sys; from quant_engine.models.device import default_device; default_device()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize(("seconds", "chosen"), [((1.0, 0.79), "bfloat16"), ((1.0, 0.81), "float32")])
def test_prompts_are_read_in_bfloat16_where_that_is_clearly_faster(monkeypatch, seconds, chosen):
    monkeypatch.setattr(device, "_seconds", lambda dtype: seconds[dtype == "bfloat16"])
    device.prompt_dtype.cache_clear()
    assert device.prompt_dtype("cpu") == chosen
    device.prompt_dtype.cache_clear()


def test_a_product_is_tried_in_both_types():
    assert all(device._seconds(dtype) > 0 for dtype in ("float32", "bfloat16"))
