import pytest

from leaderboard.analysis import arrange
from leaderboard.provenance import provenance_of, row_run
from leaderboard.store import Store, read_notes, read_paper
from leaderboard.ui.card import card_html
from leaderboard.view import find_row
from quant_engine.runs.command import command


@pytest.fixture(scope="module")
def board():
    return arrange(read_paper())


def trace(board, key):
    return provenance_of(board, find_row(board, key), read_notes())


def test_a_number_of_the_study_names_its_table_and_its_oddity(board):
    numbers = {number.title: number for number in trace(board, "LLaMA3-8B~llm_ptq~QuIP~4~16~0").numbers}
    assert numbers["WikiText2 ↓"].text == "6.5"
    assert numbers["WikiText2 ↓"].source == "Table 1 of the study"
    assert "look swapped" in numbers["PTB ↓"].note
    assert numbers["PIQA ↑"].source == "Table 3 of the study"


def test_an_unreadable_number_is_listed_with_the_reason(board):
    numbers = {number.title: number for number in trace(board, "LLaMA2-7B~llm_ptq~AWQ~4~16~128").numbers}
    assert (numbers["C4 ↓"].text, numbers["C4 ↓"].note) == ("·", "Unreadable in the source.")


def test_a_setting_of_the_study_has_the_command_that_measures_it_here(board):
    provenance = trace(board, "LLaMA3-8B~llm_ptq~SliM-LLM~3~16~128")
    assert "--model llama3-8b --method slim_llm --bits 3 --group-size 128" in provenance.command
    assert "wikitext2" in provenance.command
    assert "2048 tokens" in dict(provenance.about)["Calibration"]


def test_what_the_engine_has_not_has_no_command(board):
    assert trace(board, "LLaMA3-8B~llm_ptq~SpinQuant~4~8~0").command == ""
    assert trace(board, "LLaMA-7B~llm_ptq~RTN~4~16~128").command == ""
    assert row_run(board, "LLaMA-7B~llm_ptq~RTN~4~16~128") is None
    assert row_run(board, "no such row") is None


def test_a_measured_number_names_its_run(make_run):
    folder = make_run(perplexity=25.5)
    board = arrange(Store().snapshot().frame)
    provenance = trace(board, f"run~{folder.name}")
    assert provenance.run_id == folder.name
    assert provenance.stored.startswith("4.30 bits per quantized weight")
    assert "ledger" in provenance.stored
    assert ("Peak memory", "2.0 GB") in provenance.about
    (first, *_) = provenance.numbers
    assert (first.title, first.text, first.source) == ("Built-in text ↓", "25.50", "8 items")
    assert "--method rtn --bits 4 --group-size 64" in command(row_run(board, provenance.key))
    assert row_run(board, provenance.key).run_id == folder.name


def test_only_scores_have_a_standard_error_and_items(write_run):
    run_id = write_run([1.0] * 15 + [0.0] * 5, standard_error=9.7)
    frame = Store().snapshot().frame.assign(duration_s=90.0, peak_memory_bytes=2e9)
    board = arrange(frame)
    numbers = {number.title: number for number in trace(board, f"run~{run_id}").numbers}
    assert (numbers["ARC-e ↑"].error, numbers["ARC-e ↑"].source) == ("± 9.7", "20 items, data rows 1")
    costs = [number for number in numbers.values() if number.group == "Cost"]
    assert [number.text for number in costs] == ["4.30", "2.00", "1.5"]
    assert {(number.error, number.source) for number in costs} == {("", "this run")}


def test_the_card_escapes_what_it_shows_and_offers_what_there_is(board, make_run):
    paper = card_html(trace(board, "LLaMA3-8B~llm_ptq~QuIP~4~16~0"), pinned=False, w_bits=4)
    assert "Pin to compare" in paper
    assert "data-folder" not in paper
    folder = make_run(perplexity=25.5)
    measured = arrange(Store().snapshot().frame)
    shown = card_html(trace(measured, f"run~{folder.name}"), pinned=True, w_bits=4)
    assert f'data-folder="{folder.name}"' in shown
    assert "Unpin" in shown
