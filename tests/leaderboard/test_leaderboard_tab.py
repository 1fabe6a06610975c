import base64
import io
import zipfile

import gradio as gr
import pytest

from leaderboard import export
from leaderboard.analysis import Query
from leaderboard.boards import Boards
from leaderboard.downloads import export_table, zip_run
from leaderboard.store import Store
from leaderboard.table_view import parse_range, range_text, toggle_pin
from leaderboard.ui.card import open_card, pinned_rows
from leaderboard.ui.leaderboard_tab import LeaderboardTab, control_values, page_view
from leaderboard.view import PageView
from quant_engine.spec import UserError

GPTQ, RTN = "LLaMA3-8B~llm_ptq~GPTQ~4~16~128", "LLaMA3-8B~llm_ptq~RTN~4~16~128"


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("2.5-4", (2.5, 4)), (" 2 – 4 ", (2, 4)), ("2..4", (2, 4)), ("<4", (None, 4)), ("<= 4.5", (None, 4.5)),
        (">3", (3, None)), ("4", (4, 4)), ("", (None, None)), (None, (None, None)), ("many", (None, None)),
    ],
)  # fmt: skip
def test_a_typed_range_is_read(text, bounds):
    assert parse_range(text) == bounds
    assert parse_range(range_text(bounds)) == bounds


def test_pins_toggle_and_a_fifth_replaces_the_oldest():
    pins = ()
    for key in "abcde":
        pins = toggle_pin(pins, key)
    assert pins == ("b", "c", "d", "e")
    assert toggle_pin(pins, "c") == ("b", "d", "e")


def test_pinned_rows_are_compared_from_two_on(results):
    boards = Boards(Store())
    assert pinned_rows(boards, ()) == pinned_rows(boards, ("nothing",)) == ""
    assert "Pin another row" in pinned_rows(boards, (GPTQ,))
    both = pinned_rows(boards, (GPTQ, RTN))
    assert "data-figure" in both
    assert "They differ most on PTB" in both


def test_the_open_row_has_a_card_and_a_lost_one_has_none(results):
    boards = Boards(Store())
    assert "Table 1 of the study" in open_card(boards, PageView(row=GPTQ))
    assert open_card(boards, PageView(row="run~ffffffffffffffff")) == ""
    assert open_card(boards, PageView()) == ""


@pytest.mark.parametrize("form", export.FORMATS)
def test_an_export_is_of_the_view_in_the_address(results, form):
    file = export_table(Boards(Store()), "?method=GPTQ&bits=4", form)
    content = base64.b64decode(file["content"])
    assert file["name"] == f"low-bit-lab-LLaMA3-8B.{form}"
    if form in ("csv", "md"):
        assert content.decode().count("GPTQ") == 2
    with pytest.raises(UserError, match="no format"):
        export_table(Boards(Store()), "", "pickle")


@pytest.mark.parametrize("shipped", [False, True])
def test_a_run_folder_comes_as_a_zip_and_nothing_else_does(make_run, monkeypatch, tmp_path, shipped):
    folder = make_run(perplexity=25.5)
    if shipped:
        monkeypatch.setenv("LOWBIT_SHIPPED", str(folder.parent))
        monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "none"))
    packed = zipfile.ZipFile(io.BytesIO(base64.b64decode(zip_run(folder.name)["content"])))
    assert "run.json" in packed.namelist()
    for name in ("../../etc", "", "."):
        with pytest.raises(UserError, match="is not a run id"):
            zip_run(name)
    with pytest.raises(UserError, match="There is no run 'ffffffffffffffff' on this machine"):
        zip_run("f" * 16)


@pytest.fixture
def tab(results) -> LeaderboardTab:
    with gr.Blocks():
        return LeaderboardTab(Boards(Store()))


def test_the_controls_of_a_view_give_the_view_back():
    query = Query(
        model=None, track="mllm_ptq", methods=("GPTQ",), bits=(4.0, 1.7), groups=(128, 0), sources=("paper",),
        a_bits=(16.0,), statuses=("ok",), stored=(2.5, 4.0), size=(None, 8.0), columns=("Cost",), search="g128",
        sort="piqa", reverse=True, mode="retained",
    )  # fmt: skip
    view = PageView(query=query, pins=(GPTQ, RTN), row=RTN)
    assert page_view(control_values(view)) == view


def test_the_views_controls_are_the_tabs(tab):
    assert set(control_values(PageView())) == set(tab.controls)


def test_drawing_the_table_anew_leaves_a_card_alone_that_was_opened_meanwhile(tab):
    """A click's answer may come before that of a refresh that was asked for earlier, with no card open."""
    updates = tab.refresh("drawn from other results", "", **control_values(PageView()))
    assert "<table" in updates[tab.board]
    assert tab.card not in updates
    assert tab.pinned not in updates


def test_an_open_card_is_drawn_anew_when_it_is_not_that_of_the_open_row(tab):
    first = tab.refresh("", "", **control_values(PageView(row=GPTQ)))
    assert GPTQ in first[tab.card]
    signature = first[tab.details_signature]
    assert tab.card not in tab.refresh("", signature, **control_values(PageView(row=GPTQ)))
    assert RTN in tab.refresh("", signature, **control_values(PageView(row=RTN)))[tab.card]


def test_what_is_as_it_should_be_is_not_drawn_anew(tab):
    first = tab.refresh("", "", **control_values(PageView(row=GPTQ)))
    again = tab.refresh(first[tab.table_signature], first[tab.details_signature], **control_values(PageView(row=GPTQ)))
    assert again == gr.skip()
