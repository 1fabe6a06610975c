import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from leaderboard import figures, quality, run_figures
from leaderboard.analysis import Query, arrange, view
from leaderboard.columns import column_of
from leaderboard.plot import Figure
from leaderboard.store import Store, read_paper
from quant_engine.results import LayerRecord
from quant_engine.runs import folder as run_folder
from quant_engine.runs import paired
from quant_engine.spec import UserError


@pytest.fixture(scope="module")
def board():
    return arrange(read_paper())


def records() -> list[LayerRecord]:
    return [
        LayerRecord(
            block=block, linear=linear, out_features=8, in_features=8, stored_bits=4.3, weight_error=0.01,
            output_error=0.001 * (block + 1), seconds=0.1,
        )
        for block in range(3)
        for linear in ("self_attn.q_proj", "mlp.down_proj")
    ]  # fmt: skip


def drawn(board) -> list[Figure]:
    return [
        figures.bits_and_quality(board, "LLaMA3-8B", "wikitext2", 10),
        figures.bits_and_quality(board, "LLaVA-Next-8B", "ai2d", 2),
        figures.size_and_quality(board, "LLaMA3-8B", "commonsense_avg"),
        figures.methods_and_bits(board, "LLaMA3-8B", "commonsense_avg"),
        figures.methods_and_bits(board, "LLaVA-Next-8B", "mme_perception"),
        figures.loss_by_task(board, "LLaMA3-8B", 3),
        figures.loss_by_task(board, "LLaVA-Next-8B", 2),
        figures.language_and_pictures(board, "LLaMA3-8B"),
        figures.honest_bits(board, "LLaMA3-8B"),
        run_figures.layer_errors(records(), "GPTQ W4A16 g64"),
        figures.dumbbells(["a", "b"], (column_of("piqa"), column_of("c4")), np.array([[90, 80.0], [70, np.nan]])),
    ]


def test_plotly_accepts_every_figure_and_each_has_a_finding_and_a_table(board):
    for figure in drawn(board):
        body = json.dumps({"data": figure.data, "layout": figure.layout}, allow_nan=False)
        for name in ("ink", "quiet", "edge", "sheet", "loss", "gain"):
            body = body.replace(f"var(--{name})", "#123456")
        go.Figure(json.loads(body))
        assert figure.title
        assert figure.finding.endswith(".")
        assert len(figure.table)


def test_every_figure_of_axes_names_its_units(board):
    for figure in (figures.bits_and_quality(board, "LLaMA3-8B", "wikitext2", 10),
                   figures.size_and_quality(board, "LLaMA3-8B", "wikitext2")):  # fmt: skip
        titles = [figure.layout[axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
        assert "perplexity" in titles[1]
        assert "bits" in titles[0] or "GB" in titles[0]


def test_losses_are_points_of_percentages_and_shares_of_perplexity():
    values, reference = np.array([70.0, 80.0]), np.array([80.0, 80.0])
    assert quality.losses(column_of("piqa"), values, reference).tolist() == [10, 0]
    assert quality.losses(column_of("c4"), np.array([12.0]), np.array([10.0])).tolist() == pytest.approx([20])
    assert quality.losses(column_of("mme_perception"), np.array([900.0]), np.array([1000.0])) == pytest.approx([10])
    assert [quality.loss_unit(column_of(task)) for task in ("piqa", "c4", "mme_cognition")] == ["points", "%", "%"]


def test_the_cheapest_setting_is_within_the_points_and_none_smaller_is(board):
    found = quality.points(board, "LLaMA3-8B", "commonsense_avg")
    cheapest = quality.cheapest(found, 3)
    assert cheapest["loss"] <= 3
    smaller = found[(found.stored_bits < cheapest["stored_bits"]) & (found.w_bits < 16)]
    assert (smaller["loss"] > 3).all()
    assert quality.cheapest(found, -50) is None


def test_a_cliff_is_the_step_that_loses_most():
    found = pd.DataFrame(
        {"method": ["A"] * 4 + ["B"] * 2, "w_bits": [8, 4, 3, 2, 4, 3], "a_bits": 16, "loss": [0, 1, 3, 40, 1, 2]}
    )
    assert quality.cliffs(found, 10).to_dict("records") == [{"method": "A", "above": 3, "below": 2, "lost": 37}]


@pytest.mark.parametrize("higher", [True, False])
def test_the_front_is_what_a_plain_search_finds(higher):
    generator = np.random.default_rng(3)
    sizes, values = generator.integers(1, 20, 60).astype(float), generator.integers(1, 20, 60).astype(float)
    sign = 1 if higher else -1
    front = quality.pareto(sizes, values, higher_is_better=higher)
    better = [
        any((s <= size and sign * v > sign * value) or (s < size and sign * v >= sign * value)
            for s, v in zip(sizes, values, strict=True))
        for size, value in zip(sizes, values, strict=True)
    ]  # fmt: skip
    assert set(zip(sizes[front], values[front], strict=True)) == {
        (s, v) for s, v, beaten in zip(sizes, values, better, strict=True) if not beaten
    }


def points_of(values, error):
    return pd.DataFrame({"size_gb": [1.0, 2.0, 3.0], "value": values, "error": error, "run_id": ["a", "b", "c"]})


def test_the_chance_to_be_on_the_front_follows_the_standard_errors():
    found = points_of([50.0, 60.0, 60.0], [0.1, 2.0, 2.0])
    first, second, third = quality.pareto_chance(found, {}, higher_is_better=True)
    assert first == 1
    assert second > 0.99
    assert 0.45 < third < 0.55
    assert np.isnan(quality.pareto_chance(found.assign(error=np.nan), {}, higher_is_better=True)).all()


def test_the_chance_to_be_on_the_front_follows_the_same_items_for_all_runs():
    """The third run is right wherever the second is, and on one item more: alone their errors would say even odds."""
    items = np.zeros((100, 2))
    items[:60] = 1
    items[60, 1] = 1
    drawn = paired.resampled_means(100 * items, quality.DRAWS)
    found = points_of([50.0, 60.0, 61.0], [np.nan, 4.9, 4.9])
    chance = quality.pareto_chance(found, {"b": drawn[:, 0], "c": drawn[:, 1]}, higher_is_better=True)
    assert np.isnan(chance[0])
    assert chance[2] == pytest.approx(1 - 0.99**100, abs=0.04)
    assert quality.pareto_chance(found, {}, higher_is_better=True)[2] < 0.6


def test_fronts_of_many_draws_are_those_of_each():
    generator = np.random.default_rng(5)
    sizes, values = generator.integers(1, 6, 20).astype(float), generator.integers(1, 9, (7, 20)).astype(float)
    values[2, 3] = np.nan
    together = quality.pareto(sizes, values, higher_is_better=True)
    assert (together == [quality.pareto(sizes, draw, higher_is_better=True) for draw in values]).all()
    assert not together[2, 3]


def test_the_size_figure_says_how_the_chance_was_found(write_run):
    write_run([1.0] * 15 + [0.0] * 5, "fp16")
    write_run([1.0] * 12 + [0.0] * 8)
    without = write_run([1.0] * 4 + [0.0] * 16, bits=2, standard_error=9.2)
    (run_folder.run_path(without) / "items" / "arc_easy.parquet").unlink()
    figure = figures.size_and_quality(arrange(Store().snapshot().frame), "SmolLM2-135M", "arc_easy")
    assert dict(zip(figure.table["Setting"], figure.table["Chance by"], strict=True)) == {
        "FP16 (measured)": "items drawn anew",
        "RTN W4A16 g64 (measured)": "items drawn anew",
        "RTN W2A16 g64 (measured)": "by its standard error",
    }
    hovers = [text for trace in figure.data for text in trace.get("text", [])]
    assert "of resamples (by its standard error)" in next(text for text in hovers if text.startswith("RTN W2"))


def test_collapsed_settings_are_shown_as_collapsed(board):
    gone = quality.collapsed(board, "LLaVA-Next-8B", "mmbench_en")
    assert len(gone)
    (heat,) = figures.methods_and_bits(board, "LLaVA-Next-8B", "mmbench_en").data
    for setting in gone.itertuples():
        text = heat["text"][heat["y"].index(setting.method)][heat["x"].index(f"{setting.w_bits:g}")]
        assert text != ""
    assert any("collapsed" in row for row in heat["text"])
    bits = figures.bits_and_quality(board, "LLaVA-Next-8B", "mmbench_en", 5)
    crosses = next(trace for trace in bits.data if trace["name"] == "collapsed")
    assert all(any(label in text for text in crosses["text"]) for label in gone["label"])
    assert bits.finding.endswith("Collapsed (crosses): RTN, GPTQ, AWQ at 2 bits.")
    assert (bits.table["Status"] == "collapsed").sum() == len(gone)
    assert "Status" not in figures.bits_and_quality(board, "LLaMA3-8B", "wikitext2", 5).table


def test_the_heat_map_shows_the_studys_numbers_and_which_way_is_better(board):
    figure = figures.methods_and_bits(board, "LLaMA3-8B", "wikitext2")
    (heat,) = figure.data
    row = heat["y"].index("GPTQ")
    assert heat["text"][row][heat["x"].index("4")] == "6.5"
    assert heat["z"][heat["y"].index("RTN")][heat["x"].index("2")] == -1
    assert heat["z"][row][heat["x"].index("1.1")] is None


@pytest.mark.parametrize(
    ("model", "track", "task"),
    [
        ("LLaMA3-8B", "llm_ptq", "wikitext2"),
        ("LLaMA3-8B", "llm_ptq", "piqa"),
        ("LLaVA-Next-8B", "mllm_ptq", "mme_cognition"),
        ("LLaVA-Next-8B", "mllm_ptq", "mmbench_en"),
    ],
)
def test_a_cell_has_the_same_shade_and_text_in_the_heat_map_and_in_the_table(board, model, track, task):
    (heat,) = figures.methods_and_bits(board, model, task).data
    seen = view(board, Query(model=model, track=track))
    index = [column.task for column in seen.columns].index(task)
    cells = {}
    for row, (method, bits) in enumerate(seen.rows[["method", "w_bits"]].itertuples(index=False)):
        cells.setdefault((method, f"{bits:g}"), []).append((seen.text(row, index), seen.shade[row, index]))
    compared = 0
    for method, shades, texts in zip(heat["y"], heat["z"], heat["text"], strict=True):
        for bits, shade, text in zip(heat["x"], shades, texts, strict=True):
            if shade is not None and (method, bits) in cells:  # the heat map has the settings of all tracks
                assert (text, pytest.approx(shade, abs=1e-4)) in cells[method, bits]
                compared += 1
    assert compared > 5


def test_pictures_are_compared_at_the_same_setting_only(board):
    figure = figures.language_and_pictures(board, "LLaVA-Next-8B")
    assert set(figure.table["Setting"]) <= {
        f"{method} W{bits}A16{group}"
        for method in ("RTN", "GPTQ", "AWQ", "SliM-LLM") for bits in (2, 3, 4) for group in ("", " g128")
    }  # fmt: skip
    assert "RTN W2A16 g128" in set(figure.table["Setting"])


def test_measured_runs_are_drawn_too_and_say_so(make_run):
    make_run(method="fp16", perplexity=20.0)
    make_run(perplexity=25.0)
    board = arrange(Store().snapshot().frame)
    figure = figures.bits_and_quality(board, "SmolLM2-135M", "perplexity", 30)
    assert "RTN W4A16 g64 (measured), 4.30 bits stored" in figure.finding


@pytest.mark.parametrize(
    "draw",
    [
        lambda board: figures.bits_and_quality(board, "LLaMA3-8B", "nothing", 2),
        lambda board: figures.size_and_quality(board, "No model", "wikitext2"),
        lambda board: figures.loss_by_task(board, "LLaMA3-8B", 5),
        lambda board: figures.language_and_pictures(board, "LLaMA-7B"),
        lambda board: run_figures.layer_errors([], "RTN"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(board, draw):
    with pytest.raises(UserError, match=r"\.$"):
        draw(board)


def test_a_hundred_thousand_rows_stay_drawable(board):
    rows = pd.concat([board.rows] * 50, ignore_index=True)
    assert len(rows) > quality.MOST_POINTS
    paper = read_paper()
    many = pd.concat([paper.assign(source="measured", run_id=f"{n:016x}") for n in range(60)], ignore_index=True)
    found = quality.points(arrange(many), "LLaMA3-8B", "wikitext2")
    assert len(found) == quality.MOST_POINTS
