import math

import numpy as np
import pandas as pd
import pytest

from leaderboard.analysis import Cell, Query, View, arrange, choices, models, view
from leaderboard.columns import column_of, headline
from leaderboard.store import COLUMNS, Store, read_paper


@pytest.fixture(scope="module")
def board():
    return arrange(read_paper())


def index_of(seen: View, task: str) -> int:
    return [column.task for column in seen.columns].index(task)


def cell(seen: View, task: str, **setting: object) -> tuple[str, float, Cell]:
    """(text, shade, state) of the one row with this method, bits, group."""
    rows = seen.rows
    mask = np.logical_and.reduce(
        [(rows[name] == value) | (rows[name].isna() & (value is None)) for name, value in setting.items()]
    )
    (row,) = np.flatnonzero(mask)
    index = index_of(seen, task)
    return seen.text(row, index), seen.shade[row, index], Cell(seen.cells[row, index])


def values(seen: View, task: str) -> list[float]:
    return seen.values[:, index_of(seen, task)].tolist()


LLAMA3 = Query(model="LLaMA3-8B")


def test_the_studys_table_has_its_settings_once_and_its_numbers(board):
    seen = view(board, LLAMA3)
    assert len(seen.rows) == 41
    assert not seen.rows.duplicated(["method", "w_bits", "a_bits", "group_size"]).any()
    assert cell(seen, "wikitext2", method="GPTQ", w_bits=4, group_size=128)[0] == "6.5"
    assert cell(seen, "wikitext2", method="RTN", w_bits=2, group_size=None)[0] == "2.7×10⁶"
    assert cell(seen, "commonsense_avg", method="FP16")[0] == "68.6"


def test_columns_stand_in_groups_and_only_where_there_are_numbers(board):
    groups = [column.group for column in view(board, LLAMA3).columns]
    assert groups == sorted(groups, key=["Perplexity", "CommonSenseQA", "MMLU", "Pictures", "Cost"].index)
    assert {column.group for column in view(board, Query(model="LLaVA-Next-8B", track="mllm_ptq")).columns} == {
        "Perplexity",
        "Pictures",
    }


def test_costs_stand_beside_the_scores_of_the_same_setting(board):
    seen = view(board, LLAMA3)
    assert cell(seen, "decode_tokens_per_s", method="AWQ", w_bits=4, group_size=128)[0] == "89.8"
    assert cell(seen, "quantization_time_min", method="GPTQ", w_bits=4, group_size=None)[2] is Cell.MISSING


@pytest.mark.parametrize(
    ("query", "check"),
    [
        (Query(model="LLaMA3-8B", methods=("GPTQ", "AWQ")), lambda rows: set(rows.method) == {"GPTQ", "AWQ"}),
        (Query(model="LLaMA3-8B", bits=(3.0,)), lambda rows: set(rows.w_bits) == {3}),
        (Query(model="LLaMA3-8B", groups=(128,)), lambda rows: set(rows.group_size) == {128}),
        (Query(model="LLaMA3-8B", groups=(0,)), lambda rows: rows.group_size.isna().all()),
        (Query(model="LLaMA3-8B", sources=("paper",)), lambda rows: len(rows) == 41),
        (Query(model="LLaMA3-8B", search="GPTQ w4 g128"), lambda rows: rows.group_size.tolist() == [128]),
        (Query(model="LLaMA3-8B", search="per row 2-bit awq"), lambda rows: len(rows) == 1),
        (Query(model=None), lambda rows: rows.model.nunique() == 4),
    ],
)  # fmt: skip
def test_a_filter_lets_through_what_it_says(board, query, check):
    rows = view(board, query).rows
    assert len(rows)
    assert check(rows)


def test_a_filter_without_a_match_gives_an_empty_view(board):
    assert view(board, Query(model="LLaMA3-8B", search="nothing like this")).rows.empty


def test_sort_is_by_the_real_number_and_survives_a_filter(board):
    best = values(view(board, LLAMA3.model_copy(update={"sort": "wikitext2"})), "wikitext2")
    numbers = [value for value in best if not math.isnan(value)]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 2_700_000
    filtered = LLAMA3.model_copy(update={"sort": "wikitext2", "reverse": True, "bits": (2.0,)})
    worst = values(view(board, filtered), "wikitext2")
    assert worst == sorted(worst, reverse=True)


def test_the_best_stands_first_whichever_way_is_better(board):
    for task, best in (("wikitext2", 6.1), ("piqa", 79.9)):
        assert values(view(board, LLAMA3.model_copy(update={"sort": task})), task)[0] == best
    percents = view(board, LLAMA3.model_copy(update={"sort": "c4", "mode": "retained"}))
    assert percents.rows.method[0] == "AWQ"
    assert values(percents, "c4")[0] == pytest.approx(100 * 9.2 / 8.9)


@pytest.mark.parametrize("reverse", [False, True])
def test_cells_without_a_number_stay_at_the_end_both_ways(board, reverse):
    query = Query(model="LLaVA-Next-8B", track="mllm_ptq", sort="ai2d", reverse=reverse)
    empty = np.isnan(values(view(board, query), "ai2d"))
    assert empty.any()
    assert not empty[: -empty.sum()].any()


@pytest.mark.parametrize("field", ["method", "w_bits", "group_size", "source", "model"])
def test_rows_sort_by_their_setting(board, field):
    seen = view(board, Query(sort=field)).rows[field].dropna()
    key = seen.str.lower() if seen.dtype == object or isinstance(seen.dtype, pd.StringDtype) else seen
    assert key.is_monotonic_decreasing if field == "w_bits" else key.is_monotonic_increasing


def test_difference_and_retention_refer_to_fp16(board):
    setting = {"method": "GPTQ", "w_bits": 4, "group_size": 128}
    less = view(board, LLAMA3.model_copy(update={"mode": "difference"}))
    assert cell(less, "wikitext2", **setting)[0] == "+0.4"
    assert cell(less, "piqa", **setting)[0] == "−1.5"
    assert cell(less, "piqa", method="FP16")[0] == "0.0"
    percents = view(board, LLAMA3.model_copy(update={"mode": "retained"}))
    assert cell(percents, "wikitext2", **setting)[0] == "93.8%"  # 6.1 / 6.5: for perplexity less is better
    assert cell(percents, "piqa", **setting)[0] == "98.1%"
    assert cell(percents, "decode_tokens_per_s", **setting)[0] == "61.2"  # a cost stays what it is


def test_shade_respects_which_way_is_better(board):
    seen = view(board, LLAMA3)
    assert cell(seen, "wikitext2", method="FP16")[1] == 0
    assert -0.3 < cell(seen, "wikitext2", method="GPTQ", w_bits=4, group_size=128)[1] < 0
    assert cell(seen, "wikitext2", method="RTN", w_bits=2, group_size=None)[1] == -1
    assert cell(seen, "c4", method="AWQ", w_bits=8)[1] > 0  # below FP16's perplexity is a gain
    assert cell(seen, "arc_easy", method="RTN", w_bits=8)[1] > 0
    assert math.isnan(cell(seen, "decode_tokens_per_s", method="AWQ", w_bits=4, group_size=128)[1])


def test_collapsed_and_not_reported_are_told_apart(board):
    seen = view(board, Query(model="LLaVA-Next-8B", track="mllm_ptq"))
    assert cell(seen, "ai2d", method="RTN", w_bits=2) == ("collapsed", -1, Cell.COLLAPSED)
    text, _, state = cell(view(board, LLAMA3), "ptb", method="OmniQuant", w_bits=4)
    assert (text, state) == ("·", Cell.MISSING)


def test_a_measured_number_is_compared_with_measured_fp16_of_the_same_conditions_only(make_run):
    make_run(method="fp16", perplexity=20.0)
    make_run(perplexity=25.0)
    make_run(perplexity=30.0, limit=4)
    less = view(arrange(Store().snapshot().frame), Query(model="SmolLM2-135M", mode="difference"))
    by_limit = dict(zip(less.values[:, 0], [Cell(state) for state in less.cells[:, 0]], strict=True))
    assert by_limit[5.0] is Cell.OK
    assert Cell.NO_REFERENCE in by_limit.values()
    (row,) = np.flatnonzero(less.cells[:, 0] == Cell.NO_REFERENCE)
    assert less.text(row, 0) == "no FP16"


def test_the_lora_track_is_compared_with_the_measured_fp16(make_run):
    make_run(method="fp16", perplexity=20.0)
    make_run(method="qlora", group=None, track="lora_ft", perplexity=25.0)
    seen = view(arrange(Store().snapshot().frame), Query(model="SmolLM2-135M", track="lora_ft", mode="difference"))
    assert cell(seen, "perplexity", method="QLoRA")[::2] == ("+5.00", Cell.OK)


def test_measured_runs_never_refer_to_the_studys_fp16(make_run):
    make_run(model="llama3-8b", wikitext2=6.7)
    seen = view(arrange(Store().snapshot().frame), Query(model="LLaMA3-8B", sources=("measured",), mode="difference"))
    assert seen.cells[0, index_of(seen, "wikitext2")] == Cell.NO_REFERENCE


def test_a_measured_run_shows_what_it_stores_and_costs(make_run):
    make_run(perplexity=25.5)
    seen = view(arrange(Store().snapshot().frame), Query(model="SmolLM2-135M"))
    assert [cell(seen, task, method="RTN")[0] for task in ("perplexity", "stored_bits", "peak_memory", "duration")] == [
        "25.50",
        "4.30",
        "2.00",
        "1.5",
    ]


def test_a_collapsed_run_says_so(make_run):
    make_run(perplexity=None, status="collapsed")
    seen = view(arrange(Store().snapshot().frame), Query(model="SmolLM2-135M"))
    assert cell(seen, "perplexity", method="RTN")[0] == "collapsed"


def test_the_average_is_computed_only_where_the_source_has_all_five_and_none(make_run):
    five = {"piqa": 70.0, "arc_easy": 60.0, "arc_challenge": 40.0, "hellaswag": 50.0, "winogrande": 55.0}
    make_run(model="llama3-8b", **five)
    make_run(model="llama3-8b", bits=3, piqa=70.0)
    seen = view(arrange(Store().snapshot().frame), Query(model="LLaMA3-8B", sources=("measured",)))
    assert cell(seen, "commonsense_avg", w_bits=4)[::2] == ("55.0", Cell.COMPUTED)
    assert cell(seen, "commonsense_avg", w_bits=3)[2] is Cell.MISSING


def test_choices_are_what_the_model_and_track_have(board):
    offered = choices(board, "LLaVA-Next-8B", "mllm_ptq")
    assert offered.tracks == ("mllm_ptq",)
    assert offered.methods == ("FP16", "RTN", "GPTQ", "AWQ", "SliM-LLM")
    assert offered.bits == (16, 4, 3, 2)
    assert offered.groups == (0, 128)
    assert models(board)[0] == "LLaMA3-8B"


def test_every_number_of_the_study_reaches_a_cell(board):
    assert (board.origin >= 0).sum() >= 840
    shown = {index for index in board.origin.ravel() if index >= 0}
    assert set(range(840)) <= shown


def test_columns_of_results_are_the_stores(board):
    assert set(COLUMNS) <= set(board.results.columns)


def test_measured_results_without_costs_show_too():
    paper = read_paper()
    measured = paper[paper.model == "LLaMA3-8B"].assign(source="measured", run_id="0123456789abcdef")
    for results in (pd.concat([paper, measured]), measured):
        seen = view(arrange(results), Query(model="LLaMA3-8B", sources=("measured",)))
        assert cell(seen, "wikitext2", method="FP16")[0] == "6.10"
        assert "stored_bits" not in [column.task for column in seen.columns]


def test_settings_are_ranked_by_a_score_that_many_of_them_have():
    columns = [column_of(task) for task in ("wikitext2", "perplexity", "stored_bits")]
    assert headline(columns, [20, 30, 31]).task == "wikitext2"
    assert headline(columns, [1, 30, 31]).task == "perplexity"
    assert headline(columns, [1, 30, 31], "wikitext2").task == "wikitext2"
    assert headline(columns[2:], [31]) is None


def test_rows_that_are_else_the_same_say_how_many_items_they_measured(make_run, results):
    make_run(limit=8, perplexity=12.0)
    make_run(limit=16, perplexity=13.0)
    make_run(bits=3, limit=8, perplexity=20.0)
    rows = arrange(Store(results).snapshot().frame).rows
    measured = rows[rows["source"] == "measured"]
    assert sorted(measured["options"]) == ["", "16 items", "8 items"]
    assert measured.set_index("w_bits")["options"][3] == ""
