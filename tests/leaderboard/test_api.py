import base64
import io
import json
import math
import re
from typing import get_args

import pandas as pd
import pytest
from PIL import Image

from leaderboard import export, requests
from leaderboard.analysis import MODES, TRACKS, Query, arrange, models
from leaderboard.api import endpoints
from leaderboard.store import PAPER_METHODS, read_notes, read_paper
from leaderboard.view import LISTS, Explored, Fitted, PageView, address
from quant_engine.answers.messages import AnswerEvent
from quant_engine.results import TokenShift
from quant_engine.spec import UserError


@pytest.fixture(scope="module")
def api():
    board = arrange(read_paper())
    return {function.__name__: function for function in endpoints(lambda: board, read_notes(), Service())}


class Service:
    """Stands for the answering process: every setting says the bits that it has, and parts at its second token."""

    def ask(self, request):
        for side, setting in enumerate(request.sides):
            fields = {"request_id": request.request_id, "side": side, "kind": "done"}
            if request.along:
                yield AnswerEvent(shifts=(shift(True), shift(side == 0)), **fields)
            else:
                yield AnswerEvent(
                    text=f"{request.image.stat().st_size > 0} {setting.w_bits:g}", tokens=(1, 2), **fields
                )


def shift(agrees):
    return TokenShift(text="a", p=0.5, q=0.25, divergence=0.5, choice="b", choice_q=0.5, agrees=agrees)


ARGUMENTS = {
    "where_from": {"row": "LLaMA3-8B~llm_ptq~GPTQ~4~16~128"},
    "ask_picture": {"picture": "example:1", "question": "What?", "divergence": True},
}


def test_every_answer_is_json_and_every_argument_is_documented(api, monkeypatch):
    monkeypatch.setattr(requests, "available", lambda card: True)
    answers = {name: function(**ARGUMENTS.get(name, {})) for name, function in api.items()}
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


@pytest.mark.parametrize("methods", ["GPTQ,AWQ", " gptq , Awq ", "awq,GPTQ,"])
def test_names_are_read_in_any_case_with_blanks_around_them(api, methods):
    rows = api["leaderboard"](model="llama3-8b", methods=methods, bits=4, sort="WikiText2", show="Retained")["rows"]
    assert {row["method"] for row in rows} == {"GPTQ", "AWQ"}
    assert len(rows) == 4


def test_an_answer_without_rows_says_why(api):
    answer = api["leaderboard"](methods="QuIP", bits="8")
    assert answer["rows"] == []
    assert answer["notes"] == ["No row matches all of this: leave out a filter or the search."]


def test_methods_are_known_by_the_ids_that_the_endpoint_methods_gives(api):
    there = {row["method"] for row in api["leaderboard"]()["rows"]}
    for name, card in api["methods"]().items():
        if card["title"] in there:
            assert {row["method"] for row in api["leaderboard"](methods=name)["rows"]} == {card["title"]}


def test_the_track_is_the_models_own_where_none_is_given(api):
    assert api["leaderboard"](model="LLaVA-Next-8B")["query"]["track"] == "mllm_ptq"
    assert api["leaderboard"](model="all")["query"]["track"] == "llm_ptq"


def test_the_docstrings_name_what_is_allowed(api):
    document = api["leaderboard"].__doc__
    assert all(name in document for name in (*TRACKS, *MODES, *PAPER_METHODS, *models(arrange(read_paper()))))
    assert all(name in document for name in ("w_bits", "group_size", "source", "wikitext2"))
    assert get_args(export.Format) == tuple(export.FORMATS)
    words = re.findall(r"\w+", api["export_view"].__doc__)
    assert {*export.FORMATS, *(name for name, *_ in LISTS)} <= {*words}


def test_a_link_of_the_page_is_exported_and_what_it_says_wrongly_refused(api):
    view = PageView(
        tab="explore",
        query=Query(
            model="LLaMA3-8B", methods=("GPTQ", "AWQ"), bits=(4.0,), groups=(128, 0), stored=(2.5, None), sort="c4"
        ),
        pins=("LLaMA3-8B~llm_ptq~GPTQ~4~16~128",),
        row="LLaMA3-8B~llm_ptq~GPTQ~4~16~128",
        explored=Explored(within=1.5),
        fitted=Fitted(card=None, memory=36.0),
    )
    for link in (address(view), "?" + address(view), "https://lab.test/?__theme=dark&" + address(view)):
        table = pd.read_csv(io.StringIO(api["export_view"](address=link)["content"]))
        assert set(table.method) == {"GPTQ", "AWQ"}


def test_a_picture_is_asked_about_in_several_settings_and_answers_are_held_against_fp16s(api, monkeypatch):
    monkeypatch.setattr(requests, "available", lambda card: True)
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "teal").save(buffer, "PNG")
    picture = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    fp16, low = api["ask_picture"](picture, "What?", "fp16,gptq-3-g64", divergence=True)["answers"]
    assert (fp16["text"], low["text"]) == ("True 16", "True 3")
    assert (low["parted"], low["fork"], len(low["shifts"])) == ("Parted at token 2; mean KL 0.5 nats", 1, 2)
    assert low["setting"] == fp16["setting"] | low["setting"]
    swept = api["ask_picture"]("example:2", "What?", sweep="rtn-g64")["answers"]
    assert [answer["setting"]["w_bits"] for answer in swept] == [16, 8, 6, 4, 3, 2]
    assert {answer["setting"]["group_size"] for answer in swept[1:]} == {64}
    assert [bool(answer["parted"]) for answer in swept] == [False] + 5 * [True]


def test_the_cheapest_and_what_fits_are_answers_in_a_sentence(api):
    assert api["cheapest_setting"](quality="wikitext2", within=10)["finding"].startswith("Cheapest within 10%")
    assert "fit 12 GiB" in api["what_fits"](memory_gib=12)["finding"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("leaderboard", {"model": "GPT-5"}, "choose from: LLaMA3-8B"),
        ("leaderboard", {"methods": "GPTQQ"}, r"did you mean GPTQ\?"),
        ("leaderboard", {"methods": "QLoRA"}, "There is no method 'QLoRA' of LLaMA3-8B in track llm_ptq"),
        ("leaderboard", {"track": "llm"}, r"did you mean llm_ptq\?"),
        ("leaderboard", {"track": "mllm_ptq"}, "choose from: llm_ptq, lora_ft, efficiency"),
        ("leaderboard", {"sort": "-wikitext"}, r"did you mean wikitext2\?"),
        ("leaderboard", {"sort": "ai2d"}, "There is no column 'ai2d' of LLaMA3-8B"),
        ("leaderboard", {"show": "kept"}, "choose from: absolute, difference, retained"),
        ("leaderboard", {"bits": "many"}, "bits takes numbers with commas between them, not 'many'"),
        ("leaderboard", {"bits": "4,nan"}, "not 'nan'"),
        ("leaderboard", {"bits": "5"}, "no row with bits 5 of LLaMA3-8B in track llm_ptq; choose from: 16, 8, 6"),
        ("leaderboard", {"search": "methd:gptq"}, r"did you mean method\?"),
        ("leaderboard", {"search": "method:gptqq"}, r"did you mean GPTQ\?"),
        ("leaderboard", {"search": "method:slim_llm"}, r"did you mean SliM-LLM\?"),
        ("leaderboard", {"search": "status:broken"}, "choose from: ok, collapsed"),
        ("leaderboard", {"search": "run:0123"}, "no run '0123' to search for"),
        ("leaderboard", {"search": "bits:<inf"}, "can't compare bits with '<inf'"),
        ("leaderboard", {"search": "group:nan"}, "can't compare group with 'nan'"),
        ("leaderboard", {"search": "wikitext2:<"}, "can't compare wikitext2 with '<'"),
        ("leaderboard", {"search": "x" * 2000}, "2,000 characters; shorten it to 1,000"),
        ("leaderboard", {"model": None}, "model: .* string"),
        ("leaderboard", {"methods": ["GPTQ"]}, "methods: .* string"),
        ("leaderboard", {"colour": "red"}, "colour"),
        ("export_view", {"format": "xls"}, "choose from: csv, json"),
        ("export_view", {"address": "bits=4,NaN"}, "not 'NaN'"),
        ("export_view", {"address": "methods=GPTQ"}, r"did you mean method\?"),
        ("export_view", {"address": "bits=4&bits=3"}, "gives bits 2 times"),
        ("export_view", {"address": "columns=Perplexty"}, r"did you mean Perplexity\?"),
        ("export_view", {"address": "status=broken"}, "choose from: ok, collapsed"),
        ("export_view", {"address": "source=measured"}, "choose from: paper"),
        ("export_view", {"address": "group=64"}, "no row with group 64"),
        ("export_view", {"address": "stored=2.5"}, "takes a range"),
        ("export_view", {"address": "size=..inf"}, "takes a range"),
        ("export_view", {"address": "x.within=200"}, "x.within: .* 100"),
        ("export_view", {"address": "pin=nothing"}, "no row 'nothing'"),
        ("where_from", {"row": "nothing"}, "no row 'nothing'"),
        ("where_from", {"row": "LLaMA3-8B~llm_ptq~GPTQ~4~16~127"}, r"did you mean LLaMA3-8B~llm_ptq~GPTQ~4~16~128\?"),
        ("where_from", {}, "row is missing"),
        ("what_fits", {"memory_gib": -1}, "greater than 0"),
        ("what_fits", {"memory_gib": math.nan}, "finite number"),
        ("what_fits", {"memory_gib": "inf"}, "finite number"),
        ("what_fits", {"context": 0}, "context: .* 1"),
        ("what_fits", {"batch": 1.5}, "batch: .* integer"),
        ("what_fits", {"model": "llama3-7b"}, r"did you mean LLaMA3-70B\?|did you mean LLaMA3-8B\?"),
        ("cheapest_setting", {"quality": "nothing"}, "choose from: wikitext2"),
        ("cheapest_setting", {"within": math.inf}, "finite number"),
        ("cheapest_setting", {"within": -1}, "within: .* 0"),
        ("ask_picture", {"picture": "example:9", "question": "What?"}, "example:1 to example:6"),
        ("ask_picture", {"picture": "/etc/passwd", "question": "What?"}, "not a picture|no base64"),
        ("ask_picture", {"picture": "http://a.b/c.png", "question": "What?"}, "no base64"),
        ("ask_picture", {"picture": "example:1", "question": " "}, "Type a question"),
        ("ask_picture", {"picture": "example:1", "question": "What?", "settings": "gptq"}, "such as gptq-4"),
        ("ask_picture", {"picture": "example:1", "question": "What?", "settings": ""}, "from 1 to 8 settings"),
        ("ask_picture", {"picture": "example:1", "question": "What?", "sweep": "gtq"}, "no method 'gtq'"),
        ("ask_picture", {"picture": "example:1", "question": "What?", "model": "/etc"}, "from the list"),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(api, name, arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        api[name](**arguments)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
