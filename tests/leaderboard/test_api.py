import base64
import io
import json

import pandas as pd
import pytest

from leaderboard.analysis import arrange
from leaderboard.api import endpoints
from leaderboard.store import read_notes, read_paper
from quant_engine.spec import UserError


@pytest.fixture(scope="module")
def api():
    board = arrange(read_paper())
    return {function.__name__: function for function in endpoints(lambda: board, read_notes())}


def test_every_answer_is_json_and_every_argument_is_documented(api):
    answers = {name: function(**{"row": "LLaMA3-8B~llm_ptq~GPTQ~4~16~128"} if name == "where_from" else {})
               for name, function in api.items()}  # fmt: skip
    json.dumps(answers, allow_nan=False)
    for function in api.values():
        for argument in function.__annotations__.keys() - {"return"}:
            assert f"{argument}: " in function.__doc__


def test_the_leaderboard_filters_sorts_and_notes(api):
    answer = api["leaderboard"](methods="QuIP,GPTQ", bits="4", sort="-wikitext2")
    values = [row["results"]["wikitext2"]["value"] for row in answer["rows"]]
    assert values == sorted(values, reverse=True)
    assert {row["method"] for row in answer["rows"]} == {"QuIP", "GPTQ"}
    assert any("look swapped" in note for note in answer["notes"])


def test_an_export_is_the_links_view(api):
    answer = api["export_view"](address="method=AWQ&bits=4", format="parquet")
    assert set(pd.read_parquet(io.BytesIO(base64.b64decode(answer["content"]))).method) == {"AWQ"}
    assert "\\toprule" in api["export_view"](format="tex")["content"]


def test_the_cheapest_and_what_fits_are_answers_in_a_sentence(api):
    assert api["cheapest_setting"](quality="wikitext2", within=10)["finding"].startswith("Cheapest within 10%")
    assert "fit 12 GiB" in api["what_fits"](memory_gib=12)["finding"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("leaderboard", {"model": "GPT-5"}),
        ("leaderboard", {"bits": "many"}),
        ("export_view", {"format": "xls"}),
        ("where_from", {"row": "nothing"}),
        ("what_fits", {"memory_gib": -1}),
        ("cheapest_setting", {"quality": "nothing"}),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(api, name, arguments):
    with pytest.raises(UserError, match=r"\.$"):
        api[name](**arguments)
