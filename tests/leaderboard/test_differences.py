"""Measured numbers are shaded only where the same items say that the difference to FP16 is more than chance."""

import threading

import numpy as np
import pytest

from leaderboard import analysis, figures
from leaderboard.analysis import Query, arrange
from leaderboard.boards import Boards
from leaderboard.differences import Differences, more_than_chance, printed
from leaderboard.store import Store, read_paper
from leaderboard.table_view import select_table
from leaderboard.ui.table import results_html
from quant_engine.runs import folder

MEASURED = Query(model="SmolLM2-135M", sources=("measured",))


def scores(right, count=200):
    return (np.arange(count) < right).astype(float).tolist()


@pytest.fixture
def runs(write_run) -> dict[str, str]:
    """FP16 with 160 of 200 right, and runs a little above, a little below, far below and far above it."""
    return {
        "fp16": write_run(scores(160), "fp16"),
        "above": write_run(scores(163), bits=8),
        "below": write_run(scores(158), bits=4),
        "far below": write_run(scores(80), bits=2),
        "far above": write_run(scores(190), bits=3),
    }


def shades(board, differing):
    seen = analysis.view(board, MEASURED, differing)
    index = [column.task for column in seen.columns].index("arc_easy")
    return {
        run_id: (shade, bool(chance))
        for run_id, shade, chance in zip(seen.rows["run_id"], seen.shade[:, index], seen.chance[:, index], strict=True)
    }


def test_a_gain_or_a_loss_that_may_be_chance_has_no_shade(runs):
    board = arrange(Store().snapshot().frame)
    found = shades(board, more_than_chance(board))
    assert {name: (np.sign(shade), chance) for name, (shade, chance) in ((n, found[r]) for n, r in runs.items())} == {
        "fp16": (0, False),
        "above": (0, True),
        "below": (0, True),
        "far below": (-1, False),
        "far above": (1, False),
    }


def test_a_run_without_items_or_with_other_items_than_fp16_is_not_shaded(runs, write_run):
    (folder.run_path(runs["far below"]) / "items" / "arc_easy.parquet").write_bytes(b"no parquet")
    board = arrange(Store().snapshot().frame)
    found = shades(board, more_than_chance(board))
    assert found[runs["far below"]] == (0, True)
    assert found[runs["far above"]][0] > 0


def test_numbers_of_the_study_stay_as_they_are_printed(results):
    board = arrange(read_paper())
    assert more_than_chance(board).all()
    query = Query(model="LLaMA3-8B")
    np.testing.assert_array_equal(
        analysis.view(board, query, more_than_chance(board)).shade, analysis.view(board, query).shade
    )


def test_a_table_does_not_wait_and_comes_again_with_its_shades(runs):
    boards = Boards(Store())
    boards.differences, go_on = Differences(patience=0), threading.Event()
    boards.differences._pool.submit(go_on.wait)
    first = select_table(boards, MEASURED)
    go_on.set()
    boards.differences._pool.shutdown(wait=True)
    again = select_table(boards, MEASURED)
    assert again.signature != first.signature
    assert (first.view.shade[np.isfinite(first.view.shade)] == 0).all()
    html = results_html(again.view, boards.notes, 5, again.ranking)
    assert html.count("The difference to FP16 may be chance.") == 2
    assert "Measured numbers are shaded where the same items, in pairs" in html


def test_differences_are_found_once_for_a_board(runs):
    board, differences = arrange(Store().snapshot().frame), Differences(20)
    assert differences.of(board) is differences.of(board)
    assert not np.array_equal(differences.of(board), printed(board))


def test_the_heat_map_has_the_shades_of_the_table(runs):
    board = arrange(Store().snapshot().frame)
    (heat,) = figures.methods_and_bits(board, "SmolLM2-135M", "arc_easy").data
    by_width = dict(zip(heat["x"], heat["z"][0], strict=True))
    assert by_width["8"] == by_width["4"] == 0
    assert by_width["2"] < 0 < by_width["3"]
