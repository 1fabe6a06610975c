"""The worked examples of CONTRIBUTING.md are run as they stand there."""

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from models import tiny_chat

from leaderboard import figures, fit
from leaderboard.analysis import arrange
from leaderboard.store import read_run
from leaderboard.ui import methods_tab
from leaderboard.view import Fitted
from quant_engine import evaluate, folders, methods
from quant_engine.evaluate import Watch
from quant_engine.models.batch import Answered
from quant_engine.progress import Hooks
from quant_engine.runs import execute, folder
from quant_engine.runs.resolve import resolve
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec


def example(heading, name):
    guide = (folders.PROJECT / "CONTRIBUTING.md").read_text()
    section = guide.split(f"## {heading}\n")[1].split("\n## ")[0]
    module = ModuleType(name)
    sys.modules[name] = module
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], module.__dict__)
    return module


def test_the_example_method_makes_a_run_and_the_page_knows_what_it_stores(lab, tmp_path, monkeypatch):
    made = tiny_chat.llama()
    made.model.save_pretrained(tmp_path / "tiny")
    made.tokenizer.save_pretrained(tmp_path / "tiny")
    method = example("Add a method", "clipped_example").METHOD
    monkeypatch.setitem(methods.METHODS, "clipped", method)
    spec = resolve(
        RunSpec(
            weights=WeightSpec(
                model=str(tmp_path / "tiny"),
                setting=QuantSetting(method="clipped", w_bits=3, group_size=16, options={"keep": 0.8}),
            ),
            tasks=("perplexity",),
            window=64,
            limit=2,
        )
    ).spec
    path = execute.execute(spec, Hooks())
    layers = folder.read_layers(path)
    for layer in layers:
        shape = layer.out_features, layer.in_features
        assert (
            method.stored_bits(*shape, spec.weights.setting, method.options(spec.weights.setting)) == layer.stored_bits
        )
    # Without the run's own count, "Nominal and stored bits" and "What fits" ask the method.
    rows = read_run(path).assign(model="SmolLM2-135M", stored_bits=np.nan)
    board = arrange(rows)
    nominal_and_stored = figures.honest_bits(board, "SmolLM2-135M").table.set_index("Setting")
    assert nominal_and_stored.loc["Clipped W3A16 g16 (measured)", "Stored bits"] == pytest.approx(3 + 19 / 16, abs=0.01)
    (setting,) = fit.settings(board, Fitted(model="SmolLM2-135M", card="T4")).to_dict("records")
    assert (setting["label"], setting["fits"]) == ("Clipped W3A16 g16 (measured)", True)
    assert "3 → 3.15" in methods_tab.honest_bits(method.card)


def test_the_example_benchmark_measures(monkeypatch):
    task = example("Add a benchmark", "first_word_example").FirstWord()
    monkeypatch.setitem(evaluate.TASKS, task.name, task)
    answers = [Answered(index, [], "42 apples", None) for index in range(2)]
    monkeypatch.setattr("quant_engine.models.batch.answers", lambda *_: iter(answers))
    item = SimpleNamespace(id="1", image=lambda: None, question="How many?", answers=["42"])
    monkeypatch.setattr("quant_engine.data.drawn.suite.items", lambda task, limit: [item, item][:limit])
    spec = RunSpec(weights=WeightSpec(model="demo"), tasks=(task.name,), limit=2)
    outcome = evaluate.parse_task(task.name).measure(None, spec, Watch())
    assert (outcome.value, outcome.status, len(outcome.outputs)) == (100, "ok", 2)
    assert task.score("the 42", ["42"]) == 0
