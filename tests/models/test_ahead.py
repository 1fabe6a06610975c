"""What is compiled ahead is what models then take, and nothing else is compiled for them."""

import os
import threading
import time
from contextlib import nullcontext

import pytest
import torch
from filelock import FileLock
from models import test_step

from quant_engine.kernels import ahead, compiled, decoding
from quant_engine.kernels.matmul import matmul
from quant_engine.weights.half import Half


def test_a_models_step_and_products_are_those_that_were_compiled_ahead():
    shared = decoding.stepper, compiled.multiplier, compiled.unpacker
    for functions in shared:
        functions.cache_clear()  # other tests may have had them compiled for other types
    ahead.compile_shared()
    functions = [function(parallel) for function in shared for parallel in (False, True)]
    before = [function.signatures for function in functions]
    assert [len(signatures) for signatures in before] == [1] * 6
    large, threads = Half.pack(torch.randn(4096, 512).half()), torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        test_step.check(*test_step.models("llama", "grouped"), 1)
        for x in (torch.randn(1, 512), torch.randn(17, 512)):
            torch.testing.assert_close(matmul(x, large), x @ large.dequantize().T, rtol=1e-4, atol=1e-3)
    torch.set_num_threads(threads)
    assert [function.signatures for function in functions] == before


@pytest.mark.parametrize(("seconds", "needed"), [(None, True), (-1, True), (1, False)])
def test_it_is_needed_where_no_code_is_newer_than_what_it_is_made_of(tmp_path, monkeypatch, seconds, needed):
    monkeypatch.setattr(ahead, "_FOLDER", tmp_path)
    (tmp_path / "decoding.py").touch()
    (tmp_path / "__pycache__").mkdir()
    if seconds is not None:
        code, written = (
            tmp_path / "__pycache__" / "decoding.stepper.locals.step-1.nbi",
            (tmp_path / "decoding.py").stat(),
        )
        code.touch()
        os.utime(code, (written.st_atime, written.st_mtime + seconds))
    assert ahead.is_needed() == needed


def test_whoever_needs_the_same_waits_for_the_process_that_compiles(lab):
    begun, order = threading.Event(), []

    def compile_slowly():
        with ahead.at_work():
            begun.set()
            time.sleep(0.3)
            order.append("compiled")

    other = threading.Thread(target=compile_slowly)
    other.start()
    begun.wait()
    with ahead.at_work():
        order.append("loaded")
    other.join()
    assert order == ["compiled", "loaded"]


@pytest.mark.parametrize("home", ["a file", "held"])
def test_nobody_waits_where_no_lock_can_be_had(tmp_path, monkeypatch, home):
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ahead, "PATIENCE_S", 0.1)
    if home == "a file":
        (tmp_path / "home").write_text("")
        holder = nullcontext()
    else:
        (tmp_path / "home").mkdir()
        holder = FileLock(tmp_path / "home" / "compiling.lock")
    with holder, ahead.at_work():
        pass
