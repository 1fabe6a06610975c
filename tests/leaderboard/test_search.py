import pytest

from leaderboard.analysis import Query, arrange, view
from leaderboard.search import Term, terms
from leaderboard.store import read_paper


@pytest.fixture(scope="module")
def board():
    return arrange(read_paper())


def found(board, search):
    return view(board, Query(model="LLaMA3-8B", search=search)).rows


def test_terms_are_words_fields_and_quoted_values():
    assert terms('GPTQ bits:<=3 calibration:"my text.txt" "per row"') == [
        Term("", "gptq"),
        Term("bits", "<=3"),
        Term("calibration", "my text.txt"),
        Term("", "per row"),
    ]


@pytest.mark.parametrize(
    ("search", "check"),
    [
        ("method:gptq", lambda rows: set(rows.method) == {"GPTQ"}),
        ("method:gptq,awq", lambda rows: set(rows.method) == {"GPTQ", "AWQ"}),
        ("bits:2", lambda rows: set(rows.w_bits) == {2}),
        ("bits:<=3", lambda rows: rows.w_bits.max() <= 3),
        ("bits:3-4", lambda rows: set(rows.w_bits) == {3, 4}),
        ("abits:<16", lambda rows: set(rows.a_bits) == {4, 6, 8}),
        ("group:row method:rtn", lambda rows: len(rows) == 4 and rows.group_size.isna().all()),
        ("g:128,row", lambda rows: len(rows) == 41),
        ("g:128 awq", lambda rows: set(rows.group_size) == {128}),
        ("stored:<3", lambda rows: rows.stored_bits.max() < 3),
        ("size:<5", lambda rows: rows.size_gb.max() < 5),
        ("wikitext2:<7", lambda rows: "GPTQ" in set(rows.method)),
        ("source:measured", lambda rows: rows.empty),
        ("bits:many", lambda rows: rows.empty),
        ("colour:red", lambda rows: rows.empty),
    ],
)  # fmt: skip
def test_a_field_finds_what_it_says(board, search, check):
    assert check(found(board, search))


def test_a_task_compares_its_values_by_id_or_by_title(board):
    by_id, by_title = found(board, "arc_easy:>70"), found(board, "arc-e:>70")
    assert len(by_id) == len(by_title) > 0
    assert len(found(board, "arc_easy:<=70")) + len(by_id) <= 41


def test_status_finds_rows_with_such_a_cell(board):
    pictures = Query(model="LLaVA-Next-8B", track="mllm_ptq")
    collapsed = view(board, pictures.model_copy(update={"search": "status:collapsed"})).rows
    whole = view(board, pictures.model_copy(update={"statuses": ("ok",)})).rows
    assert set(collapsed.w_bits) == {2}
    assert len(collapsed) + len(whole) == 13
