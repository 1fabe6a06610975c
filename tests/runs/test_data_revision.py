"""What a run is measured on is part of its question: corrected data are another run, and never answer for the old."""

import hashlib
import os
from dataclasses import replace

import pytest
from evaluate import hub_stand_in, local_sets
from test_execute import do
from typer.testing import CliRunner

from quant_engine import hub
from quant_engine.cli import app
from quant_engine.data import content, corpora, sources
from quant_engine.evaluate import TASKS, Watch, parse_task
from quant_engine.runs import folder
from quant_engine.runs.queue import Queue
from quant_engine.runs.resolve import resolve
from quant_engine.runs.worker import run_claimed
from quant_engine.spec import RunSpec, UserError, WeightSpec

JARS = [{"goal": f"Open jar {k}", "sol1": "turn the lid", "sol2": "throw it away"} for k in range(4)]


def labelled(data, label):
    local_sets.jsonl(data / "piqa_val.jsonl", [row | {"label": label} for row in JARS])


@pytest.fixture
def data(lab, tmp_path, monkeypatch):
    made = tmp_path / "data"
    made.mkdir()
    monkeypatch.setenv("LOWBIT_DATA", str(made))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    labelled(made, 1)
    return made


@pytest.fixture
def asked(data, tiny_models):
    return RunSpec(weights=WeightSpec(model=str(tiny_models / "llama")), tasks=("piqa",), window=64)


def test_a_corrected_file_is_another_run_and_gives_another_number(data, asked):
    wrong = folder.read(do(asked))
    labelled(data, 0)
    right = folder.read(do(asked))
    assert right.path != wrong.path
    assert right.results[0].value == 100 - wrong.results[0].value
    for run in (wrong, right):
        assert run.spec.data == {"piqa": run.results[0].data_revision}
    labelled(data, 1)
    assert do(asked) == wrong.path
    again = CliRunner().invoke(app, ["run", "--model", asked.weights.model, "--tasks", "piqa", "--window", "64"])
    assert "made before" in again.stderr


def test_the_whole_file_counts_whatever_the_limit(data, asked):
    limited = asked.model_copy(update={"limit": 1})
    assert resolve(limited).spec.data == resolve(asked).spec.data
    before = resolve(limited).spec.run_id
    local_sets.jsonl(data / "piqa_val.jsonl", [row | {"label": int(row != JARS[3])} for row in JARS])
    assert resolve(limited).spec.run_id != before


def test_a_queued_run_whose_data_have_changed_ends_in_a_sentence(data, asked):
    spec = resolve(asked).spec
    assert resolve(spec).spec == spec
    labelled(data, 0)
    with pytest.raises(UserError, match=r"^The data of PIQA have changed since this run was asked for \(.*\.$"):
        resolve(spec)
    queue = Queue(data.parent / "queue.sqlite")
    queue.submit(spec)
    ended = run_claimed(queue, spec.run_id, lambda progress: None)
    assert (ended.state, ended.error.partition(" (")[0]) == (
        "failed",
        "The data of PIQA have changed since this run was asked for",
    )


def test_data_that_change_while_the_model_loads_are_not_measured(data, asked):
    def correct(progress):
        if progress.stage == "loading":
            labelled(data, 0)

    with pytest.raises(UserError, match="The data of PIQA have changed"):
        do(asked, correct)
    assert not list(folder.run_folders())


def test_data_that_change_while_they_are_measured_give_no_number(data, asked, monkeypatch):
    measure = type(parse_task("piqa")).measure

    def correct_first(task, loaded, spec, watch):
        labelled(data, 0)
        return measure(task, loaded, spec, watch)

    monkeypatch.setattr(type(parse_task("piqa")), "measure", correct_first)
    with pytest.raises(UserError, match="The data of PIQA changed while they were measured"):
        do(asked)
    assert not list(folder.run_folders())


def test_data_that_are_missing_are_said_when_a_run_is_asked_for(data, asked, monkeypatch):
    monkeypatch.setattr("quant_engine.hub.answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(data / "none"))
    with pytest.raises(UserError, match=r"data set of DocVQA is not on this machine.*set LOWBIT_DATA to that folder\."):
        resolve(asked.model_copy(update={"tasks": ("piqa", "docvqa"), "weights": llava(asked)}))
    (data / "piqa_val.jsonl").unlink()
    (data / "piqa_val.jsonl").mkdir()
    with pytest.raises(UserError, match=r"PIQA: .*piqa_val.jsonl can't be read"):
        resolve(asked)


def llava(asked):
    return asked.weights.model_copy(update={"model": asked.weights.model.replace("llama", "llava")})


SETS = {
    "piqa": ("piqa_val.jsonl", local_sets.PIQA),
    "arc_easy": ("arc_easy_test.jsonl", local_sets.ARC),
    "hellaswag": ("hellaswag_val.jsonl", local_sets.HELLASWAG),
    "winogrande": ("winogrande_xl_val.jsonl", local_sets.WINOGRANDE),
    "c4-new": ("c4_validation.jsonl", [{"text": "some text " * 40}]),
}


@pytest.mark.parametrize("name", [*SETS, "piqa:bos", "mmlu", "wikitext2", "ptb-new", "perplexity", "perplexity:FILE"])
def test_the_revision_is_what_a_result_names(data, name):
    from evaluate import tiny

    for file, rows in SETS.values():
        local_sets.jsonl(data / file, rows)
    for file, rows in zip(("mmlu_test.jsonl", "mmlu_dev.jsonl"), local_sets.mmlu(), strict=True):
        local_sets.jsonl(data / file, rows)
    for file in ("wikitext2_raw_test.txt", "ptb.test.txt", "own.txt"):
        (data / file).write_text(f"A text of {file}, \r\nto be read. " * 30)
    task = parse_task(name.replace("FILE", str(data / "own.txt")))
    spec = RunSpec(weights=WeightSpec(model="tiny"), tasks=(task.name,), window=32, limit=2)
    assert task.measure(tiny.llama(), spec, Watch()).data_revision == task.revision()


def test_drawn_items_and_divergences_have_the_revision_of_what_they_run_on(data):
    text = data / "own.txt"
    text.write_text("Some words to be read. ")
    drawn = TASKS["demo-ai2d"].revision()
    assert drawn.startswith("drawn-v")
    assert parse_task("divergence:demo-ai2d").revision() == drawn
    assert parse_task("divergence").revision() == parse_task("perplexity").revision()
    assert parse_task(f"divergence:{text}").revision() == parse_task(f"perplexity:{text}").revision()


def test_a_hub_set_is_pinned_to_its_commit_and_not_fetched(tmp_path, monkeypatch):
    rows = tmp_path / "rows"
    local_sets.parquet(rows / "data/test-0.parquet", [{"goal": "a"}])
    branch = sources.Source("lab/set", "data/test-*.parquet", "set_test.jsonl")
    converted, pinned = (replace(branch, revision=revision) for revision in (sources.CONVERTED, "c" * 40))
    monkeypatch.delenv("LOWBIT_DATA", raising=False)
    with hub_stand_in.hub({"lab/set": {"main": ("a" * 40, rows), sources.CONVERTED: ("b" * 40, rows)}}) as (
        address,
        listed,
    ):
        hub_stand_in.ask(monkeypatch, address, tmp_path / "cache")
        assert [sources.revision(source, "The set") for source in (branch, converted, pinned)] == [
            f"lab/set@{commit * 40}" for commit in "abc"
        ]
        assert corpora.Corpus("c", "C", branch, "text", "").revision() == f"lab/set@{'a' * 40}"
        assert not any("/resolve/" in path or "/tree/" in path for path in listed)
        assert sources.load(branch, "The set").revision == f"lab/set@{'a' * 40}"
        assert sources.load(converted, "The set").revision == f"lab/set@{'b' * 40}"
    hub._answers.cache_clear()
    hub_stand_in.ask(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert sources.load(branch, "The set").revision == f"lab/set@{'a' * 40}"
    with pytest.raises(UserError, match=r"The data set of It is not on this machine .* or put set_test\.jsonl into"):
        sources.revision(sources.Source("lab/other", "*", "set_test.jsonl"), "It")


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path, monkeypatch):
    read = []

    @content.remembered
    def text_of(path):
        read.append(path)
        return path.read_text()

    path = tmp_path / "text"
    path.write_text("one")
    assert (text_of(path), text_of(path), len(read)) == ("one", "one", 2)  # it may change within its clock's tick
    monkeypatch.setattr(content, "RECENT_S", -1.0)
    assert (text_of(path), text_of(path), len(read)) == ("one", "one", 3)
    times = path.stat()
    other = tmp_path / "other"
    other.write_text("two")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert text_of(path) == "two", "of the same size and time"
    with pytest.raises(FileNotFoundError):
        text_of(tmp_path / "none")


def test_the_hash_of_a_large_file_is_remembered_on_disk_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(content, "LARGE", 3)
    monkeypatch.setattr(content, "RECENT_S", -1.0)
    hashed = content.file_hash.__wrapped__  # as in another process
    path, small = tmp_path / "large", tmp_path / "small"
    small.write_text("1")
    for text in ("one", "two"):
        path.write_text(text)
        expected = hashlib.sha256(text.encode()).hexdigest()
        assert hashed(path) == expected
        with monkeypatch.context() as without:
            without.delattr(hashlib, "file_digest")
            assert hashed(path) == expected
            with pytest.raises(AttributeError):
                hashed(small)
    (memory,) = (tmp_path / "home/hashes").iterdir()
    memory.write_text("7")
    assert hashed(path) == expected, "what stands there can't be read"


def test_runs_of_earlier_versions_are_still_read(asked):
    spec = resolve(asked).spec
    old = {name: value for name, value in spec.model_dump(mode="json").items() if name != "data"}
    assert RunSpec(**old).run_id != spec.run_id
    assert RunSpec(**old).run_id == RunSpec(**old, data={}).run_id
    from quant_engine.spec import digest

    assert RunSpec(**old).run_id == digest(old)


def test_rows_are_those_of_the_file_even_if_it_has_the_name_and_time_of_another(data):
    by_line = sources.Source("lab/set", "x", "lines_test.jsonl")
    by_column = sources.Source("lab/set", "x", "columns_test.parquet")
    for goal in "ab":
        local_sets.jsonl(data / by_line.short, [{"goal": goal}])
        local_sets.parquet(data / by_column.short, [{"goal": goal}])
        for source in (by_line, by_column):
            os.utime(data / source.short, (1e9, 1e9))
            assert sources.load(source, "The set")[0] == {"goal": goal}


def test_a_picture_beside_the_rows_is_part_of_the_data(data):
    rows = [{"image": f"images/{k}.png", "question": "How many?", "label": "2"} for k in range(2)]
    local_sets.jsonl(data / "chartqa/val.jsonl", rows)
    revisions = [TASKS["chartqa"].revision()]
    (data / "chartqa/images").mkdir()
    for color in ("red", "blue"):
        for k in range(2):
            (data / f"chartqa/images/{k}.png").write_bytes(local_sets.picture(color)["bytes"])
            revisions.append(TASKS["chartqa"].revision())
    assert len(set(revisions)) == 5
    assert sources.load(TASKS["chartqa"].source, "ChartQA").revision == revisions[-1]
