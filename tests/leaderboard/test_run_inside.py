"""What is shown of measured runs: errors and weights of linears, and single items with their pictures."""

import numpy as np
import pytest

from leaderboard import pictures, run_figures
from leaderboard.ui import run_inside
from leaderboard.view import Explored
from quant_engine.data.drawn import suite
from quant_engine.evaluate import TASKS
from quant_engine.results import ItemOutput, LayerRecord, Result
from quant_engine.runs import folder
from quant_engine.spec import QuantSetting, RunSpec, UserError, WeightSpec


def record(block: int, error: float, **more) -> LayerRecord:
    return LayerRecord(
        block=block, linear="self_attn.q_proj", out_features=8, in_features=8, stored_bits=4.3, weight_error=error,
        seconds=0.1, **more,
    )  # fmt: skip


COUNTED = {"weights_reach": 0.5, "weights_before": [1, 20, 58, 20, 1], "weights_after": [0, 0, 90, 0, 10]}


def test_the_histogram_shows_shares_of_the_weights_before_and_after():
    records = [record(0, 0.1, **COUNTED), record(1, 0.3)]
    figure = run_figures.weights(records, "0.self_attn.q_proj")
    before, after = figure.data
    assert before["x"] == pytest.approx([-0.4, -0.2, 0, 0.2, 0.4])
    assert before["y"] == pytest.approx([1, 20, 58, 20, 1])
    assert after["y"] == [None, None, 90, None, 10]  # a logarithmic axis has no zero
    assert "90% of the weights lie at zero (the middle part) after quantization, 58% before" in figure.finding
    assert "10% after, 2% before" in figure.finding
    assert figure.table["Before, %"].sum() == pytest.approx(100)


def test_without_a_choice_it_is_the_linear_with_the_largest_error():
    records = [record(0, 0.1, **COUNTED), record(1, 0.3, **COUNTED), record(2, 0.2, **COUNTED)]
    assert run_figures.weights(records).finding.startswith("Block 1, self_attn.q_proj")


@pytest.mark.parametrize(
    ("records", "linear", "sentence"),
    [
        ([], None, "quantized no layer"),
        ([record(0, 0.1)], None, "made before histograms were kept"),
        ([record(0, 0.1, **COUNTED)], "7.mlp.up_proj", "no linear 7.mlp.up_proj"),
    ],
)
def test_where_there_is_no_histogram_a_sentence_says_so(records, linear, sentence):
    with pytest.raises(UserError, match=sentence):
        run_figures.weights(records, linear)


def test_each_cell_of_the_map_names_its_linear():
    (heat,) = run_figures.layer_errors([record(0, 0.1), record(1, 0.3)], "RTN").data
    assert heat["text"] == [["0.self_attn.q_proj", "1.self_attn.q_proj"]]
    assert [place for _, place in run_figures.linears([record(0, 0.1)])] == ["0.self_attn.q_proj"]


@pytest.fixture
def two_runs(results) -> list[folder.RunFolder]:
    """Two runs on four drawn items each, of which one is right in the first alone."""
    items = suite.items("demo-ai2d", 4)
    made = []
    for bits, right in ((4, 4), (3, 3)):
        spec = RunSpec(
            weights=WeightSpec(model="demo", setting=QuantSetting(method="rtn", w_bits=bits)),
            tasks=("demo-ai2d",),
            limit=4,
        )
        row = Result(
            run_id=spec.run_id, source="measured", model="demo", track="mllm_ptq", method="rtn", w_bits=bits,
            task="demo-ai2d", metric="accuracy", value=25 * right, data_revision=suite.revision("demo-ai2d"), items=4,
        )  # fmt: skip
        outputs = [
            ItemOutput(item=one.id, prompt=one.question, gold=one.answers, prediction="A", score=float(n < right))
            for n, one in enumerate(items)
        ]
        made.append(folder.read(folder.write(spec, {}, [row], [], {"demo-ai2d": outputs}, "")))
    return made


def test_a_flipped_item_asks_for_its_own_picture(two_runs):
    first, second = (run.path.name for run in two_runs)
    html = run_inside.comparison(Explored(run=first, against=second))
    assert html.count("<figure ") == 1
    assert f'<figure data-run="{first}" data-task="demo-ai2d" data-item="demo-ai2d-test-3">' in html
    answer = run_inside.item_picture([first, "demo-ai2d", "demo-ai2d-test-3"])
    assert answer["address"].startswith("data:image/jpeg;base64,")


def test_drawn_pictures_are_those_of_the_items():
    for task in suite.TASKS:
        item = suite.items(task, 6)[-1]
        assert np.array_equal(suite.picture_of(item.id), item.image()), task
    for wrong in ("demo-ai2d-test", "demo-ai2d-test-1/../2", "demo-ai2d-test-99999999", "piqa-1"):
        with pytest.raises(UserError):
            suite.picture_of(wrong)


@pytest.mark.parametrize(
    ("task", "item", "sentence"),
    [("demo-ai2d", "nothing", "no demo item"), ("piqa", "1", "no picture task"), ("nothing", "1", "no picture task")],
)
def test_a_picture_that_cannot_be_had_is_a_sentence(two_runs, task, item, sentence):
    answer = run_inside.item_picture([two_runs[0].path.name, task, item])
    assert answer["address"] == ""
    assert sentence in answer["text"]
    assert "'../x' is not a run id" in run_inside.item_picture(["../x", task, item])["text"]


def test_pictures_of_another_version_or_that_are_gone_are_sentences(two_runs, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="another version"):
        TASKS["demo-ai2d"].picture_of("demo-ai2d-test-3", "drawn-v1-0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not on this machine"):
        TASKS["ai2d"].picture_of("3", f"lmms-lab/ai2d@{'0' * 40}")


def test_a_published_items_picture_comes_from_the_files_on_this_machine(monkeypatch, tmp_path):
    import io

    import pandas as pd
    from PIL import Image

    def png(color: str) -> dict:
        buffer = io.BytesIO()
        Image.new("RGB", (4, 3), color).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    asked = {"questionId": ["7", "9"], "question": ["Which colour?"] * 2, "answers": [["red"], ["blue"]]}
    pd.DataFrame(asked | {"image": [png("red"), png("blue")]}).to_parquet(tmp_path / "docvqa_validation.parquet")
    monkeypatch.setenv("LOWBIT_DATA", str(tmp_path))
    task = TASKS["docvqa"]
    assert task.picture_of("9", task.revision()).getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(UserError, match="not those of this run"):
        task.picture_of("9", "docvqa_validation.parquet sha256:0")
    with pytest.raises(UserError, match="no item 8"):
        task.picture_of("8", task.revision())
    assert pictures.address(task.picture_of("7", task.revision()), 2).startswith("data:image/jpeg")


def test_a_run_that_came_with_the_project_can_be_looked_into(write_run, results, monkeypatch, tmp_path):
    run_id = write_run([1.0, 0.0])
    monkeypatch.setenv("LOWBIT_SHIPPED", str(results))
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "own"))
    assert "not on this machine" not in run_inside.layers(Explored(model="demo-llm", run=run_id), "RTN")
    assert "not on this machine" in run_inside.layers(Explored(model="demo-llm", run="0" * 16), "RTN")


def test_an_address_names_no_folder_but_a_runs(two_runs, results):
    (results / "inner").mkdir()
    for run in two_runs:
        run.path.rename(results / "inner" / run.path.name)
    explored = Explored(run=f"inner/{two_runs[0].path.name}", against=f"inner/{two_runs[1].path.name}")
    for html in (run_inside.layers(explored, "RTN"), run_inside.comparison(explored)):
        assert "is not a run id" in html
    assert run_inside.linears(explored.run) == []
