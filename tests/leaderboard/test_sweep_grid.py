"""A sweep as a grid: what each of its cells shows, and what is done to all of it."""

import re

import gradio as gr
import pytest

from leaderboard.lab import Lab
from leaderboard.ui.sweep_grid import SweepGrid, grid_html, tasks_of
from quant_engine.progress import Progress
from quant_engine.runs.queue import Queue
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec


def spec(method="rtn", bits=4, group=64, model="demo-llm", tasks=("perplexity",)) -> RunSpec:
    setting = QuantSetting() if method == "fp16" else QuantSetting(method=method, w_bits=bits, group_size=group)
    return RunSpec(weights=WeightSpec(model=model, setting=setting), tasks=tasks)


@pytest.fixture
def queue(tmp_path, monkeypatch) -> Queue:
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "results"))
    return Queue(tmp_path / "queue.sqlite")


def number(value, error=None, status="ok"):
    return {"value": value, "standard_error": error, "status": status}


def cells(html: str) -> dict[str, str]:
    """The text of each button by its class and name."""
    found = re.findall(r'<button type="button" class="(\w+)".*?aria-label="([^"]*)"', html)
    return {label.split(":")[0]: (kind, label) for kind, label in found}


def test_a_cell_shows_its_state_or_its_number(queue):
    specs = [spec(bits=bits) for bits in (2, 3, 4, 5, 6, 8)]
    sweep = queue.submit_sweep(specs)
    done, collapsed, failing, running, paused, _ = sweep.runs
    numbers = {
        (done, "perplexity"): number(23.456, 1.2),
        (collapsed, "perplexity"): number(None, status="collapsed"),
    }
    for run_id in (done, collapsed):
        queue.claim(run_id, "me")
        queue.finish(run_id, "me")
    queue.claim(failing, "me")
    queue.fail(failing, "me", "Memory ran <out>.")
    queue.claim(running, "here:1")
    queue.report(running, "here:1", Progress(stage="quantizing", fraction=0.42))
    queue.pause(paused)
    html = grid_html(sweep, list(queue.several(sweep.runs).values()), numbers, "perplexity", failing)
    shown = cells(html)
    assert shown["RTN W2A16 g64"] == ("done", "RTN W2A16 g64: 23.46 ± 1.2.")
    assert shown["RTN W3A16 g64"] == ("collapsed", "RTN W3A16 g64: collapsed.")
    assert shown["RTN W4A16 g64"] == ("failed", "RTN W4A16 g64: failed. Memory ran &lt;out&gt;.")
    assert shown["RTN W5A16 g64"] == ("running", "RTN W5A16 g64: running, 42%.")
    assert 'style="width:42%"' in html
    assert shown["RTN W6A16 g64"][0] == "paused"
    assert shown["RTN W8A16 g64"] == ("queued", "RTN W8A16 g64: waiting.")
    assert html.count('aria-pressed="true"') == 1
    assert "<b>Sweep of 6 runs</b>: 2 done, 1 running, 1 waiting, 1 paused, 1 failed" in html


def test_rows_are_methods_with_groups_and_columns_bits_a_table_for_each_model(queue):
    specs = [
        spec(method, bits, group, model)
        for model in ("demo-llm", "demo")
        for method, bits, group in (("rtn", 4, 64), ("fp16", 16, None), ("rtn", 2, 32), ("smoothquant", 8, None))
    ]
    sweep = queue.submit_sweep(specs, ["GPTQ <is> not defined."])
    html = grid_html(sweep, list(queue.several(sweep.runs).values()), {}, "perplexity", None)
    assert html.count("<table>") == 2
    table = html.split("<table>")[1]
    assert re.findall(r'scope="col">([^<]*)', table) == ["SmolLM2-135M", "8 bits", "4 bits", "2 bits"]
    rows = re.findall(r'scope="row">(.*?) <small>(.*?)</small>', table)
    assert rows[:3] == [("FP16", ""), ("RTN", "g64"), ("RTN", "g32")]
    assert 'colspan="3"' in table
    assert "GPTQ &lt;is&gt; not defined." in html


def test_deleted_runs_are_counted(queue):
    sweep = queue.submit_sweep([spec(bits=2), spec(bits=4)])
    queue.cancel(sweep.runs[0])
    queue.delete(sweep.runs[0])
    html = grid_html(sweep, list(queue.several(sweep.runs).values()), {}, "perplexity", None)
    assert "1 waiting, 1 deleted" in html


def test_the_tasks_to_choose_from_are_those_that_have_numbers(queue):
    sweep = queue.submit_sweep([spec(tasks=("perplexity", "mmlu"))])
    runs = list(queue.several(sweep.runs).values())
    assert tasks_of(runs, {}) == ["perplexity", "mmlu"]
    numbers = {(sweep.runs[0], task): number(1.0) for task in ("mmlu_stem", "mmlu", "perplexity")}
    assert tasks_of(runs, numbers) == ["perplexity", "mmlu_stem", "mmlu"]


def test_without_a_sweep_only_the_sweep_form_says_so(queue):
    with gr.Blocks():
        grid = SweepGrid(Lab(queue=queue))
    assert grid.show(None, None, None, sweeping=False)[0]["visible"] is False
    assert grid.show(None, None, None, sweeping=True)[0]["visible"] is True
    assert "No sweep yet" in grid.show(None, None, None, sweeping=True)[3]


def test_the_newest_sweep_shows_while_it_has_runs_to_do(queue):
    with gr.Blocks():
        grid = SweepGrid(Lab(queue=queue))
    first, second = (queue.submit_sweep([spec(bits=bits)]) for bits in (2, 4))
    column, chooser, task, _, pause, resume, cancel = grid.show(None, None, None, sweeping=False)
    assert chooser["value"] == second.sweep_id
    assert chooser["visible"] is True
    assert (column["visible"], pause["visible"], resume["visible"], cancel["visible"]) == (True, True, False, True)
    assert task["visible"] is False
    assert first.runs[0] in grid.show(first.sweep_id, None, None, sweeping=False)[3]
    queue.cancel(second.runs[0])
    assert grid.show(second.sweep_id, None, None, sweeping=False)[0]["visible"] is False
    assert grid.show(second.sweep_id, None, None, sweeping=True)[0]["visible"] is True
