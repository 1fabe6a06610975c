import re
import shutil

import pytest

from leaderboard.analysis import arrange
from leaderboard.boards import Boards
from leaderboard.plot import Figure
from leaderboard.store import Store, read_notes, read_paper
from leaderboard.ui import explore_tab, methods_tab, run_inside
from leaderboard.ui.chart import chart
from leaderboard.view import Explored, Fitted, read_address
from quant_engine.methods import METHODS


@pytest.fixture(scope="module")
def board():
    return arrange(read_paper())


def test_every_model_of_the_study_has_its_charts(board):
    for model in explore_tab.model_choices(board):
        explored = explore_tab.settle(board, Explored(model=model))
        assert explored.model == model
        html = explore_tab.model_charts(board, explored)
        pair = ["pair"] * (model in ("LLaMA3-8B", "LLaVA-Next-8B"))
        assert re.findall(r'id="chart-(\w+)"', html) == ["bits", "size", "methods", "tasks", *pair, "honest"], model
        absent = re.findall(r'<p class="absent">(.*?)</p>', html)
        counterpart = f"{model} has no counterpart to compare with; LLaMA3-8B and SmolLM2-135M have one."
        assert absent == ([] if pair else [counterpart])


def test_a_model_or_quality_that_is_not_there_is_settled(board):
    assert explore_tab.settle(board, Explored(model="No model", quality="ai2d")).model == "LLaMA3-8B"
    assert explore_tab.settle(board, Explored(model="LLaVA-Next-8B", quality="mmlu")).quality == "mmbench_en"


def test_a_figure_that_fails_is_a_sentence_and_a_log_line(caplog):
    def broken() -> Figure:
        raise ZeroDivisionError

    html = chart(broken, "Bits <b>")
    assert "could not be made" in html
    assert "Bits &lt;b&gt;" in html
    assert "ZeroDivisionError" in caplog.text


def test_what_fits_is_shown_or_refused_in_one_sentence(board):
    assert "settings of LLaMA3-8B fit RTX 4090" in explore_tab.fit_chart(board, Fitted())
    assert "There is no result of No model yet." in explore_tab.fit_chart(board, Fitted(model="No model"))


def test_runs_that_cannot_be_read_or_compared_are_sentences(make_run):
    first, second = make_run(perplexity=20.0), make_run(bits=3, perplexity=30.0)
    board = arrange(Store().snapshot().frame)
    assert len(explore_tab.run_choices(board)) == 2
    layers, weights, compared = explore_tab.run_charts(board, Explored(run=first.name, against=second.name))
    assert "This run quantized no layer." in layers
    assert "This run quantized no layer." in weights
    assert "The items of these runs can&#x27;t be read." in compared
    gone = explore_tab.run_charts(board, Explored(run="f" * 16, against=first.name))
    assert all("is not on this machine" in html for html in gone)
    assert explore_tab.run_charts(board, Explored())[1:] == ["", ""]


def test_a_run_id_in_the_address_that_is_none_reads_no_folder(make_run, results):
    shutil.copytree(make_run(perplexity=20.0), results.parent / "x")
    explored = read_address("tab=explore&x.run=../x&x.against=../x").explored
    assert (explored.run, explored.against) == ("../x", "../x")
    for html in explore_tab.run_charts(arrange(Store().snapshot().frame), explored):
        assert "&#x27;../x&#x27; is not a run id" in html
    assert run_inside.linears("../x") == []


def test_every_method_has_a_card_with_its_honest_bits_and_rows(results):
    board = Boards(Store()).current()
    standing = methods_tab.standings(board)
    for method in METHODS.values():
        html = methods_tab.facts(board, standing, method.card)
        assert "→" in html, method.card.name
        assert method.card.url in html
    assert methods_tab.ranks(standing, METHODS["rtn"].card).startswith("8 bit: 3 of 3 (6.2), 4 bit: ")
    assert "4 → 4.16" in methods_tab.honest_bits(METHODS["gptq"].card)
    assert "1.1 → 3.00" in methods_tab.honest_bits(METHODS["billm"].card)


def test_odd_numbers_of_the_study_are_said_where_they_are_drawn(board):
    html = explore_tab.oddities(board, read_notes(), Explored(quality="ptb"))
    assert "QuIP W4A16" in html
    assert "look swapped" in html
    assert explore_tab.oddities(board, read_notes(), Explored(quality="piqa")) == ""
