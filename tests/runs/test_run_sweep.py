"""Sweeps: which runs they are, what is left out, and one after another from the command line."""

import json

import pytest
from typer.testing import CliRunner

from quant_engine import folders
from quant_engine.cli import app
from quant_engine.commands import sweep as command
from quant_engine.runs.queue import Queue
from quant_engine.runs.sweep import Sweep, plan, read_sweep, settings_of
from quant_engine.spec import UserError

TEXT = "Once upon a time there was a model of few bits. " * 40


@pytest.fixture
def tiny(tiny_models, tmp_path, lab):
    """A tiny model's folder and a task that measures it on a text."""
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tiny_models / "llama"), f"perplexity:{tmp_path / 'text.txt'}"


def labels(**fields):
    settings, left_out = settings_of(Sweep(**{"models": "demo-llm", "tasks": "perplexity"} | fields))
    return [setting.label for setting in settings], left_out


def test_methods_bits_and_groups_are_combined_and_each_setting_comes_once():
    found, left_out = labels(methods="fp16, rtn,gptq", bits="4,3", group_sizes=[64, None], settings="rtn-4-g64,awq-4")
    assert found == [
        "FP16", "RTN W4A16 g64", "RTN W4A16", "RTN W3A16 g64", "RTN W3A16",
        "GPTQ W4A16 g64", "GPTQ W4A16", "GPTQ W3A16 g64", "GPTQ W3A16", "AWQ W4A16",
    ]  # fmt: skip
    assert left_out == []


def test_a_method_without_groups_is_taken_once_with_its_own_activation_bits():
    assert labels(methods=("quip", "smoothquant"), bits=(4, 8), group_sizes=(64, 128))[0] == [
        "QUIP W4A16", "QUIP W8A16", "SMOOTHQUANT W4A8", "SMOOTHQUANT W8A8",
    ]  # fmt: skip


def test_what_a_method_is_not_defined_for_is_left_out_with_why():
    found, left_out = labels(methods="billm,rtn", bits="2")
    assert found == ["RTN W2A16"]
    assert left_out == ["BiLLM is defined for 1.1 weight bits, not 2."]
    with pytest.raises(UserError, match=r"BiLLM is defined for 1\.1"):
        plan(Sweep(models="demo-llm", methods="billm", bits=2, tasks="perplexity"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"methods": "nix", "bits": "4"}, "There is no method 'nix'"),
        ({"methods": "rtn"}, "names no bits for rtn"),
        ({"methods": "rtn", "bits": "9"}, "from 1 to 8"),
        ({"settings": "rtn"}, "written such as gptq-4"),
        ({}, "names no setting"),
        ({"methods": "rtn", "bits": "4", "models": "no-model"}, "There is no model"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_a_sentence(fields, words):
    with pytest.raises(UserError, match=words):
        plan(Sweep(**{"models": "demo-llm", "tasks": "perplexity"} | fields))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: [a\n", "is no YAML in line"),
        ("- a\n", "describes no sweep"),
        ("models: a\n", "tasks"),
        ("models: []\ntasks: x\n", "Name at least one of models"),
        ("models: a\ntasks: x\nbits: [four]\n", "bits are numbers such as 4, not 'four'"),
        ("models: a\ntasks: x\nmethod: rtn\n", "method"),
    ],
)
def test_a_file_that_is_no_sweep_is_a_sentence(tmp_path, text, words):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_sweep(file)
    assert str(file) in str(caught.value)
    with pytest.raises(UserError, match="can't be read"):
        read_sweep(tmp_path / "none.yaml")


def test_a_sweep_makes_its_runs_once_and_shows_them_together(tiny, tmp_path):
    model, task = tiny
    file = tmp_path / "sweep.yaml"
    fields = {"models": model, "methods": ["fp16", "rtn", "billm"], "bits": [4, 2], "group_sizes": 16}
    file.write_text(json.dumps(fields | {"tasks": [task], "limit": 1, "window": 64}))
    first = CliRunner().invoke(app, ["sweep", str(file), "--json"])
    assert first.exit_code == 0, first.output
    assert "Run 3 of 3: " in first.stderr
    assert "Left out: BiLLM is defined for 1.1 weight bits, not 4." in first.stderr
    rows = json.loads(first.stdout)
    assert [(row["setting"], row["state"]) for row in rows] == [
        ("fp16", "done"), ("rtn-4-g16", "done"), ("rtn-2-g16", "done"),
    ]  # fmt: skip
    assert all(row["results"][0]["items"] == 1 for row in rows)
    again = CliRunner().invoke(app, ["sweep", str(file)])
    assert again.exit_code == 0
    assert "Run " not in again.stderr
    assert "RTN W2A16 g16" in again.stdout
    assert f"{rows[2]['results'][0]['stored_bits']:.2f}" in again.stdout
    listed = CliRunner().invoke(app, ["queue", "list", "--json"])
    assert {run["state"] for run in json.loads(listed.stdout)} == {"done"}


def test_a_run_that_fails_keeps_no_other_from_being_made(tiny, monkeypatch):
    model, task = tiny
    working, calls = command.run_claimed, []

    def sometimes(queue, run_id, show, *more):
        calls.append(run_id)
        if len(calls) == 1:
            queue.claim(run_id)
            queue.fail(run_id, queue.get(run_id).owner, "It broke.")
            return queue.get(run_id)
        return working(queue, run_id, show, *more)

    monkeypatch.setattr(command, "run_claimed", sometimes)
    options = ["-m", model, "--settings", "rtn-4-g16,rtn-3-g16", "-t", task, "--limit", "1", "--window", "64"]
    done = CliRunner().invoke(app, ["sweep", *options])
    assert done.exit_code == 1
    assert "It broke." in done.stderr
    assert done.stdout.count("failed") == 1
    assert done.stdout.count("done") == 1


def test_ctrl_c_takes_what_waits_out_of_the_queue(tiny, monkeypatch):
    model, task = tiny

    def stopped(queue, run_id, show, *more):
        queue.claim(run_id)
        queue.confirm_stop(run_id, queue.get(run_id).owner)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_claimed", stopped)
    options = ["-m", model, "--settings", "rtn-4-g16,rtn-3-g16", "-t", task, "--limit", "1", "--window", "64"]
    assert CliRunner().invoke(app, ["sweep", *options]).exit_code == 130
    assert [run.state for run in Queue(folders.queue()).list()] == ["cancelled"] * 2


def test_the_queue_is_seen_stopped_and_worked_off(tiny):
    model, task = tiny
    fields = {"models": model, "settings": "rtn-4-g16,rtn-3-g16", "tasks": task, "limit": 1, "window": 64}
    queue, runner = Queue(folders.queue()), CliRunner()
    assert "The queue is empty." in runner.invoke(app, ["queue", "list"]).stdout
    first, second = (queue.submit(spec) for spec in plan(Sweep(**fields)).specs)
    assert f"{first}: cancelled" in runner.invoke(app, ["queue", "cancel", first[:8]]).stdout
    assert f"{first}: queued" in runner.invoke(app, ["queue", "resume", first[:8]]).stdout
    assert runner.invoke(app, ["queue", "cancel", second]).exit_code == 0
    worked = runner.invoke(app, ["queue", "work"])
    assert worked.exit_code == 0
    assert "1 done, 0 failed; nothing waits." in worked.stdout
    assert "Done: " in runner.invoke(app, ["queue", "log", first]).stdout
    shown = runner.invoke(app, ["queue", "list"]).stdout
    assert "done" in shown
    assert "cancelled" in shown
    for name in ("zzz", ""):
        refused = runner.invoke(app, ["queue", "cancel", name])
        assert refused.exit_code == 2
        assert "whose id begins with" in refused.output


def test_the_queue_holds_back_lets_before_notes_and_deletes(tiny):
    model, task = tiny
    fields = {"models": model, "settings": "rtn-4-g16,rtn-3-g16", "tasks": task, "limit": 1, "window": 64}
    queue, runner = Queue(folders.queue()), CliRunner()
    first, second = (queue.submit(spec) for spec in plan(Sweep(**fields)).specs)
    assert f"{first}: high priority" in runner.invoke(app, ["queue", "priority", first, "high"]).stdout
    assert f"{second}: low priority" in runner.invoke(app, ["queue", "priority", second, "low"]).stdout
    assert (queue.get(first).priority, queue.get(second).priority) == (1, -1)
    assert runner.invoke(app, ["queue", "priority", first, "urgent"]).exit_code == 2
    assert f"{first}: paused" in runner.invoke(app, ["queue", "pause", first]).stdout
    assert queue.next_to_start() == second
    assert runner.invoke(app, ["queue", "note", first, "for the talk"]).exit_code == 0
    assert queue.get(first).note == "for the talk"
    assert runner.invoke(app, ["queue", "delete", first], input="n\n").exit_code == 0
    assert queue.get(first).state == "paused"
    assert f"{first}: deleted" in runner.invoke(app, ["queue", "delete", first], input="y\n").stdout
    assert [run.run_id for run in queue.list()] == [second]
    refused = runner.invoke(app, ["queue", "delete", second, "--yes"])
    assert refused.exit_code == 2
    assert "cancel it before" in refused.output


def test_a_method_takes_the_options_that_a_sweep_names_and_each_calibration_is_a_run(tiny):
    model, task = tiny
    sweep = Sweep(
        models=model,
        settings="rtn-4-g16,gptq-4-g16",
        options={"gptq": {"act_order": True}},
        calibration=[{"samples": 2, "length": 32}, {"samples": 2, "length": 32, "at_once": 1}],
        tasks=task,
        limit=3,
        windows=1,
        window=32,
    )
    specs = plan(sweep).specs
    assert [(spec.weights.setting.method, spec.weights.setting.options.get("act_order")) for spec in specs] == [
        ("rtn", None), ("gptq", True), ("gptq", True)
    ]  # fmt: skip
    assert [spec.weights.calibration and spec.weights.calibration.at_once for spec in specs] == [None, None, 1]
    assert {(spec.limit, spec.windows, spec.text_windows) for spec in specs} == {(3, 1, 1)}
    with pytest.raises(UserError, match="There is no method 'gtpq'"):
        plan(sweep.model_copy(update={"options": {"gtpq": {}}}))


def test_the_sweeps_that_come_with_the_project_can_be_read_and_have_no_undefined_setting():
    for file in (folders.ASSETS / "sweeps").glob("*.yaml"):
        settings, left_out = settings_of(read_sweep(file))
        assert settings
        assert left_out == []


def test_runs_that_came_with_the_project_are_left_out_if_asked(tiny, tmp_path, monkeypatch):
    model, task = tiny
    words = [
        "sweep",
        "-m",
        model,
        "--methods",
        "rtn",
        "-b",
        "4",
        "-g",
        "16",
        "-t",
        task,
        "--window",
        "32",
        "--limit",
        "1",
    ]
    assert CliRunner().invoke(app, words).exit_code == 0
    folders.results().rename(tmp_path / "shipped")
    monkeypatch.setattr(folders, "shipped", lambda: tmp_path / "shipped")
    done = CliRunner().invoke(app, [*words, "--new"])
    assert done.exit_code == 0, done.output
    assert "1 of 1 runs are there" in done.output
    assert not folders.results().exists()
