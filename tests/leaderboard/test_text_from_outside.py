"""Whatever is sent to the page or to an endpoint ends in an answer or in one sentence."""

import json
import math
from types import SimpleNamespace
from urllib.parse import urlencode

import gradio as gr
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from leaderboard import analysis, api, api_runs, export, requests
from leaderboard.analysis import GROUPS, MODES, STATUSES, TRACKS, arrange
from leaderboard.lab import Lab
from leaderboard.store import PAPER, PAPER_METHODS, Store, read_notes, read_paper
from leaderboard.ui import explore_tab, page, run_inside
from leaderboard.ui.leaderboard_tab import control_values, page_view
from leaderboard.ui.run_form import SWEEP
from leaderboard.view import PageView, address, find_row, read_address, row_key
from quant_engine import folders, hub
from quant_engine.evaluate import TASKS
from quant_engine.methods import METHODS
from quant_engine.models.catalog import MODELS
from quant_engine.runs.queue import Queue
from quant_engine.spec import QuantSetting, UserError


def many(examples: int):
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


BOARD = arrange(read_paper())
ROWS = [row_key(row) for row in BOARD.rows.to_dict("records")]
TERMS = [
    "group:nan", "bits:<inf", "wikitext2:<", "wikitext2:<8", "status:", "method:,", 'run:""', '"', "g:row,", "x" * 1200,
]  # fmt: skip
VALUES = [
    "", " ", "0", "-1", "4, 3", "2..4", "..nan", "4..2", "nan", "-inf", "1e400", "GPTQ, awq", "per row", "-wikitext2",
    "all", "fp16", "builtin", "/", "../..", "~nobody", "perplexity:~nobody/x", "x" * 300, "~~~~~", "=1+1", "<b>&",
    "a\r\nb", "\x00", "\ud800", "\u202e",
]  # fmt: skip
NAMES = [
    *analysis.models(BOARD), *MODELS, *TRACKS, *METHODS, *MODES, *STATUSES, *GROUPS, *export.FORMATS, *TASKS,
    *ROWS[::20], *TERMS, *VALUES,
]  # fmt: skip
CHARACTERS = st.text(st.integers(0, 0x10FFFF).map(chr), max_size=12)
WORDS = st.sampled_from(NAMES) | CHARACTERS | st.tuples(st.sampled_from(NAMES), CHARACTERS).map("".join)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 4, 8, 16, 128, 2**64, 10**400, math.nan, math.inf])
LISTS = st.lists(WORDS | NUMBERS, max_size=3) | st.dictionaries(WORDS, NUMBERS, max_size=2)
ANYTHING = WORDS | NUMBERS | st.none() | st.booleans() | LISTS
"""A JSON value as a browser or program may send it: names that there are, names nearby, and rubbish."""


def check_sentence(refusal: UserError) -> None:
    text = str(refusal)
    assert "\n" not in text
    assert text.endswith((".", "?")), text
    orjson.dumps(text)


def check_answer(call, *arguments, **named):
    """The JSON value that a call gives; None where it refuses in a sentence."""
    try:
        value = call(*arguments, **named)
    except UserError as refusal:
        check_sentence(refusal)
        return None
    orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return value


def check_model(call, *arguments, **named):
    """As `check_answer`, for what gives a pydantic model; whatever it takes can be written to a database."""
    check_answer(lambda: call(*arguments, **named).model_dump(mode="json"))


@pytest.fixture(scope="module", autouse=True)
def no_hub():
    """The hub is not asked about what is made up here."""

    def refuse(*arguments, **named):
        raise UserError("The hub is not asked.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "commit", refuse)
        yield


NOBODY = SimpleNamespace(ask=lambda request: iter(()))
"""An answering process that says nothing."""
PUBLIC = Lab(queue=Queue(folders.home() / "outside.sqlite"), hosted=True, owner_token="secret")
"""A public page with an empty queue."""
ENDPOINTS = {
    function.__name__: function
    for function in (*api.endpoints(lambda: BOARD, read_notes(), NOBODY), *api_runs.endpoints(PUBLIC))
}


LIKELY = {
    "model": [*analysis.models(BOARD), *MODELS, "all"],
    "track": ["", *TRACKS, *TRACKS.values()],
    "methods": ["", "GPTQ, awq", *METHODS, *PAPER_METHODS],
    "bits": ["", "4", " 4 ,3,", "16", "1.7"],
    "search": ["", "gptq", "bits:<=3", "group:row,64", "wikitext2:5-8", *TERMS],
    "sort": ["", "wikitext2", "-c4", "WikiText2", "method", "-bits", "ai2d"],
    "show": list(MODES),
    "address": ["", "bits=4&show=retained", "model=all&track=mllm_ptq", "q=gptq&sort=-c4", "stored=2..4&columns=Cost"],
    "format": list(export.FORMATS),
    "row": ROWS,
    "memory_gib": [0.1, 24, 100_000],
    "context": [1, 4096, 1_000_000],
    "batch": [1, 4096],
    "pictures": [0, 64],
    "quality": ["", "wikitext2", "All", "ai2d", "perplexity"],
    "within": [0, 5, 100],
    "picture": ["example:1", "example:x", "data:image/png;base64,iVBORw0KGgo="],
    "question": ["What?", " "],
    "settings": ["fp16,rtn-4-g64", "gptq-3", ","],
    "sweep": ["", "rtn-g64", "billm"],
    "divergence": [True, False],
    "most_tokens": [1, 64],
    "newest": [1, 500],
    "method": [*METHODS, "fp16"],
    "group_size": [0, 64],
    "activation_bits": [16, 8],
    "tasks": ["perplexity", "perplexity, arc-easy", ","],
    "items": [0, 1],
    "token": ["", "secret"],
    "run": ["0" * 16, "../x"],
    "action": ["cancel", "pause", "resume", "delete"],
}
TEXTS = ("model", "track", "methods", "search", "sort", "show", "format", "row", "quality")


@pytest.mark.parametrize("name", sorted(ENDPOINTS.keys() - {"methods"}))
@many(100)
@given(data=st.data())
def test_an_endpoint_answers_any_arguments_in_json_or_refuses_them_in_a_sentence(name, data):
    arguments = {}
    for argument in sorted(ENDPOINTS[name].__annotations__.keys() - {"return"}):
        likely = st.sampled_from(LIKELY[argument])
        in_any_case = likely.map(str.swapcase) if argument in TEXTS else likely
        kind = data.draw(st.sampled_from([None, likely, likely, in_any_case, ANYTHING]))
        arguments |= {argument: data.draw(kind, argument)} if kind is not None else {}
    answer = check_answer(ENDPOINTS[name], **arguments)
    json.dumps(answer, allow_nan=False).encode()


PARAMETERS = st.sampled_from(
    ["tab", "model", "track", "show", "method", "bits", "abits", "group", "source", "status", "columns", "stored",
     "size", "q", "sort", "pin", "row", "x.model", "x.within", "x.bits", "x.run", "fit.memory", "fit.card",
     "fit.context", "ask.settings", "ask.question", "ask.example", "ask.tokens", "__theme", "Bits", ""]
)  # fmt: skip
PAIRS = st.lists(st.tuples(PARAMETERS | CHARACTERS, WORDS), max_size=5)


def as_address(pairs):
    return urlencode(
        [(name.encode(errors="surrogatepass"), text.encode(errors="surrogatepass")) for name, text in pairs]
    )


ADDRESSES = PAIRS.map(as_address) | WORDS | st.text("?&=%;+#~é0fF", max_size=30)


@example(search="model=&x.model=")
@many(300)
@given(search=ADDRESSES | st.none())
def test_any_address_is_read_and_written_again(search):
    view = read_address(search)
    assert read_address(address(view)) == view
    orjson.dumps(view.model_dump(mode="json"))


@many(60)
@given(search=ADDRESSES, format=st.sampled_from(list(export.FORMATS)))
def test_the_table_of_any_address_is_written_in_every_format_or_refused_in_a_sentence(search, format):
    shown = analysis.view(BOARD, read_address(search).query)
    assert isinstance(export.FORMATS[format](shown), bytes)
    check_answer(ENDPOINTS["export_view"], search, format)


@many(200)
@given(key=ANYTHING.filter(lambda value: isinstance(value, str)) | st.lists(WORDS, max_size=7).map("~".join))
def test_any_key_is_of_a_row_or_of_none(key):
    index = find_row(BOARD, key)
    assert index is None or 0 <= index < len(BOARD.rows)


FIELDS = st.sampled_from(["", "method:", "bits:", "group:", "wikitext2:", "status:", "run:", "calibration:", "no:"])
CONDITIONS = WORDS | st.sampled_from(["<", "<=", "1-", "-1--1", ",", "row,4", "9" * 400])


@many(200)
@given(
    terms=st.lists(
        st.tuples(FIELDS, WORDS | st.sampled_from(["<", "<=", "1-", "-1--1", ",", "row,4", "9" * 400])), max_size=4
    )
)
def test_any_search_finds_rows_or_none(terms):
    found = page_view(control_values(PageView()) | {"search": " ".join(map("".join, terms))}).query
    rows = analysis.view(BOARD, found).rows
    assert len(rows) <= len(BOARD.rows)


@many(200)
@given(
    arguments=st.tuples(ANYTHING, ANYTHING, ANYTHING, st.dictionaries(WORDS, ANYTHING, max_size=2)),
    a_bits=ANYTHING,
    hosted=st.booleans(),
)
def test_any_setting_is_resolved_or_refused(arguments, a_bits, hosted):
    check_model(requests.setting, *arguments, a_bits=a_bits, hosted=hosted)


@many(150)
@given(method=st.sampled_from(list(METHODS)), data=st.data())
def test_any_value_of_an_option_is_taken_or_refused(method, data):
    names = list(METHODS[method].Options.model_fields)
    options = {name: data.draw(ANYTHING, name) for name in names}
    bits = METHODS[method].card.bits[0]
    check_model(requests.setting, method, bits, None, options, a_bits=8)


RTN = QuantSetting(method="rtn", w_bits=4)


@many(150)
@given(
    model=ANYTHING | st.just("demo-llm"),
    tasks=ANYTHING | st.lists(ANYTHING, max_size=3),
    named=st.fixed_dictionaries({"limit": ANYTHING, "window": ANYTHING, "hosted": st.booleans()}),
)
def test_any_run_is_resolved_or_refused(model, tasks, named):
    check_model(requests.run, model, RTN, tasks, **named)


@many(150)
@given(source=ANYTHING, samples=ANYTHING, length=ANYTHING)
def test_any_calibration_is_taken_or_refused(source, samples, length):
    check_model(requests.calibration, source, samples, length)


@many(150)
@given(model=ANYTHING | st.just("demo"), text=ANYTHING, most_tokens=ANYTHING)
def test_any_question_is_taken_or_refused(model, text, most_tokens):
    check_model(requests.question, model, "/tmp/a.png", text, [RTN], most_tokens)


@pytest.fixture(scope="module")
def the_page():
    with pytest.MonkeyPatch.context() as patch, gr.Blocks():
        patch.setattr(requests, "available", lambda card: True)
        yield page._Page(Lab(store=Store(paper=PAPER)))


def check_updates(updates) -> None:
    """Whatever a function of the page gives is text and numbers that Gradio can send."""
    values = updates.values() if isinstance(updates, dict) else updates
    orjson.dumps(
        list(values), default=lambda part: part.model_dump(mode="json") if hasattr(part, "model_dump") else str(part)
    )


KEYS = st.sampled_from(["row", "column", "run", "linear", "method", "index"])
EVENTS = (ANYTHING | st.dictionaries(KEYS, ANYTHING, max_size=4)).map(lambda data: SimpleNamespace(_data=data))


@many(60)
@given(data=st.data(), event=EVENTS)
def test_the_table_is_drawn_whatever_its_controls_and_events_hold(the_page, data, event):
    tab, values = the_page.leaderboard, control_values(PageView())
    for name in data.draw(st.lists(st.sampled_from(list(values)), max_size=3)):
        text = name in ("search", "stored", "size")  # Gradio makes text of what a text box sends
        values[name] = data.draw(WORDS if text else ANYTHING, name)
    draw = data.draw(st.sampled_from([tab._sort, tab._open, tab._pin, tab._refine, tab._choose, tab._clear]))
    events = (event,) if draw in (tab._sort, tab._open, tab._pin) else ()
    check_updates(draw(*events, **values))


@many(40)
@given(search=ADDRESSES, event=EVENTS, chosen=st.tuples(*[ANYTHING] * 3), words=WORDS, state=ANYTHING)
def test_the_page_goes_wherever_an_address_or_an_event_says(the_page, search, event, chosen, words, state):
    check_updates(the_page._restore(search.replace("explore", "methods")))
    check_updates(the_page._show_method(event))
    check_updates(the_page._fill_run_form(event))
    check_updates(the_page.run._pick(event, None, None, *chosen, words, state, 12))


@many(200)
@given(values=st.tuples(*[ANYTHING] * 7))
def test_what_explore_shows_is_settled_whatever_its_controls_hold(values):
    explored, fitted = explore_tab.read_explored(*values), explore_tab.read_fitted(*values[:6])
    explored = explore_tab.settle(BOARD, explored)
    orjson.dumps([explored.model_dump(), fitted.model_dump(), address(PageView(explored=explored, fitted=fitted))])
    for part in (run_inside.layers(explored, "a run"), run_inside.weights(explored), run_inside.comparison(explored)):
        assert part.startswith("<") or not part


@many(100)
@given(values=st.lists(ANYTHING, min_size=11, max_size=11), token=WORDS)
def test_a_form_is_a_run_or_a_sentence_whatever_its_fields_hold(the_page, values, token):
    form = the_page.run.form
    check_model(form.read, *values, *[None] * len(form.options))
    check_answer(Lab(hosted=True, owner_token="secret").check_may_start, token)


@many(150)
@given(values=st.tuples(*[LISTS | ANYTHING] * 5), limit=ANYTHING, window=ANYTHING, hosted=st.booleans())
def test_any_sweep_is_taken_or_refused(values, limit, window, hosted):
    check_model(requests.sweep, *values, limit=limit, window=window, hosted=hosted)


@many(60)
@given(values=st.lists(ANYTHING, min_size=14, max_size=14), lists=st.tuples(*[LISTS | ANYTHING] * 4))
def test_the_form_says_of_any_sweep_what_it_makes_or_what_is_missing(the_page, values, lists):
    words, button = the_page.run.form._preview(SWEEP, *values, *lists)
    orjson.dumps([words, button["value"]])


@pytest.mark.parametrize("forged", [None, [], ["a"], ["../..", "a", "b"], [1, 2, 3], ["\ud800", "", ""], "abc"])
def test_a_forged_request_for_a_picture_is_a_sentence(forged):
    answer = run_inside.item_picture(forged)
    assert answer["address"] == ""
    assert answer["text"].endswith(".")
