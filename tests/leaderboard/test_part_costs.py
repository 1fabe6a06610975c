"""Parts of a model that were quantized alone are charts in Explore, held against FP16 and the whole, and in no row."""

import json
import math

import pandas as pd
import pytest

from leaderboard import parts
from leaderboard.analysis import arrange
from leaderboard.store import Store, split_parts
from leaderboard.ui.explore_tab import model_charts, settle
from leaderboard.view import Explored
from quant_engine.results import ItemOutput, Result
from quant_engine.runs import folder
from quant_engine.spec import QuantSetting, RunSpec, UserError, WeightSpec

MODEL = "SmolLM2-135M"


@pytest.fixture
def run(results):
    """Writes a run of RTN at 3 bits, or FP16, whose windows have so much more loss: run(0.1, "attention")."""

    def write(more: float, *only: str, method: str = "rtn") -> str:
        setting = QuantSetting() if method == "fp16" else QuantSetting(method=method, w_bits=3, group_size=64)
        spec = RunSpec(weights=WeightSpec(model="demo-llm", setting=setting, only=only), tasks=("wikitext2",), limit=4)
        losses = [3 + more + 0.01 * (-1) ** index * (method != "fp16") for index in range(4)]
        items = [
            ItemOutput(item=str(index), prompt="", gold=[], prediction="", score=loss)
            for index, loss in enumerate(losses)
        ]
        row = Result(
            run_id=spec.run_id,
            source="measured",
            model="demo-llm",
            track="llm_ptq",
            **setting.model_dump(exclude={"options"}),
            options=json.dumps({"only": ", ".join(only)} if only else {}),
            task="wikitext2",
            metric="perplexity",
            value=math.exp(sum(losses) / 4),
            items=4,
            data_revision="text 1",
        )
        return folder.write(spec, {}, [row], [], {"wikitext2": items}, "").name

    return write


@pytest.fixture
def board(run):
    run(0, method="fp16")
    run(0.5)
    run(0.2, "attention")
    run(0.1, "q_proj")
    run(0.3, "down_proj")
    run(0.01, "block-0")
    run(0.05, "block-1")
    return arrange(Store().snapshot().frame)


def test_parts_are_in_no_row(board):
    own = board.rows[board.rows["model"] == MODEL]
    assert own["w_bits"].tolist() == [16, 3]
    assert sorted(board.parts["only"]) == ["attention", "block-0", "block-1", "down_proj", "q_proj"]


def test_each_kind_is_held_against_fp16_and_the_whole(board):
    figure = parts.kinds(board.results, board.parts, MODEL)
    table = figure.table.set_index("Quantized alone")
    assert table["× FP16"].to_dict() == pytest.approx(
        {name: math.exp(more) for name, more in
         {"all linears": 0.5, "attention": 0.2, "q_proj": 0.1, "down_proj": 0.3}.items()}, rel=1e-4,
    )  # fmt: skip
    assert (table["From"] < table["× FP16"]).all()
    assert (table["To"] > table["× FP16"]).all()
    assert "costs most in down_proj (1.35×)" in figure.finding
    assert list(figure.data[0]["y"]) == ["all linears", "attention", "q_proj", "down_proj"]


def test_each_block_is_held_against_fp16(board):
    figure = parts.blocks(board.results, board.parts, MODEL)
    assert figure.data[0]["x"] == [0, 1]
    assert "Block 1 costs most" in figure.finding


def test_explore_shows_them_where_there_are_some(board, results):
    shown = model_charts(board, settle(board, Explored(model=MODEL)))
    assert "Which linears cost what" in shown
    assert "Which blocks cost what" in shown
    assert "Which linears cost what" not in model_charts(board, settle(board, Explored()))
    with pytest.raises(UserError, match="No part of LLaMA3-8B was quantized alone yet"):
        parts.kinds(board.results, board.parts, "LLaMA3-8B")


def test_options_that_can_not_be_read_take_no_other_row_down():
    options = ['{"only": "mlp"}', '"only" and no JSON', '["only"]', '{"only": 3}', '{"note": "\\"only\\""}', None, "{}"]
    whole, alone = split_parts(pd.DataFrame({"options": options}))
    assert alone["only"].tolist() == ["mlp"]
    assert len(whole) == len(options) - 1
