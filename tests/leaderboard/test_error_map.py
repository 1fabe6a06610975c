"""The error of each linear while a run quantizes: cells fill as blocks are finished, and files are read once."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from leaderboard import error_map
from leaderboard.error_map import ErrorMap
from leaderboard.store import Store
from leaderboard.ui.error_grid import grid_html
from leaderboard.ui.run_detail import RunDetail
from quant_engine import checkpoint_files
from quant_engine.folders import PROJECT
from quant_engine.progress import Progress
from quant_engine.results import LayerRecord
from quant_engine.runs import folder as run_folder
from quant_engine.runs.queue import QueuedRun
from quant_engine.spec import PublishedCheckpoint, QuantSetting, RunSpec, WeightSpec

LINEARS = ("self_attn.q_proj", "mlp.down_proj")
QUANTIZING = Progress(stage="quantizing", block=3, blocks=4)
WITHOUT_TORCH = """
import sys
from leaderboard.error_map import error_map
from leaderboard.store import Store
from leaderboard.ui.run_detail import RunDetail
from quant_engine.runs.queue import QueuedRun
run = QueuedRun.model_validate_json(sys.argv[1])
assert len(error_map(run).errors) == 2, error_map(run)
assert 'class="known"' in RunDetail(Store()).html(run)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


def run(progress=QUANTIZING, state="running", method="gptq", **weights) -> QueuedRun:
    setting = QuantSetting() if method == "fp16" else QuantSetting(method=method, w_bits=4, group_size=64)
    spec = RunSpec(
        weights=WeightSpec(model="demo-llm", revision="r", setting=setting, **weights), tasks=("perplexity",)
    )
    return QueuedRun(
        run_id=spec.run_id, spec=spec, state=state, progress=progress, error=None, attempts=1, created=0.0,
        started=1.0, ended=None, cancelling=False, owner=None,
    )  # fmt: skip


def records(block: int, error: float | None) -> list[LayerRecord]:
    return [
        LayerRecord(
            block=block, linear=linear, out_features=8, in_features=8, stored_bits=4.5, seconds=0.1,
            weight_error=error and error / 2, output_error=error,
        )
        for linear in LINEARS
    ]  # fmt: skip


def finish_block(of: QueuedRun, block: int, error: float | None) -> None:
    """Writes a block's file as the checkpoint does."""
    folder = checkpoint_files.checkpoint_folder(of.spec.weights)
    folder.mkdir(parents=True, exist_ok=True)
    layers = json.dumps([record.model_dump() for record in records(block, error)])
    save_file({"w": np.zeros(1)}, checkpoint_files.block_file(folder, block), {"layers": layers})


def test_cells_fill_as_blocks_are_finished(lab):
    shown = error_map.error_map(run(Progress(stage="quantizing", block=1, blocks=4)))
    assert (shown.blocks, shown.finished_blocks, shown.errors) == (4, 0, {})
    finish_block(run(), 0, 0.01)
    finish_block(run(), 1, 0.03)
    shown = error_map.error_map(run())
    assert shown.linears == ("q_proj", "down_proj")
    assert shown.what == "output error"
    assert shown.errors == {(0, "q_proj"): 0.01, (0, "down_proj"): 0.01, (1, "q_proj"): 0.03, (1, "down_proj"): 0.03}
    html = grid_html(shown)
    assert html.count('class="known"') == 4
    assert "2 of 4 blocks are quantized; the largest output error is 3% in block 1, q_proj" in html
    assert 'title="block 3, q_proj: not yet"' in html
    assert 'title="block 1, down_proj: output error 3%, 4.50 bits stored"' in html


def test_a_tick_reads_only_blocks_that_it_has_not_read_yet(lab, monkeypatch):
    read = []
    real = checkpoint_files.records_of_block
    monkeypatch.setattr(checkpoint_files, "records_of_block", lambda file: read.append(file.name) or real(file))
    for block in range(3):
        finish_block(run(), block, 0.01)
        error_map.error_map(run())
        error_map.error_map(run())
    assert read == ["000.safetensors", "001.safetensors", "002.safetensors"]


def test_a_block_that_is_written_anew_is_read_anew(lab):
    finish_block(run(), 0, 0.01)
    assert set(error_map.error_map(run()).errors.values()) == {0.01}
    checkpoint_files.block_file(checkpoint_files.checkpoint_folder(run().spec.weights), 0).unlink()
    assert error_map.error_map(run()) is None
    finish_block(run(), 0, 0.02)
    assert set(error_map.error_map(run()).errors.values()) == {0.02}


def test_the_linear_in_work_is_marked_and_has_its_error_at_once(lab):
    finish_block(run(), 0, 0.01)
    progress = QUANTIZING.model_copy(update={"block": 2, "linear": "self_attn.q_proj", "output_error": 0.02})
    shown = error_map.error_map(run(progress))
    assert shown.working == (1, "q_proj")
    assert shown.errors[1, "q_proj"] == 0.02
    assert shown.finished_blocks == 1
    assert re.search(r'class="now known"[^>]*title="block 1, q_proj: output error 2%"', grid_html(shown))


def test_a_block_in_work_as_a_whole_is_marked_as_a_whole(lab):
    html = grid_html(error_map.error_map(run(Progress(stage="calibrating", block=1, blocks=4))))
    assert html.count("in work") == len(("q", "k", "v", "o", "gate", "up", "down")) + 1  # and the legend
    assert 'class="now" title="block 0, v_proj: in work"' in html


def test_errors_that_are_measured_afterwards_are_awaited(lab):
    for block in range(4):
        finish_block(run(), block, None)
    measuring = run(Progress(stage="evaluating", message="errors of block 1 of 4"))
    shown = error_map.error_map(measuring)
    assert (shown.what, shown.errors, shown.finished_blocks) == ("", {}, 4)
    html = grid_html(shown)
    assert html.count('class="stored"') == 8
    assert "All 4 blocks are quantized; what their linears lose is measured now." in html
    losses = {f"{block}.{name}": {"weight_error": 0.1, "output_error": 0.2} for block in range(4) for name in LINEARS}
    (checkpoint_files.checkpoint_folder(run().spec.weights) / checkpoint_files.LOSSES).write_text(json.dumps(losses))
    assert set(error_map.error_map(measuring).errors.values()) == {0.2}


def test_without_an_output_error_it_is_the_weight_error():
    rows = [error_map.LinearError(0, "q_proj", 0.5, None, 4.5)]
    shown = error_map._arranged(rows, 1)
    assert (shown.what, shown.errors) == ("weight error", {(0, "q_proj"): 0.5})


def test_a_finished_run_shows_its_own_layers(lab):
    layers = [*records(0, 0.01), *records(1, 0.5)]
    finished = run(Progress(stage="finished", fraction=1), state="done")
    run_folder.write(finished.spec, {}, [], layers, {}, "")
    shown = error_map.error_map(finished)
    assert (shown.blocks, shown.finished_blocks, shown.working) == (2, 2, None)
    assert "The largest output error is 50% in block 1" in RunDetail(Store()).html(finished)


@pytest.mark.parametrize(
    "nothing",
    [
        run(method="fp16"),
        run(checkpoint=PublishedCheckpoint(location="somebody/model-gptq")),
        run(Progress()),
        run(Progress(stage="quantizing", block=3, blocks=4)),
        run(Progress(stage="finished"), state="done"),
    ],
    ids=["fp16", "published", "waiting", "elsewhere", "results gone"],
)
def test_where_nothing_is_known_there_is_no_map(lab, nothing):
    assert error_map.error_map(nothing) is None


def test_damaged_files_take_the_page_down_no_more_than_deleted_ones(lab):
    finish_block(run(), 0, 0.01)
    file = checkpoint_files.block_file(checkpoint_files.checkpoint_folder(run().spec.weights), 0)
    file.write_bytes(b"nothing")
    assert error_map.error_map(run()) is None


def drawn(*errors: float) -> str:
    cells = {(block, "q_proj"): error for block, error in enumerate(errors)}
    return grid_html(ErrorMap(len(errors), ("q_proj",), "output error", cells, dict.fromkeys(cells, 4.0)))


def test_the_colour_is_on_a_log_scale_between_round_bounds():
    html = drawn(0.01, 0.1, 0.0316227766, 0.05)
    assert re.findall(r"--s:([\d.]+)", html)[:3] == ["0.06", "1.00", "0.53"]
    assert '1%<i class="ramp"></i>10%' in html
    assert "relative output error" in html


def test_an_error_far_below_the_others_does_not_stretch_the_scale():
    html = drawn(1e-9, *[0.02] * 30, 0.05, float("inf"), 0.0)
    assert '≤\N{NO-BREAK SPACE}1%<i class="ramp"></i>10%' in html
    shades = re.findall(r"--s:([\d.]+)", html)
    assert (shades[0], shades[-2], shades[-1]) == ("0.06", "1.00", "0.06")


@pytest.mark.parametrize("blocks", [1, 2, 30, 32, 80])
def test_the_axis_covers_every_block_with_a_few_numbers(blocks):
    axis = re.search("<tfoot>.*</tfoot>", drawn(*[0.01] * blocks))[0]
    spans = [int(span) for span in re.findall(r"colspan=(\d+)", axis)]
    assert sum(spans) == blocks
    assert len(spans) <= 8


def test_the_page_reads_it_without_torch(lab):
    finish_block(run(), 0, 0.01)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, run().model_dump_json()],
        cwd=PROJECT, env={"PATH": "/usr/bin:/bin", "LOWBIT_HOME": str(lab)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr
