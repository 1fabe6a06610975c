"""A whole run on a tiny model: found again, resumed, reproducible, and with everything said about it."""

import json
import shlex
import shutil

import pytest
import torch
from models import tiny_chat
from typer.testing import CliRunner

from quant_engine import folders
from quant_engine.cli import app
from quant_engine.progress import Hooks, Stopped
from quant_engine.runs import folder
from quant_engine.runs.command import command
from quant_engine.runs.execute import execute
from quant_engine.runs.resolve import resolve
from quant_engine.spec import Calibration, QuantSetting, RunSpec, UserError, WeightSpec


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny Llama of three blocks."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny = tiny_chat.llama(layers=3)
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def spec(lab, model_folder):
    return resolve(
        RunSpec(
            weights=WeightSpec(
                model=str(model_folder),
                setting=QuantSetting(method="gptq", w_bits=3, group_size=16),
                calibration=Calibration(samples=4, length=32),
            ),
            tasks=("perplexity",),
            window=64,
            limit=5,
        )
    ).spec


def do(spec, on_progress=lambda progress: None, should_stop=lambda: False):
    return execute(spec, Hooks(on_progress, should_stop))


def test_a_run_is_a_folder_with_its_numbers_and_where_they_come_from(spec):
    path = do(spec)
    run = folder.read(path)
    assert path == folder.run_path(spec.run_id)
    (one,) = run.results
    assert (one.method, one.w_bits, one.group_size, one.items) == ("gptq", 3, 16, 5)
    assert 3.5 < one.stored_bits < 5
    assert one.value > 1
    assert one.standard_error > 0
    assert f"{torch.get_num_threads()} threads" in one.hardware
    assert json.loads(one.libraries)["torch"]
    assert one.hardware
    assert one.peak_memory_bytes > 1e6
    assert len(folder.read_items(path, "perplexity")) == 5
    assert len(folder.read_layers(path)) == 21
    assert "stored bits per weight" in (path / "log.txt").read_text()


def test_the_same_run_is_found_and_not_computed_again(spec):
    path = do(spec)
    before = (path / "run.json").stat().st_mtime_ns
    seen = []
    assert do(spec, seen.append) == path
    assert [progress.stage for progress in seen] == ["finished"]
    assert (path / "run.json").stat().st_mtime_ns == before


def test_progress_only_grows_and_ends_at_one(spec):
    seen = []
    do(spec, seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert {"loading", "calibrating", "quantizing", "evaluating", "writing", "finished"} <= {one.stage for one in seen}
    assert any(progress.block == 2 and progress.linear == "mlp.up_proj" for progress in seen)


def test_a_stopped_run_leaves_no_results_and_goes_on_where_it_was(spec):
    seen = []
    with pytest.raises(Stopped):
        do(spec, seen.append, lambda: seen[-1].block == 3)
    assert not folder.exists(spec.run_id)
    seen.clear()
    do(spec, seen.append)
    assert {progress.block for progress in seen if progress.stage == "quantizing"} == {3}


def test_two_runs_of_one_setting_share_the_quantized_weights(spec):
    do(spec)
    seen = []
    do(spec.model_copy(update={"limit": 2}), seen.append)
    assert not any(progress.stage == "quantizing" for progress in seen)
    assert len(list(folders.checkpoints().glob("[0-9a-f]*"))) == 1


def test_the_same_run_twice_gives_the_same_number(spec):
    first = folder.read(do(spec)).results[0].value
    shutil.rmtree(folders.home())
    assert folder.read(do(spec)).results[0].value == first


ODD_NAMES = (
    "a,b.txt",
    "mmlu,piqa",
    "perplexity,divergence",
    'it\'s, a "text" $HOME `of` \\ mine.txt',
    "a@b.txt",
    "a@0123456789ab",
    "a folder, with @ signs/-t, piqa.txt",
    "=é.txt",
)


def words_of(line):
    """The arguments of a command as somebody types it, behind `python -m quant_engine`."""
    words = shlex.split(line)
    assert words[:4] == ["python", "-m", "quant_engine", "run"]
    return words[3:]


@pytest.mark.parametrize("threads", [None, "1"])
def test_the_command_that_a_run_says_makes_the_run_again(spec, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    line = folder.read(do(spec)).results[0].command
    prefix = f"OMP_NUM_THREADS={threads} " if threads else ""
    assert line.startswith(f"{prefix}python ")
    shutil.rmtree(folders.results())
    result = CliRunner().invoke(app, words_of(line.removeprefix(prefix)))
    assert result.exit_code == 0, result.output
    assert folder.exists(spec.run_id)
    again = CliRunner().invoke(app, [*words_of(line.removeprefix(prefix)), "--json"])
    assert "made before" in again.stderr
    assert json.loads(again.stdout)[0]["run_id"] == spec.run_id


@pytest.mark.parametrize(
    ("weights", "fields"),
    [
        ({}, {"tasks": ("wikitext2", "mmlu"), "window": 32, "dtype": "bfloat16"}),
        ({"seed": 7, "dtype": "bfloat16", "setting": QuantSetting(method="rtn", w_bits=3)}, {"limit": 3}),
        ({"setting": QuantSetting(method="smoothquant", w_bits=8, a_bits=8, options={"alpha": 0.85})}, {}),
        (
            {
                "setting": QuantSetting(
                    method="gptq", w_bits=2, group_size=32, options={"act_order": True, "groups": "static"}
                ),
                "calibration": Calibration(source="a text.txt", samples=5, length=40, seed=2),
            },
            {"tasks": ("perplexity:a text.txt",)},
        ),
        ({"setting": QuantSetting(method="qlora", w_bits=4, options={"data": "says.json", "steps": 3})}, {}),
        *(
            (
                {
                    "setting": QuantSetting(method="gptq", w_bits=4),
                    "calibration": Calibration(source=name, samples=5, length=40),
                },
                {"tasks": ("piqa", f"perplexity:{name}", f"divergence:{name}", "wikitext2", "perplexity")},
            )
            for name in ODD_NAMES
        ),
    ],
)
def test_a_command_is_parsed_into_the_run_that_it_was_made_of(
    lab, model_folder, weights, fields, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a text.txt", *ODD_NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Some words to be read. " * 40)
    (tmp_path / "says.json").write_text(json.dumps([{"instruction": "Say a.", "input": "", "output": "a"}] * 3))
    asked = RunSpec(weights=WeightSpec(model=str(model_folder), **weights), **{"tasks": ("perplexity",), **fields})
    spec = resolve(asked).spec
    run_ids = []

    def refuse(queue, run_id, report):
        run_ids.append(run_id)
        raise UserError("Not now.")

    monkeypatch.setattr("quant_engine.cli.run_claimed", refuse)
    result = CliRunner().invoke(app, words_of(command(spec)))
    assert "Not now." in result.stderr, result.output
    assert run_ids == [spec.run_id]


def test_unwritable_results_are_said_before_any_work(spec, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "file"))
    seen = []
    with pytest.raises(UserError, match="can't be written"):
        do(spec, seen.append)
    assert seen == []
