import re

from leaderboard import analysis
from leaderboard.analysis import Query
from leaderboard.boards import Boards
from leaderboard.store import Store
from leaderboard.table_view import next_sort, select_table
from leaderboard.ui import table
from leaderboard.ui.card import problems_html


def html_of(query: Query) -> str:
    """The table that the tab shows for a query."""
    boards = Boards(Store())
    shown = select_table(boards, query)
    return table.results_html(shown.view, boards.notes, shown.choices.rows, shown.ranking)


def test_notes_stand_on_their_cells_and_below(results):
    html = html_of(Query(model="LLaMA3-8B", methods=("RTN",), bits=(3.0,), groups=(0,)))
    assert re.search(r"35\.6<sup>1</sup>", html)
    assert "The five tasks average 37.6" in html
    assert "QuIP" not in html


def test_a_choice_never_empties_the_table_by_a_filter_that_is_no_longer_offered(results):
    query = Query(model="LLaVA-Next-8B", track="lora_ft", methods=("QuIP", "GPTQ"), bits=(8.0,))
    shown = select_table(Boards(Store()), query)
    assert shown.query.track == "mllm_ptq"
    assert shown.query.methods == ("GPTQ",)
    assert shown.query.bits == ()
    assert len(shown.view.rows)


def test_nothing_found_is_said(results):
    assert "No setting matches." in html_of(Query(model="LLaMA3-8B", search="zzz"))


def test_a_long_table_says_that_it_is_cut(results, monkeypatch):
    monkeypatch.setattr(table, "MOST_ROWS", 5)
    html = html_of(Query(model="LLaMA3-8B"))
    assert html.count("<tr class") == 5 + 1
    assert "The first 5 of 41 rows" in html


def test_measured_rows_are_marked(make_run):
    make_run(perplexity=25.5)
    html = html_of(Query(model="SmolLM2-135M"))
    assert '<mark class="measured">measured</mark>' in html
    assert "25.50" in html


def test_rows_that_differ_by_an_option_say_it_and_are_found_by_it(make_run):
    for limit in (8, 9):
        make_run(perplexity=25.5, limit=limit)
    frame = Store().snapshot().frame
    clipped = (frame["items"] == 9).to_numpy()
    frame.loc[clipped, "options"] = '{"symmetric": false, "mse_clip": true}'
    board = analysis.arrange(frame)
    html = table.results_html(analysis.view(board, Query(model="SmolLM2-135M")), {}, 2)
    assert html.count("<em") == html.count('<em title="mse_clip">mse_clip</em>') == 1
    (found,) = analysis.view(board, Query(model="SmolLM2-135M", search="mse_clip")).rows["run_id"]
    assert found == frame.loc[clipped, "run_id"].iloc[0]


def test_clicks_on_a_header_go_best_worst_and_back():
    assert next_sort(None, False, "c4") == ("c4", False)
    assert next_sort("c4", False, "c4") == ("c4", True)
    assert next_sort("c4", True, "c4") == (None, False)
    assert next_sort("c4", True, "ptb") == ("ptb", False)


def test_sorted_headers_say_their_direction(results):
    html = html_of(Query(model="LLaMA3-8B", sort="piqa"))
    assert re.search(r'aria-sort="descending"[^>]*><button type="button" data-sort="piqa">', html)


def test_problems_are_escaped_and_counted():
    from leaderboard.store import Problem

    html = problems_html((Problem("x", "<img> is broken."),))
    assert "1 run folder is left out" in html
    assert "<img>" not in html
    assert problems_html(()) == ""
