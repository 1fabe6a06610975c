"""The question at every width as a table to save."""

import csv
import io

import pytest
from PIL import Image

from leaderboard import sweep
from leaderboard.ui.answer_pane import Side
from leaderboard.ui.sweep_part import files_html, row_html, side_answer
from quant_engine.answers.compare import SideAnswer, sweep_settings
from quant_engine.results import AnswerStats
from quant_engine.spec import QuantSetting, UserError

STATS = AnswerStats(
    ttft_s=1, tokens_per_s=9.5, tokens=3, prompt_tokens=9, weight_bytes=149_000_000, stored_bits=4.3125, dtype="float32"
)
ANSWERS = [
    SideAnswer(setting=QuantSetting(), text="Two | three\n*bars*", stats=STATS),
    SideAnswer(setting=QuantSetting(method="rtn", w_bits=2), text="=1+1", stats=STATS, parted="Parted at token 1"),
    SideAnswer(setting=QuantSetting(method="rtn", w_bits=3), problem="Memory ran out."),
]


def test_a_sweep_is_fp16_and_the_widths_that_a_method_has():
    assert [setting.code for setting in sweep_settings("rtn", 64)] == [
        "fp16", "rtn-8-g64", "rtn-6-g64", "rtn-4-g64", "rtn-3-g64", "rtn-2-g64",
    ]  # fmt: skip
    assert [setting.w_bits for setting in sweep_settings("normal_float", 64)] == [16, 4, 3, 2]
    assert [setting.group_size for setting in sweep_settings("quip", 64)][1] is None
    assert [setting.w_bits for setting in sweep_settings("BiLLM", None)] == [16, 1.1]
    with pytest.raises(UserError, match="no method 'gtq'"):
        sweep_settings("gtq", None)


def test_a_table_in_markdown_keeps_its_cells_whatever_answers_hold():
    text = sweep.as_markdown("How *many*?", ANSWERS).decode()
    lines = text.splitlines()
    assert lines[0] == r"**How \*many\*?**"
    assert lines[4] == r"| FP16 | 4.31 | 149 MB | Two \| three<br>\*bars\* |  |"
    assert lines[6].endswith("| Memory ran out. |  |")


def test_a_table_in_csv_is_read_back_and_holds_no_formula():
    rows = list(csv.DictReader(io.StringIO(sweep.as_csv("How many?", ANSWERS).decode())))
    assert [row["Setting"] for row in rows] == ["FP16", "RTN W2A16", "RTN W3A16"]
    assert rows[1]["Answer"] == "'=1+1"
    assert rows[0]["Question"] == "How many?"


def test_a_table_as_a_picture_grows_with_its_answers(tmp_path):
    Image.new("RGB", (900, 300), "teal").save(tmp_path / "a.png")
    short, tall = (
        Image.open(io.BytesIO(sweep.as_png("How many?", answers, tmp_path / "a.png")))
        for answers in (ANSWERS, [*ANSWERS, SideAnswer(setting=QuantSetting(), text="word " * 200)])
    )
    assert short.width == tall.width
    assert short.height + 300 < tall.height
    assert Image.open(io.BytesIO(sweep.as_png("", ANSWERS))).height < short.height


def test_the_row_and_its_files_hold_no_html_of_an_answer():
    side = Side(QuantSetting(method="rtn", w_bits=2), "done", text="<b>bold</b>", stats=STATS)
    assert "<b>bold" not in row_html([side]) + files_html("<i>", [side_answer(side)], None)
    assert "4.31 bits · 149 MB" in row_html([side])
