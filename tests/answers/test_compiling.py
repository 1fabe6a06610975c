"""Answers before and after the kernels' machine code is there."""

import sys
import time
from types import SimpleNamespace

import pytest
import torch
from kernels import test_codebook_kernels, test_matmul
from models import tiny_chat
from weights import test_binary, test_mixed_width

from quant_engine.answers import compiling
from quant_engine.answers.compiling import Compiling
from quant_engine.kernels import compiled, cpu, matmul
from quant_engine.kernels.linear import QuantLinear
from quant_engine.models.architecture import LINEARS
from quant_engine.models.decode import PictureCache
from quant_engine.models.load import get_ready
from quant_engine.models.open_answers import OpenAnswers
from quant_engine.models.step import step_of
from quant_engine.weights.half import Half
from quant_engine.weights.rotated import RotatedInt

FORMS = {
    "half": lambda rows, columns: Half.pack(torch.randn(rows, columns).half() / 4),
    "bfloat16": lambda rows, columns: Half.pack(torch.randn(rows, columns).bfloat16() / 4),
    "grouped": lambda rows, columns: test_matmul.stored(4, rows, columns, 32, seed=rows),
    "symmetric": lambda rows, columns: test_matmul.stored(8, rows, columns, 32, symmetric=True, seed=rows),
    "codebook": lambda rows, columns: test_codebook_kernels.stored(4, rows, columns, 32),
    "binary": lambda rows, columns: test_binary.made("binary", rows, columns, 32)[0],
    "residual": lambda rows, columns: test_binary.made("residual", rows, columns, 32)[0],
    "mixed": lambda rows, columns: test_mixed_width.made([2, 1, 3][: columns // 32], 2, 32, columns, rows)[0],
    "rotated": lambda rows, columns: RotatedInt.pack(
        torch.randint(16, (rows, columns)), torch.full((1,), 0.1).half(), torch.ones(columns).half(), 4, 0
    ),
}
WRITES = "import pathlib, sys, time; print(flush=True); time.sleep(30)"
FAILS = "raise SystemExit(1)"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "_marker", lambda: tmp_path / "compiled")
    yield tmp_path / "compiled"
    matmul.use_cpu_kernels(True)


def test_where_everything_is_compiled_no_process_is_started(marker):
    marker.touch()
    Compiling(("/no/such/program",))
    assert matmul.CPU_KERNELS


@pytest.mark.parametrize("command", [(sys.executable, "-c", WRITES), (sys.executable, "-c", FAILS), ("/none",)])
def test_kernels_are_taken_up_as_soon_as_their_code_is_there_or_nobody_makes_it(marker, command):
    waiting = Compiling(command)
    assert not matmul.CPU_KERNELS
    while not matmul.CPU_KERNELS:
        time.sleep(0.02)
        waiting.take_up()
    assert matmul.CPU_KERNELS["half"] is cpu


@pytest.mark.parametrize("form", ["half", "grouped", "rotated", "mixed"])
def test_an_answer_goes_on_with_the_kernels_where_it_began_without(form):
    def answered(kernels_after):
        loaded = tiny_chat.llama(seed=3)
        decoder = loaded.model.get_decoder()
        for block in decoder.layers:
            for path in LINEARS:
                linear, (parent, _, leaf) = block.get_submodule(path), path.rpartition(".")
                weight = FORMS[form](linear.out_features, linear.in_features)
                setattr(block.get_submodule(parent), leaf, QuantLinear(weight))
        matmul.use_cpu_kernels(kernels_after == 0)
        get_ready(loaded.model, torch.float32)
        answers = OpenAnswers(loaded, PictureCache())
        answer = answers.join(None, "Why?", 12)
        for count in range(1, 12):
            if count == kernels_after:
                matmul.use_cpu_kernels(True)
            if not answer.last.finished:
                answers.advance([answer])
        assert (step_of(decoder) is not None) == (form != "rotated")
        return answer.tokens

    try:
        tokens = answered(0)
        assert answered(1) == answered(5) == tokens
    finally:
        matmul.use_cpu_kernels(True)


def test_what_is_compiled_ahead_is_what_methods_store(monkeypatch):
    monkeypatch.setattr(compiled, "product", lambda *kind: SimpleNamespace(address=0))  # nothing is computed
    for form, make in FORMS.items():
        weight = make(64, 96)
        for part in weight.parts.values() if form == "mixed" else [weight]:
            plan = cpu.plan(part)
            assert (plan.form, plan.bits, plan.variant) in compiling.KINDS
    assert step_of(compiling._small_decoder())
