"""Blind votes: what is stored, what counts, and the rates on the leaderboard and in Explore."""

import csv
import io
import json
import logging
import sqlite3
import subprocess
import sys
from contextlib import closing
from threading import Thread

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from leaderboard import analysis, export, figures, votes
from leaderboard.analysis import Query, arrange
from leaderboard.boards import Boards, sign_table
from leaderboard.columns import KNOWN, column_of
from leaderboard.provenance import provenance_of, row_run
from leaderboard.ranks import Ranking
from leaderboard.store import COLUMNS, Store
from leaderboard.ui import explore_tab
from leaderboard.ui.card import card_html, problems_html
from leaderboard.ui.table import results_html
from leaderboard.view import Explored, find_row, row_key
from leaderboard.votes import Ballot, Rate, Tally, Votes, with_votes
from quant_engine.spec import QuantSetting, UserError

RTN3 = QuantSetting(method="rtn", w_bits=3, group_size=64)


def ballot(verdict="right", voter="a", question="What?", setting=RTN3, **fields) -> Ballot:
    return Ballot(voter, "demo", "picture 1", question, setting, verdict, **fields)


def rate(votes=24, right=17.0, bits=3.0, group=64, method="rtn", model="demo") -> Rate:
    return Rate(model=model, method=method, w_bits=bits, a_bits=16, group_size=group, votes=votes, right=right)


@pytest.fixture
def box(tmp_path) -> Votes:
    return Votes(tmp_path / "home" / "votes.sqlite")


def content(box: Votes) -> list[tuple]:
    with closing(sqlite3.connect(box.path)) as db:
        return db.execute("SELECT * FROM votes").fetchall()


# --- the file ------------------------------------------------------------------------------------------------------


def test_cant_tell_counts_as_half_a_right_vote(box):
    assert box.tally() == Tally()
    assert not box.path.exists()
    for voter, verdict in enumerate(["right", "right", "wrong", "unsure"]):
        assert box.cast(ballot(verdict, str(voter)))
    assert box.tally().rates == (rate(votes=4, right=2.5),)
    assert box.rate("demo", RTN3).share == 0.625
    assert box.rate("demo", QuantSetting(method="rtn", w_bits=2, group_size=64)) is None


def test_a_voter_counts_once_for_each_question_with_the_first_vote(box):
    assert box.cast(ballot("right"))
    assert not box.cast(ballot("wrong"))
    assert not box.cast(ballot("wrong", question=" What? "))
    assert box.rate("demo", RTN3).right == 1
    for other in (
        ballot("wrong", voter="b"),
        ballot("wrong", question="Where?"),
        ballot("wrong", setting=QuantSetting(method="rtn", w_bits=3, group_size=32)),
        Ballot("a", "demo", "picture 2", "What?", RTN3, "wrong"),
        Ballot("a", "other", "picture 1", "What?", RTN3, "wrong"),
    ):
        assert box.cast(other)
    assert box.rate("demo", RTN3).votes == 4


def test_neither_the_session_nor_the_picture_nor_unasked_words_are_stored(box, tmp_path):
    box.cast(ballot(voter="session-4711", question="A secret?"))
    box.cast(ballot(voter="session-4711", question="An open one?", keep_words=True))
    assert sorted(row[-1] or "" for row in content(box)) == ["", "An open one?"]
    everything = box.path.read_bytes()
    assert not any(text in everything for text in (b"session-4711", b"A secret", b"picture 1"))
    other = Votes(tmp_path / "other.sqlite")
    other.cast(ballot(voter="session-4711", question="A secret?"))
    assert {row[:2] for row in content(box)}.isdisjoint({row[:2] for row in content(other)})


@pytest.mark.parametrize("verdict", ["", "A", None, "right'"])
def test_a_forged_verdict_is_a_sentence(box, verdict):
    with pytest.raises(UserError, match="right, wrong or unsure"):
        box.cast(ballot(verdict))
    assert not box.path.exists()


def test_odd_words_and_sessions_are_stored(box):
    box.cast(ballot(voter="\ud800", question="'); DROP TABLE votes; --", keep_words=True))
    assert [row[-1] for row in content(box)] == ["'); DROP TABLE votes; --"]


HOLD = """
import sqlite3, sys, time
with sqlite3.connect(sys.argv[1]) as db:
    db.execute("INSERT INTO votes VALUES ('x', 'q', 'demo', 'rtn', 3, 16, 64, 'wrong', 0, NULL)")
    print("held", flush=True)
    time.sleep(0.5)
"""


def test_processes_and_threads_lose_no_vote(box):
    box.cast(ballot())
    with subprocess.Popen([sys.executable, "-c", HOLD, str(box.path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        threads = [Thread(target=Votes(box.path).cast, args=(ballot(voter=f"{number}"),)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert box.tally().rates == (rate(votes=10, right=9),)


def test_votes_of_another_process_are_seen(box):
    box.cast(ballot())
    assert box.rate("demo", RTN3).votes == 1
    Votes(box.path).cast(ballot(voter="b"))
    assert box.rate("demo", RTN3).votes == 2


def test_a_file_that_has_not_changed_is_not_read_again(box, monkeypatch):
    box.cast(ballot())
    monkeypatch.setattr(votes, "SETTLED_S", -1)
    before = box.tally()
    monkeypatch.setattr(box, "_read", lambda: pytest.fail("read again"))
    assert box.tally() is before


def test_a_damaged_file_is_a_sentence_and_leaves_the_leaderboard(box, results, caplog):
    box.path.parent.mkdir()
    box.path.write_bytes(b"this is no database" * 100)
    with pytest.raises(UserError, match="is damaged: move the file away"):
        box.cast(ballot())
    boards = Boards(Store(), box)
    assert "Blind votes are left out." in problems_html(boards.problems(), boards.votes.tally().problem)
    assert len(boards.current().rows)
    assert box.path.read_bytes().startswith(b"this is no database")


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "votes.sqlite", tmp_path):
        with pytest.raises(UserError, match=r"votes .*can't be written .*make its folder writable or set LOWBIT_HOME"):
            Votes(path).cast(ballot())


def test_a_full_disk_is_a_sentence_and_leaves_the_votes(box, monkeypatch):
    box.cast(ballot())
    monkeypatch.setattr(votes, "_SCHEMA", ("PRAGMA max_page_count = 1",))
    with pytest.raises(UserError, match="the disk is full: free some space"):
        box.cast(ballot(voter="b", question="?" * 9000, keep_words=True))
    assert box.rate("demo", RTN3).votes == 1


def test_a_file_that_is_held_is_a_sentence_for_a_vote_and_the_last_rates_for_readers(box, monkeypatch):
    monkeypatch.setattr(votes, "_WRITE_PATIENCE_S", 0.05)
    monkeypatch.setattr(votes, "_READ_PATIENCE_S", 0.05)
    box.cast(ballot())
    before = box.tally()
    with closing(sqlite3.connect(box.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="held by another process"):
            box.cast(ballot(voter="b"))
        assert box.tally() == before
        other.execute("ROLLBACK")
    assert box.cast(ballot(voter="b"))
    assert box.tally().rates[0].votes == 2


def test_votes_that_another_version_stored_are_left_out(box, caplog):
    caplog.set_level(logging.WARNING)
    box.cast(ballot())
    with closing(sqlite3.connect(box.path)) as db, db:
        db.execute("UPDATE votes SET w_bits = 'many'")
        row = "INSERT INTO votes VALUES (?, 'q', 'demo', 'rtn', 3, 16, 64, ?, 0, NULL)"
        db.executemany(row, [("x", "maybe"), ("y", "wrong")])
    assert box.tally().rates == (rate(votes=1, right=0),)
    assert "another version" in caplog.text


# --- rates ---------------------------------------------------------------------------------------------------------


def test_a_rate_is_beyond_chance_where_its_interval_leaves_out_a_half():
    assert not votes.beyond_chance(8 / 10, 10)
    assert votes.beyond_chance(9 / 10, 10)
    assert votes.beyond_chance(1 / 10, 10)
    assert votes.shades(np.array([100.0, 90, 80, 10, np.nan]), np.array([10.0, 10, 10, 10, 10])) == pytest.approx(
        [-1, -0.8, 0, 0.8, np.nan], nan_ok=True
    )


# --- the leaderboard -----------------------------------------------------------------------------------------------


def board_with(*rates: Rate):
    return arrange(with_votes(Store().snapshot().frame, rates))


def test_without_votes_there_is_no_column(results):
    frame = Store().snapshot().frame
    assert with_votes(frame, ()) is frame
    assert votes.TASK in KNOWN


def test_a_rate_stands_in_the_rows_of_its_setting_and_is_empty_elsewhere(make_run):
    same = [make_run(model="demo", bits=3, perplexity=30.0, limit=limit).name for limit in (8, 9)]
    make_run(model="demo", bits=4, perplexity=20.0)
    board = board_with(rate())
    seen = analysis.view(board, Query(model="Demo LLaVA-NeXT", columns=("Blind votes",)))
    texts = dict(zip(seen.rows["run_id"], [seen.text(row, 0) for row in range(len(seen.rows))], strict=True))
    assert {run_id: text for run_id, text in texts.items() if text != "·"} == dict.fromkeys(same, "71% of 24")
    assert len(seen.rows) == 3
    other = analysis.view(board, Query(model="LLaMA3-8B"))
    assert votes.TASK not in [column.task for column in other.columns]


def test_a_run_with_another_option_is_another_setting(make_run):
    make_run(model="demo", bits=3, perplexity=30.0)
    frame = Store().snapshot().frame
    frame.loc[frame["source"] == "measured", "options"] = '{"symmetric": false, "mse_clip": true}'
    board = arrange(with_votes(frame, (rate(),)))
    assert list(board.rows.loc[board.rows["model"] == "Demo LLaVA-NeXT", "source"]) == ["measured", "votes"]


@pytest.mark.parametrize("group", [64, None])
def test_a_setting_that_nothing_was_measured_of_has_a_row_of_its_own(results, group):
    board = board_with(rate(method="gptq", group=group))
    (row,) = board.rows[board.rows["source"] == "votes"].to_dict("records")
    assert (row["model"], row["track"], row["method"], row["w_bits"]) == ("Demo LLaVA-NeXT", "mllm_ptq", "GPTQ", 3)
    index = find_row(board, row_key(row))
    assert board.rows["source"].iloc[index] == "votes"
    assert row["stored_bits"] > 3
    provenance = provenance_of(board, index, {})
    (number,) = provenance.numbers
    assert (number.text, number.source) == ("70.8%", "24 blind votes on this machine; 95% interval 51 to 85%")
    card = card_html(provenance, pinned=False, w_bits=3)
    assert "blind votes alone" in card
    assert "arXiv" not in card
    assert row_run(board, row_key(row)).tasks == ("perplexity",)


def test_a_row_of_the_study_stays_the_studys(results):
    paper = Store().snapshot().frame
    study = paper[(paper["model"] == "LLaVA-Next-8B") & (paper["w_bits"] == 4)].iloc[0]
    frame = with_votes(paper, [rate(model="llava-next-8b", method="gptq", bits=4, group=128)])
    board = arrange(frame)
    rows = board.rows[(board.rows["model"] == study["model"]) & (board.rows["method"] == "GPTQ")]
    assert set(rows["source"]) == {"paper", "votes"}
    assert len({row_key(row) for row in rows.to_dict("records")}) == len(rows)


def test_only_a_rate_beyond_chance_is_painted_in_any_mode(results):
    board = board_with(
        rate(bits=2, votes=30, right=30), rate(bits=3, votes=10, right=8), rate(bits=4, votes=30, right=3)
    )
    for mode in analysis.MODES:
        seen = analysis.view(board, Query(model="Demo LLaVA-NeXT", track="mllm_ptq", mode=mode, sort=votes.TASK))
        assert list(seen.rows["w_bits"]) == [4, 3, 2]
        assert seen.shade[:, 0].tolist() == [0.8, 0, -1]
        assert [seen.text(row, 0) for row in range(3)] == ["10% of 30", "80% of 10", "100% of 30"]
    html = results_html(seen, {}, 3)
    assert html.count('class="first lost"') == html.count('class="first gained"') == 1
    assert (
        "80.0% of 10 blind votes on this machine; 95% interval 49 to 94%, which holds 50%: this may be chance." in html
    )
    assert "Told apart: the share of blind votes on this machine" in html


def test_exports_have_the_rate_with_its_votes(results):
    seen = analysis.view(board_with(rate()), Query(model="Demo LLaVA-NeXT", track="mllm_ptq"))
    (line,) = csv.DictReader(io.StringIO(export.csv(seen).decode()))
    assert (float(line["told_apart"]), float(line["told_apart_votes"])) == (pytest.approx(17 / 24 * 100), 24)
    (row,) = json.loads(export.as_json(seen))["rows"]
    assert row["results"]["told_apart"]["items"] == 24
    assert "71% of 24" in export.markdown(seen).decode()
    assert r"71\% of 24" in export.latex(seen).decode()
    pd.read_parquet(io.BytesIO(export.parquet(seen)))


def test_a_vote_changes_what_tables_are_drawn_from(box, results):
    boards, query = Boards(Store(), box), Query(model="Demo LLaVA-NeXT")
    before = sign_table(boards.state(), query)
    assert boards.current() is boards.current()
    box.cast(ballot())
    assert sign_table(boards.state(), query) != before
    assert "Demo LLaVA-NeXT" in analysis.models(boards.current())
    assert boards.current() is boards.current()


def test_results_keep_their_columns_and_types(make_run):
    make_run(model="demo", bits=3, perplexity=30.0)
    frame = Store().snapshot().frame
    joined = with_votes(frame, (rate(), rate(bits=2)))
    assert list(joined.columns) == COLUMNS
    pd.testing.assert_frame_equal(joined.iloc[: len(frame)], frame, check_dtype=False)
    assert {str(joined.dtypes[name]) for name in ("value", "items", "group_size")} == {"float64"}


# --- Explore -------------------------------------------------------------------------------------------------------


def test_the_chart_has_a_point_for_each_width_with_its_interval(make_run):
    make_run(model="demo", bits=3, perplexity=30.0)
    board = board_with(
        rate(bits=2, votes=30, right=30), rate(votes=6, right=4), rate(group=32, votes=4, right=4),
        rate(method="gptq", votes=1, right=0.5),
    )  # fmt: skip
    figure = figures.told_apart(board, "Demo LLaVA-NeXT")
    go.Figure(json.loads(json.dumps({"data": figure.data, "layout": figure.layout}).replace("var(--quiet)", "#123456")))
    rtn, gptq = figure.data
    assert rtn["y"] == pytest.approx([80, 100])
    assert rtn["error_y"]["arrayminus"][0] == pytest.approx(80 - 49.02, abs=0.01)
    assert [symbol.endswith("-open") for symbol in rtn["marker"]["symbol"]] == [True, False]
    assert set(rtn["x"]).isdisjoint(gptq["x"])
    assert figure.layout["shapes"][0]["y0"] == 50
    assert figure.finding.startswith(
        "41 votes on this machine, of answers that differ. Told apart by more than chance: RTN"
    )
    assert figure.table["Votes"].tolist() == [4, 6, 30, 1]


def test_the_chart_is_shown_where_there_are_votes_and_models_without_scores_are_not_offered(make_run):
    make_run(model="demo", bits=3, perplexity=30.0)
    explored = Explored(model="Demo LLaVA-NeXT", quality="perplexity")
    assert "chart-votes" in explore_tab.model_charts(board_with(rate(bits=2)), explored)
    assert "chart-votes" not in explore_tab.model_charts(board_with(), explored)


def test_a_row_of_votes_alone_says_nothing_of_the_study_and_is_in_no_other_chart(make_run):
    make_run(model="demo", bits=3, perplexity=30.0, track="mllm_ptq")
    board = board_with(rate(bits=2))
    seen = analysis.view(board, Query(model="Demo LLaVA-NeXT", track="mllm_ptq"))
    html = results_html(seen, {}, 2, Ranking(column_of("perplexity"), np.array([1, 0]), np.array([False, False])))
    assert "Ranks are by Built-in text." in html
    assert "The study's rows" not in html
    table = figures.honest_bits(board, "Demo LLaVA-NeXT").table
    assert list(table["Setting"]) == ["RTN W3A16 g64 (measured)"]
    assert "g64 (votes)" in export.latex(seen).decode()


def test_a_model_that_has_votes_alone_is_not_explored(results):
    board = board_with(rate())
    assert "Demo LLaVA-NeXT" not in explore_tab.model_choices(board)
    assert explore_tab.settle(board, Explored(model="Demo LLaVA-NeXT")).model == "LLaMA3-8B"
