"""An evaluation that was interrupted goes on behind its last finished item."""

import json
import math
import shutil
import signal
import subprocess
import sys

import pytest
from evaluate import local_sets
from test_execute import do

from quant_engine import folders
from quant_engine.evaluate import likelihood
from quant_engine.progress import Stopped
from quant_engine.results import ItemOutput
from quant_engine.runs import folder
from quant_engine.runs.finished_items import FinishedItemsFile, remove
from quant_engine.runs.resolve import resolve
from quant_engine.spec import RunSpec, UserError, WeightSpec


def output(k, score=1.0):
    return ItemOutput(item=str(k), prompt="p\n", gold=["g"], prediction="é", score=score, log_probabilities=[-1.5])


def test_items_come_back_of_the_same_data_alone(lab):
    first = FinishedItemsFile("0" * 16, "perplexity:/a/b.txt@0f")
    assert first.open("data 1") == {}
    first.add([output(1), output(2)])
    first.add([output(3, math.nan)])
    again = FinishedItemsFile("0" * 16, "perplexity:/a/b.txt@0f")
    found = again.open("data 1")
    assert (list(found), again.earlier_count) == (["1", "2", "3"], 3)
    assert found["1"] == output(1)
    assert math.isnan(found["3"].score)
    assert FinishedItemsFile("0" * 16, "perplexity:/a/b.txt@0f").open("data 2") == {}
    assert FinishedItemsFile("1" * 16, "perplexity:/a/b.txt@0f").open("data 2") == {}


def test_a_line_that_was_cut_off_ends_the_file(lab):
    first = FinishedItemsFile("0" * 16, "piqa")
    first.open("data")
    first.add([output(1), output(2)])
    (path,) = (folders.home() / "evaluations").rglob("*.jsonl")
    path.write_text(path.read_text()[:-20])
    again = FinishedItemsFile("0" * 16, "piqa")
    assert list(again.open("data")) == ["1"]
    again.add([output(2)])
    assert list(FinishedItemsFile("0" * 16, "piqa").open("data")) == ["1", "2"]
    remove("0" * 16)
    assert FinishedItemsFile("0" * 16, "piqa").open("data") == {}


RESUME = """
import resource, signal, sys
from quant_engine.runs.finished_items import FinishedItemsFile
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
FinishedItemsFile("0" * 16, "piqa").open("data")
"""


def test_a_line_without_its_end_is_written_anew_and_glued_to_nothing(lab):
    FinishedItemsFile("0" * 16, "piqa").open("data")
    FinishedItemsFile("0" * 16, "piqa").add([output(1), output(2)])
    (path,) = (folders.home() / "evaluations").rglob("*.jsonl")
    path.write_text(path.read_text().removesuffix("\n"))
    again = FinishedItemsFile("0" * 16, "piqa")
    assert list(again.open("data")) == ["1"]
    again.add([output(2), output(3)])
    assert list(FinishedItemsFile("0" * 16, "piqa").open("data")) == ["1", "2", "3"]


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_kill_while_resuming_loses_no_item(lab, cut_off):
    """The system kills the process as soon as a file that it writes is longer than a tenth of what there is."""
    FinishedItemsFile("0" * 16, "piqa").open("data")
    FinishedItemsFile("0" * 16, "piqa").add([output(k) for k in range(1000)])
    (path,) = (folders.home() / "evaluations").rglob("*.jsonl")
    if cut_off:
        path.write_text(path.read_text() + '{"item": "1000", "pro')
    killed = subprocess.run(
        [sys.executable, "-c", RESUME, str(path.stat().st_size // 10)], cwd=folders.PROJECT, check=False
    )
    assert killed.returncode == (-signal.SIGXFSZ if cut_off else 0), "only what must be cut off is written anew"
    assert len(FinishedItemsFile("0" * 16, "piqa").open("data")) == 1000


@pytest.fixture
def piqa(lab, tiny_models, tmp_path, monkeypatch):
    """A run of a tiny model on PIQA, one item a batch."""
    monkeypatch.setenv("LOWBIT_DATA", str(tmp_path))
    monkeypatch.setitem(likelihood.BATCH_TOKENS, "cpu", 1)
    local_sets.jsonl(tmp_path / "piqa_val.jsonl", local_sets.PIQA)
    return resolve(RunSpec(weights=WeightSpec(model=str(tiny_models / "llama")), tasks=("piqa",))).spec


def test_a_run_that_was_stopped_goes_on_at_the_next_item(piqa):
    seen = []
    with pytest.raises(Stopped):
        do(piqa, seen.append, lambda: seen[-1].item == 3)
    assert not folder.exists(piqa.run_id)
    seen.clear()
    path = do(piqa, seen.append)
    items = [one.item for one in seen if one.stage == "evaluating" and one.item]
    assert items == [4, 5, 6, 7]
    last = seen[[one.item for one in seen].index(7)]
    assert last.items_per_s > 0
    assert last.eta_s == 0
    head, norm = folder.read(path).results
    assert (head.task, head.metric, head.items) == ("piqa", "accuracy", 7)
    assert (norm.task, norm.metric, norm.duration_s) == ("piqa_norm", "acc_norm", None)
    assert head.data_revision.startswith("piqa_val.jsonl sha256:")
    kept = folder.read_items(path, "piqa")
    assert [one.item for one in kept] == [str(k) for k in range(7)]
    assert all(len(one.log_probabilities) == len(one.choices) == 2 for one in kept)
    assert not (folders.home() / "evaluations" / piqa.run_id).exists()


def test_absent_data_is_said_before_any_work(piqa, monkeypatch, tmp_path):
    monkeypatch.setenv("LOWBIT_DATA", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(exist_ok=True)
    monkeypatch.setattr("quant_engine.hub.answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    seen = []
    spec = piqa.model_copy(update={"tasks": ("hellaswag",)})
    with pytest.raises(UserError, match="set LOWBIT_DATA to that folder"):
        do(spec, seen.append)
    assert seen == []


def test_numbers_so_far_come_with_the_items_and_end_as_the_results(piqa, monkeypatch):
    monkeypatch.setattr("quant_engine.evaluate.interim.EVERY_S", 0.0)
    monkeypatch.setattr("quant_engine.evaluate.interim.MOST_SHARE", 1e9)
    seen = []
    with pytest.raises(Stopped):
        do(piqa, seen.append, lambda: seen[-1].item == 3)
    assert [number.done for progress in seen for number in progress.interims] == [1, 2, 3]
    seen.clear()
    run = folder.read(do(piqa, seen.append))
    evaluated = [progress for progress in seen if progress.interims]
    assert [progress.interims[0].done for progress in evaluated] == [4, 5, 6, 7], "those of the earlier try count"
    last = evaluated[-1].interims[0]
    assert (last.title, last.total) == ("PIQA", 7)
    assert last.value == run.results[0].value
    assert last.low <= last.value <= last.high


@pytest.fixture
def demo_tasks(lab, tiny_models, tmp_path, monkeypatch):
    """A run of a tiny model on two tasks of the demo suite, two of whose pictures are the same."""
    shutil.copytree(tiny_models / "llava", tmp_path / "llava")
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 4096  # a byte is a token here
    (tmp_path / "llava" / "config.json").write_text(json.dumps(config))
    tasks = ("demo-mmbench", "perplexity", "demo-mme")
    monkeypatch.setattr("quant_engine.models.batch.ROWS", 2)
    return resolve(RunSpec(weights=WeightSpec(model=str(tmp_path / "llava")), tasks=tasks, limit=2, window=64)).spec


def test_tasks_that_are_asked_together_go_on_together_and_their_times_are_those_of_the_run(demo_tasks):
    seen = []
    with pytest.raises(Stopped):
        do(demo_tasks, seen.append, lambda: seen[-1].task == "Demo MME" and seen[-1].item == 1)
    before = {progress.task: progress.item for progress in seen if progress.item}
    assert set(before) == {"Demo MMBench", "Demo MME"}, "questions about the same picture are asked at the same time"
    seen.clear()
    run = folder.read(path := do(demo_tasks, seen.append))
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    (number,) = next(progress for progress in reversed(seen) if progress.stage == "evaluating").interims
    assert number.title == "Built-in text", "the others are of all their rotations and pairs"
    items = {task: [p.item for p in seen if p.task == task and p.item] for task in before}
    for task, count in (("Demo MMBench", len(folder.read_items(path, "demo-mmbench"))), ("Demo MME", 2)):
        assert items[task] == list(range(before[task] + 1, count + 1))
    assert [result.task for result in run.results if result.duration_s is not None] == list(demo_tasks.tasks)
    assert 0 < sum(result.duration_s or 0 for result in run.results) < run.about["duration_s"] + 0.01
    assert "Demo MMBench, Demo MME are asked together" in (path / "log.txt").read_text()
