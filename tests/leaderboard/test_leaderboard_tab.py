import base64
import io
import zipfile

import gradio as gr
import pytest

from leaderboard import export
from leaderboard.store import Store
from leaderboard.ui import leaderboard_tab as tab
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
    assert tab.range_of(text) == bounds
    assert tab.range_of(tab.range_text(bounds)) == bounds


def test_pins_toggle_and_a_fifth_takes_the_place_of_the_oldest():
    pins = ()
    for key in "abcde":
        pins = tab.toggled(pins, key)
    assert pins == ("b", "c", "d", "e")
    assert tab.toggled(pins, "c") == ("b", "d", "e")


def test_pinned_rows_are_compared_from_two_on(results):
    boards = tab.Boards(Store())
    assert tab.pins_html(boards, ()) == tab.pins_html(boards, ("nothing",)) == ""
    assert "Pin another row" in tab.pins_html(boards, (GPTQ,))
    both = tab.pins_html(boards, (GPTQ, RTN))
    assert "data-figure" in both
    assert "They differ most on PTB" in both


def test_the_open_row_has_a_card_and_a_lost_one_has_none(results):
    boards = tab.Boards(Store())
    assert "Table 1 of the study" in tab.card_html(boards, PageView(row=GPTQ))
    assert tab.card_html(boards, PageView(row="run~ffffffffffffffff")) == ""
    assert tab.card_html(boards, PageView()) == ""


@pytest.mark.parametrize("form", export.FORMATS)
def test_an_export_is_of_the_view_in_the_address(results, form):
    file = tab.exported(tab.Boards(Store()), "?method=GPTQ&bits=4", form)
    content = base64.b64decode(file["content"])
    assert file["name"] == f"low-bit-lab-LLaMA3-8B.{form}"
    if form in ("csv", "md"):
        assert content.decode().count("GPTQ") == 2
    with pytest.raises(UserError, match="no format"):
        tab.exported(tab.Boards(Store()), "", "pickle")


@pytest.mark.parametrize("shipped", [False, True])
def test_a_run_folder_comes_as_a_zip_and_nothing_else_does(make_run, monkeypatch, tmp_path, shipped):
    folder = make_run(perplexity=25.5)
    if shipped:
        monkeypatch.setenv("LOWBIT_SHIPPED", str(folder.parent))
        monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "none"))
    packed = zipfile.ZipFile(io.BytesIO(base64.b64decode(tab.zipped(folder.name)["content"])))
    assert f"{folder.name}/run.json" in packed.namelist()
    for name in ("../../etc", "ffffffffffffffff", "", "."):
        with pytest.raises(UserError, match=r"no run|not a run id"):
            tab.zipped(name)


@pytest.fixture
def refresh(results):
    """The function that draws anew, the names of what it gives, and the controls' values with no card open."""
    with gr.Blocks():
        wired = tab.build(tab.Boards(Store()))
    refreshed, _, outputs = wired.refreshing
    return refreshed, [part.elem_id for part in outputs], [control.value for control in wired.controls.all()]


def test_drawing_the_table_anew_leaves_a_card_alone_that_was_opened_meanwhile(refresh):
    """A click's answer may come before that of a refresh that was asked for earlier, with no card open."""
    refreshed, ids, values = refresh
    answer = dict(zip(ids, refreshed("drawn from other results", "", *values), strict=True))
    assert "<table" in answer["board"]
    assert answer["card"] == answer["pins"] == gr.skip()


def test_an_open_card_is_drawn_anew_when_it_is_not_that_of_the_open_row(refresh):
    refreshed, ids, (*values, _) = refresh
    card, signed = ids.index("card"), ids.index("card") + 1
    first = refreshed("", "", *values, GPTQ)
    assert GPTQ in first[card]
    assert refreshed("", first[signed], *values, GPTQ)[card] == gr.skip()
    assert RTN in refreshed("", first[signed], *values, RTN)[card]
