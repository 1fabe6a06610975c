"""The worked examples of CONTRIBUTING.md are run as they stand there."""

import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
from models import tiny_chat

from quant_engine import evaluate, folders, methods
from quant_engine.evaluate import Watch
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


def test_the_example_method_makes_a_run(lab, tmp_path, monkeypatch):
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
    assert folder.read(path).results[0].stored_bits == pytest.approx(3 + 19 / 16, abs=0.2)


def test_the_example_benchmark_measures(monkeypatch):
    task = example("Add a benchmark", "first_word_example").FirstWord()
    monkeypatch.setitem(evaluate.TASKS, task.name, task)
    monkeypatch.setattr("quant_engine.models.decode.answer_text", lambda *args, **kwargs: "42 apples")
    item = SimpleNamespace(id="1", image=lambda: None, question="How many?", answers=["42"])
    monkeypatch.setattr("quant_engine.data.drawn.suite.items", lambda task, limit: [item, item][:limit])
    spec = RunSpec(weights=WeightSpec(model="demo"), tasks=(task.name,), limit=2)
    outcome = evaluate.parse_task(task.name).measure(None, spec, Watch())
    assert (outcome.value, outcome.status, len(outcome.outputs)) == (100, "ok", 2)
    assert task.score("the 42", ["42"]) == 0
