"""What a run takes is counted before it starts, and what does not fit is refused with figures."""

import pytest
from typer.testing import CliRunner

from quant_engine import folders, memory
from quant_engine.cli import app
from quant_engine.methods import METHODS
from quant_engine.models.catalog import model_card
from quant_engine.models.shapes import Shape, shape_of, shapes
from quant_engine.progress import Hooks
from quant_engine.runs import needs as module
from quant_engine.runs.execute import execute
from quant_engine.runs.needs import check_room, needs, peak_memory, weight_bytes
from quant_engine.runs.resolve import resolve
from quant_engine.spec import Calibration, QuantSetting, RunSpec, UserError, WeightSpec

SMOLLM2 = Shape(576, 1536, 30, 192, 49152, True)
MEASURED = {
    (SMOLLM2, "fp16", 1024, 2): 1.6e9,
    (SMOLLM2, "rtn", 4096, 1): 2.6e9,
    (SMOLLM2, "gptq", 256, 2): 1.0e9,
    (Shape(512, 1408, 8, 256, 49152, True), "gptq", 256, 2): 0.966e9,
    (Shape(1536, 4096, 16, 512, 49152, True), "fp16", 1024, 2): 2.4e9,
    (Shape(1536, 4096, 16, 512, 49152, True), "gptq", 256, 2): 1.4e9,
    (Shape(1024, 4096, 64, 256, 49152, True), "rtn", 256, 2): 2.0e9,
    (Shape(1024, 4096, 64, 256, 49152, True), "gptq", 256, 2): 1.8e9,
}
"""Peaks of runs on two cores, of perplexity, by (shape, method, window, windows): see benchmarks/memory.py."""


def spec_of(model, method="rtn", **more):
    setting = QuantSetting(method=method, w_bits=4, group_size=16)
    return resolve(RunSpec(weights=WeightSpec(model=str(model), setting=setting), tasks=("perplexity",), **more)).spec


@pytest.mark.parametrize("case", MEASURED)
def test_the_estimate_is_near_what_runs_took(case):
    shape, method, window, windows = case
    setting = QuantSetting() if method == "fp16" else QuantSetting(method=method, w_bits=4, group_size=64)
    calibration = Calibration(samples=16) if method == "gptq" else None
    estimate = peak_memory(shape, setting, ("perplexity",), windows, window, calibration)
    assert estimate == pytest.approx(MEASURED[case], rel=0.15)


def test_the_shape_of_a_folder_is_that_of_its_configuration(tiny_models):
    shape = shape_of(model_card(str(tiny_models / "llama")))
    assert (shape.hidden, shape.intermediate, shape.layers, shape.key_width) == (32, 64, 2, 16)
    assert shape_of(model_card(str(tiny_models / "llava"))).hidden == 32


def test_a_larger_model_window_or_width_takes_more():
    eight, seventy = shapes()["LLaMA3-8B"], shapes()["LLaMA3-70B"]
    four, three = (QuantSetting(method="gptq", w_bits=bits, group_size=128) for bits in (4, 3))
    assert weight_bytes(eight, three) < weight_bytes(eight, four) < weight_bytes(eight, QuantSetting())
    sizes = [peak_memory(shape, four, ("perplexity",), None, 2048, Calibration()) for shape in (eight, seventy)]
    assert 5e9 < sizes[0] < 15e9
    assert 35e9 < sizes[1] < 70e9
    assert peak_memory(eight, four, ("perplexity",), 1, 256, None) < peak_memory(
        eight, four, ("perplexity",), 1, 8192, None
    )


def test_nothing_is_said_of_what_trains_a_model():
    trains = next(name for name, method in METHODS.items() if method.train or method.fine_tunes)
    setting = QuantSetting(method=trains, w_bits=2 if trains == "db_llm" else 4)
    assert peak_memory(shapes()["LLaMA3-8B"], setting, ("perplexity",), None, 2048, Calibration()) is None


def test_what_memory_cannot_hold_is_refused_with_figures_before_any_work(lab, tiny_models, monkeypatch):
    spec = spec_of(tiny_models / "llama", limit=1, window=64)
    check_room(spec)
    monkeypatch.setattr(memory, "free", lambda: 100_000_000)
    with pytest.raises(UserError, match=r"takes about \d+ MB of memory, and 100 MB are free"):
        execute(spec, Hooks())
    assert not folders.checkpoints().exists()


def test_what_the_disk_cannot_hold_is_refused_and_weights_that_are_there_need_none(lab, tiny_models, monkeypatch):
    spec = spec_of(tiny_models / "llama", limit=1, window=64)
    assert needs(spec).disk > 0
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        done = CliRunner().invoke(
            app, ["run", "-m", spec.weights.model, "--method", "rtn", "-b", "4", "-t", "perplexity"]
        )
        assert done.exit_code == 1
        assert "1.0 kB are free" in done.output.replace("\n", " ")
    execute(spec, Hooks())
    assert needs(spec).disk == 0
