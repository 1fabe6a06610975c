"""The runs that come with the project are whole, and asking for them today would be the same question."""

import pytest

from quant_engine import folders
from quant_engine.evaluate import TASKS, parse_result_name
from quant_engine.runs import folder
from quant_engine.runs.resolve import resolve

ALWAYS_HERE = {"perplexity", "demo-ai2d", "demo-chartqa", "demo-docvqa", "demo-mmbench", "demo-mme"}
"""What comes with the project; the other data are those of whoever asks, here taken to be the same."""
SHIPPED = sorted(path for path in (folders.ASSETS / "runs").glob("*") if path.is_dir())
PUBLISHED = [path for path in SHIPPED if folder.read(path).spec.weights.checkpoint]
"""Runs of checkpoints that a benchmark has other programs write."""


@pytest.mark.demo
@pytest.mark.parametrize("path", [path for path in SHIPPED if path not in PUBLISHED], ids=lambda path: path.name)
def test_a_shipped_run_can_be_made_again(path, monkeypatch):
    run = folder.read(path)
    weights = run.spec.weights.model_copy(update={"revision": None})
    for task in set(run.spec.tasks) - ALWAYS_HERE:
        monkeypatch.setattr(TASKS[task], "revision", lambda task=task: run.spec.data[task])
    asked = run.spec.model_copy(update={"weights": weights, "data": {}})
    assert resolve(asked).spec.run_id == path.name
    check_content(run)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_a_shipped_run_of_a_checkpoint_has_its_weights_from_a_benchmark(path):
    run = folder.read(path)
    parent, name = run.spec.weights.checkpoint.location.split("/")
    assert parent == "published"
    assert f'"{name.removesuffix(".gguf")}"' in (folders.PROJECT / "benchmarks/checkpoints.py").read_text("utf-8")
    check_content(run)


def check_content(run):
    path = run.path
    assert run.spec.data.keys() == {*run.spec.tasks}
    for result in run.results:
        assert result.data_revision == run.spec.data[parse_result_name(result.task)[0].name]
    for task in run.spec.tasks:
        assert folder.read_items(path, task)
    if run.spec.weights.setting.method != "fp16" and not run.spec.weights.checkpoint:
        assert folder.read_layers(path)


def test_shipped_runs_name_no_folder_of_the_machine_they_were_made_on():
    for path in SHIPPED:
        for text in (path / "run.json", path / "log.txt"):
            words = text.read_text(encoding="utf-8")
            assert not any(place in words for place in ("/work", "/tmp", "/home", "/root")), text
