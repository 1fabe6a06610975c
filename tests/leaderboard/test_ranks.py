"""Ranks of the table's rows: ties of measured runs by their items, rows of the study by what is printed."""

import threading

import numpy as np
import pytest

from leaderboard import analysis, ranks
from leaderboard.analysis import Query, arrange
from leaderboard.boards import Boards
from leaderboard.ranks import Comparisons
from leaderboard.store import Store, read_paper
from leaderboard.table_view import select_table
from leaderboard.ui.table import results_html
from quant_engine.runs import folder

MEASURED = Query(model="SmolLM2-135M", sources=("measured",))


@pytest.fixture
def runs(write_run) -> dict[str, str]:
    """Four runs on 200 items: two that differ in two items, one far below, and one that was asked half of them."""
    right = np.arange(200) < 160
    return {
        "full": write_run(right.astype(float).tolist(), "fp16"),
        "as good": write_run((np.arange(200) < 158).astype(float).tolist(), bits=4),
        "bad": write_run((np.arange(200) < 80).astype(float).tolist(), bits=2),
        "half": write_run([1.0] * 100, bits=3),
    }


def ranked(query: Query, patience: float = 20.0):
    board = arrange(Store().snapshot().frame)
    seen = analysis.view(board, query)
    return seen, ranks.rank(board, seen, Comparisons(patience))


def test_runs_that_cannot_be_told_apart_share_a_rank_and_other_items_have_none(runs):
    seen, found = ranked(MEASURED)
    texts = {run_id: found.text(row) for row, run_id in enumerate(seen.rows["run_id"])}
    assert {name: texts[run_id] for name, run_id in runs.items()} == {
        "full": "1=", "as good": "1=", "bad": "3", "half": ""
    }  # fmt: skip
    assert found.column.task == "arc_easy"


def test_a_rank_is_among_the_rows_that_are_shown(runs):
    seen, found = ranked(MEASURED.model_copy(update={"bits": (2.0,)}))
    assert [found.text(row) for row in range(len(seen.rows))] == ["1"]


def test_items_are_read_once_however_the_table_is_filtered(runs, write_run, monkeypatch):
    read = []
    monkeypatch.setattr(folder, "read_items", lambda *given, real=folder.read_items: read.append(given) or real(*given))
    board, comparisons = arrange(Store().snapshot().frame), Comparisons(20)
    for change in ({}, {"bits": (4.0,)}, {"sort": "arc_easy", "reverse": True}, {"mode": "retained"}):
        ranks.rank(board, analysis.view(board, MEASURED.model_copy(update=change)), comparisons)
    assert len(read) == len(runs)
    write_run([1.0] * 200, "gptq")
    board = arrange(Store().snapshot().frame)
    ranks.rank(board, analysis.view(board, MEASURED), comparisons)
    assert len(read) == len(runs) + 1


def test_a_run_with_damaged_items_has_no_rank_and_the_rest_have(runs):
    (folder.run_path(runs["as good"]) / "items" / "arc_easy.parquet").write_bytes(b"no parquet")
    seen, found = ranked(MEASURED)
    texts = {run_id: found.text(row) for row, run_id in enumerate(seen.rows["run_id"])}
    assert [texts[runs[name]] for name in ("full", "as good", "bad")] == ["1", "", "2"]


def test_a_table_does_not_wait_and_comes_again_with_ranks(runs):
    boards = Boards(Store())
    boards.comparisons, go_on = Comparisons(patience=0), threading.Event()
    boards.comparisons._pool.submit(go_on.wait)
    first = select_table(boards, MEASURED)
    assert "Rank" not in results_html(first.view, boards.notes, 4, first.ranking)
    go_on.set()
    boards.comparisons._pool.shutdown(wait=True)
    again = select_table(boards, MEASURED)
    assert again.signature != first.signature
    assert '<td class="k kr">1<i>=</i></td>' in results_html(again.view, boards.notes, 4, again.ranking)


def test_rows_of_the_study_are_ranked_by_the_printed_number():
    board = arrange(read_paper())
    seen = analysis.view(board, Query(model="LLaMA3-8B", bits=(4.0, 16.0), sort="wikitext2", mode="difference"))
    found = ranks.rank(board, seen, Comparisons(0))
    values = board.values[seen.board_rows, board.columns.index(found.column)]
    assert found.ranks.tolist() == [int((values < value).sum()) + 1 if value == value else 0 for value in values]
    tied = found.ranks[found.shared]
    assert all((found.ranks == rank).sum() > 1 for rank in tied)


def test_costs_are_no_ranking(results):
    board = arrange(read_paper())
    seen = analysis.view(board, Query(model="LLaMA3-8B", track="efficiency"))
    assert ranks.rank(board, seen, Comparisons(0)) is None
