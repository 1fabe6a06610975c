import pytest

from leaderboard.analysis import Query, arrange
from leaderboard.store import read_paper
from leaderboard.view import Asked, Explored, Fitted, PageView, address, find_row, read_address, row_key

GPTQ = "LLaMA3-8B~llm_ptq~GPTQ~4~16~128"
FULL = PageView(
    tab="explore",
    query=Query(
        model=None,
        track="mllm_ptq",
        methods=("SliM-LLM", "GPTQ"),
        bits=(4.0, 1.7),
        groups=(128, 0),
        sources=("paper",),
        a_bits=(16.0,),
        statuses=("collapsed",),
        stored=(2.5, None),
        size=(None, 8.0),
        columns=("Perplexity", "Cost"),
        search='bits:<=3 "per row" & ä=1',
        sort="wikitext2",
        reverse=True,
        mode="retained",
    ),
    pins=(GPTQ, "run~0123456789abcdef"),
    row=GPTQ,
    explored=Explored(
        model="LLaVA-Next-8B", quality="ai2d", within=1.5, run="0123456789abcdef", linear="3.mlp.up_proj"
    ),
    fitted=Fitted(model="LLaMA3-70B", card=None, memory=36.0, context=8192, batch=4, pictures=2),
    asked=Asked(model="demo", settings="gptq-3-g64,smoothquant-8-a8", question="What & where?", example=2, tokens=32),
)


@pytest.mark.parametrize("view", [PageView(), FULL, PageView(tab="methods"), PageView(query=Query(model=None))])
def test_a_view_comes_back_from_its_address(view):
    assert read_address("?" + address(view)) == view


def test_the_first_view_has_no_address():
    assert address(PageView()) == ""
    assert read_address("") == read_address("?") == PageView()


@pytest.mark.parametrize(
    "search",
    [
        "?tab=nothing&bits=4",
        "?show=upside-down&bits=4,many",
        "?fit.batch=-3&bits=4&fit.memory=lots",
        "?x.within=1e9&bits=4&x.unknown=1",
        "?ask.example=first&bits=4&ask.tokens=0&ask.question=",
        "?__theme=dark&bits=4&stored=a..b&size=..nan",
    ],
)
def test_what_is_said_wrongly_is_left_out_and_the_rest_holds(search):
    assert read_address(search) == PageView(query=Query(model="LLaMA3-8B", bits=(4.0,)))


def test_no_more_than_four_rows_are_pinned_and_none_twice():
    keys = [f"run~{number:016x}" for number in (1, 1, 2, 3, 4, 5)]
    assert len(read_address("?" + "&".join(f"pin={key}" for key in keys)).pins) == 4


def test_every_row_is_found_by_its_key():
    board = arrange(read_paper())
    keys = [row_key(row) for row in board.rows.to_dict("records")]
    assert len(set(keys)) == len(keys)
    assert [find_row(board, key) for key in keys] == list(range(len(keys)))


@pytest.mark.parametrize("key", ["", "run~ffff", "~~~~~", "a~b~c~4~16~128", "LLaMA3-8B~llm_ptq~GPTQ~many~16~128"])
def test_a_key_of_no_row_finds_none(key):
    assert find_row(arrange(read_paper()), key) is None
