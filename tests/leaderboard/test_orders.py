"""Runs whose sums were taken in other orders are one row: their median and range, and no difference within it."""

import numpy as np
import pytest

from leaderboard import analysis, orders, ranks
from leaderboard.analysis import Query, arrange
from leaderboard.differences import more_than_chance
from leaderboard.provenance import provenance_of
from leaderboard.ranks import Comparisons
from leaderboard.store import Store, read_notes
from leaderboard.ui.table import results_html

MEASURED = Query(model="SmolLM2-135M", sources=("measured",))


def scores(right, count=200):
    return (np.arange(count) < right).astype(float).tolist()


@pytest.fixture
def runs(write_run) -> dict[str, str]:
    """FP16, and GPTQ at 3 bits in three orders: 80, 100 and 130 of 200 right."""
    return {
        "fp16": write_run(scores(160), "fp16"),
        "usual": write_run(scores(80), "gptq", 3),
        "one at once": write_run(scores(130), "gptq", 3, at_once=1),
        "four at once": write_run(scores(100), "gptq", 3, at_once=4),
    }


def board():
    return arrange(Store().snapshot().frame)


def cell(board, run_id):
    (row,) = np.flatnonzero(board.rows["run_id"] == run_id)
    return row, [column.task for column in board.columns].index("arc_easy")


def test_a_setting_is_one_row_with_the_median_of_its_orders(runs):
    found = board()
    assert not set(found.rows["run_id"]) & {runs["one at once"], runs["four at once"]}
    at = cell(found, runs["usual"])
    assert (found.values[at], found.lowest[at], found.highest[at]) == (50, 40, 65)
    result = found.results.iloc[found.origin[at]]
    assert result["median_run"] == runs["four at once"]
    assert (found.lowest[cell(found, runs["fp16"])], found.highest[cell(found, runs["fp16"])]) == (80, 80)


def test_the_row_says_so(runs):
    found = board()
    provenance = provenance_of(found, cell(found, runs["usual"])[0], read_notes())
    assert "median of 3 orders of sums, 40 to 65" in provenance.numbers[0].source
    assert "Median of 3 orders of sums, 40 to 65." in results_html(analysis.view(found, MEASURED), read_notes(), 2)


def test_of_an_even_number_the_worse_of_the_middle_stands(write_run):
    usual = write_run(scores(80), "gptq", 3)
    write_run(scores(130), "gptq", 3, at_once=1)
    found = board()
    assert found.values[cell(found, usual)] == 40


def test_another_order_without_the_usual_one_or_of_other_items_is_a_row_of_its_own(write_run):
    alone = write_run(scores(130), "gptq", 3, at_once=1)
    other = write_run(scores(50, 100), "gptq", 3)
    assert {alone, other} <= set(board().rows["run_id"])


def test_what_lies_within_the_range_of_orders_is_neither_different_nor_ranked_apart(runs, write_run):
    near = write_run(scores(126), "rtn", 8)
    found = board()
    different = more_than_chance(found)
    assert different[cell(found, runs["usual"])]
    seen = analysis.view(found, MEASURED)
    ranking = ranks.rank(found, seen, Comparisons(20))
    texts = {run_id: ranking.text(row) for row, run_id in enumerate(seen.rows["run_id"])}
    assert texts[near] == texts[runs["usual"]] == "2="
    write_run(scores(165), "gptq", 3, at_once=2)
    found = board()
    assert not more_than_chance(found)[cell(found, runs["usual"])]


def test_ranges_are_apart_where_they_share_no_number():
    low, high = np.array([1.0, 2.0, np.nan]), np.array([3.0, 2.5, np.nan])
    assert orders.apart(low, high).tolist() == [[False, False, True], [False, False, True], [True, True, True]]
