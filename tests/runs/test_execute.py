"""A whole run on a tiny model: found again, resumed, reproducible, and with everything said about it."""

import json
import os
import shlex

import pytest
import torch
from typer.testing import CliRunner

from quant_engine import folders
from quant_engine.cli import app
from quant_engine.progress import Hooks, Stopped
from quant_engine.runs import folder
from quant_engine.runs.command import command
from quant_engine.runs.execute import execute
from quant_engine.runs.resolve import resolve
from quant_engine.spec import Calibration, QuantSetting, RunSpec, UserError, WeightSpec


@pytest.fixture
def spec(lab, tiny_models):
    return resolve(
        RunSpec(
            weights=WeightSpec(
                model=str(tiny_models / "llama"),
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
    threads = os.environ.get("OMP_NUM_THREADS")
    assert one.command == (f"OMP_NUM_THREADS={threads} " if threads else "") + command(spec)
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
    import shutil

    first = folder.read(do(spec)).results[0].value
    shutil.rmtree(folders.home())
    assert folder.read(do(spec)).results[0].value == first


def test_the_command_of_a_run_is_the_run(spec):
    words = shlex.split(command(spec))
    assert words[:4] == ["python", "-m", "quant_engine", "run"]
    result = CliRunner().invoke(app, words[3:])
    assert result.exit_code == 0, result.output
    assert folder.exists(spec.run_id)
    again = CliRunner().invoke(app, [*words[3:], "--json"])
    assert json.loads(again.stdout)[0]["run_id"] == spec.run_id


def test_unwritable_results_are_said_before_any_work(spec, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "file"))
    seen = []
    with pytest.raises(UserError, match="can't be written"):
        do(spec, seen.append)
    assert seen == []
