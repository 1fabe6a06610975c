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
from quant_engine.weights import registry
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


def test_products_of_the_methods_forms_are_compiled_for_all_weights_of_their_kind(monkeypatch):
    forms = [form for number, form in enumerate(ahead.FORMS) if not number or form[0] != ahead.FORMS[number - 1][0]]
    monkeypatch.setattr(ahead, "FORMS", forms)
    ahead.compile_forms(leisure=0)
    before = compiled.product.cache_info().misses, compiled.dequantizer.cache_info().misses
    for form, config in forms:
        weight = registry.empty_weight(form, out_features=48, in_features=128, **config)
        for buffer in weight.buffers():
            buffer.zero_()
        for rows in (1, 5, 17):
            assert not matmul(torch.randn(rows, 128), weight).any(), form
    assert (compiled.product.cache_info().misses, compiled.dequantizer.cache_info().misses) == before


def test_a_form_is_compiled_ahead_unless_it_is_made_of_others_or_comes_from_other_programs():
    made_of_others = {"half", "low_rank", "mixed_width", "rounded_inputs"}
    foreign = {"gguf_blocks", "scaled_int", "float8", "fp4_codebook"}
    assert {form for form, _ in ahead.FORMS} == set(registry.FORMS) - made_of_others - foreign


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
