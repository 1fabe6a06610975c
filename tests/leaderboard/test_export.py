import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from leaderboard import export
from leaderboard.analysis import Query, arrange, view
from leaderboard.store import read_notes, read_paper


@pytest.fixture(scope="module", params=["absolute", "difference", "retained"])
def seen(request):
    return view(arrange(read_paper()), Query(model="LLaMA3-8B", mode=request.param, sort="wikitext2"))


def same(frame, seen):
    """Whether a frame that was read back holds the view's numbers in the view's order."""
    assert frame["method"].tolist() == seen.rows["method"].tolist()
    for index, column in enumerate(seen.columns):
        np.testing.assert_allclose(frame[column.task].astype(float), seen.values[:, index])


def test_csv_parses_back(seen):
    same(pd.read_csv(io.BytesIO(export.csv(seen))), seen)


def test_parquet_parses_back(seen):
    same(pd.read_parquet(io.BytesIO(export.parquet(seen))), seen)


def test_json_parses_back_with_status_and_table(seen):
    body = json.loads(export.as_json(seen))
    values = [
        {"method": row["method"]} | {c.task: row["results"].get(c.task, {}).get("value") for c in seen.columns}
        for row in body["rows"]
    ]
    same(pd.DataFrame(values), seen)
    assert Query(**body["query"]) == seen.query
    assert body["rows"][0]["results"]["wikitext2"]["table"] == "1"


def test_markdown_holds_what_the_table_writes(seen):
    head, rule, *lines = export.markdown(seen).decode().splitlines()
    assert len(lines) == len(seen.rows)
    assert head.count("|") == rule.count("|") == lines[0].count("|")
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[3:] == [seen.text(3, index) for index in range(len(seen.columns))]


def test_latex_has_as_many_cells_in_every_line_and_no_bare_specials(seen):
    lines = export.latex(seen).decode().splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == len(seen.rows)
    assert {line.count("&") for line in body} == {len(seen.columns)}
    assert not any(re.search(r"(?<!\\)%|−|×|·|↓", line) for line in body)
    if seen.query.mode == "absolute":
        assert r"$2.7\times 10^{6}$" in "".join(body)


def test_the_citation_names_the_study():
    text = export.bibtex().decode()
    assert "doi = {10.1007/s44267-024-00070-x}" in text
    assert "Huang, Wei and Zheng, Xingyu" in text
    assert text.count("@") == 2
    assert text.count("{") == text.count("}")


def test_the_options_that_set_rows_apart_are_in_every_format(seen):
    rows = seen.rows.assign(options=["act_order", *seen.rows["options"].iloc[1:]])
    marked = replace(seen, rows=rows)
    assert export.frame(marked)["options"].tolist()[:2] == ["act_order", ""]
    assert json.loads(export.as_json(marked))["rows"][0]["options"] == "act_order"
    assert "(act_order) |" in export.markdown(marked).decode()
    assert r"(act\_order) &" in export.latex(marked).decode()


ODD = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "a|b\\",
    "a\nb",
    "[x] {y} & 100% ~^",
    "\"quoted\", 'so'",
    "<b>*_`",
    "ä€",
]


@pytest.fixture
def odd():
    """A view with odd text in its names, and numbers that are none or infinite."""
    seen = view(arrange(read_paper()), Query(model="LLaMA3-8B"))
    values = seen.values.copy()
    values[: len(ODD), 0], values[0, 1] = np.inf, -np.inf
    names = [*ODD, *seen.rows["model"].iloc[len(ODD) :]]
    rows = seen.rows.assign(model=names, method=names[::-1], options=names)
    return replace(seen, rows=rows, values=values)


def test_a_text_that_a_spreadsheet_would_run_is_quoted_in_csv(odd):
    rows = list(csv.DictReader(io.StringIO(export.csv(odd).decode(), newline="")))
    formulas = ("=", "+", "-", "@", "\t", "\n")
    for name, row in zip(ODD, rows, strict=False):
        text = name.replace("\r", "\n")
        assert row["model"] == row["options"] == (f"'{text}" if text.startswith(formulas) else text)
    texts = [text for row in rows for name in ("model", "method", "options", "source") if (text := row[name])]
    assert not any(text.startswith(formulas) for text in texts)
    assert rows[0]["wikitext2"] == "inf"


def test_json_and_parquet_hold_odd_text_and_infinite_numbers(odd):
    body = json.loads(export.as_json(odd), parse_constant=pytest.fail)
    assert [row["model"] for row in body["rows"]][: len(ODD)] == ODD
    assert body["rows"][0]["results"]["wikitext2"]["value"] is None
    table = pd.read_parquet(io.BytesIO(export.parquet(odd)))
    assert table["model"].tolist()[: len(ODD)] == ODD
    assert np.isinf(table["wikitext2"].iloc[0])


def test_odd_text_breaks_no_line_and_no_cell_of_markdown_and_latex(odd):
    lines = export.markdown(odd).decode().splitlines()
    assert len(lines) == 2 + len(odd.rows)
    cells = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}
    assert cells == {lines[0].count("|")}
    text = export.latex(odd).decode()
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().split("\n")
    assert len(body) == len(odd.rows)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(odd.columns) + 1}
    assert not any(line.startswith("[") for line in body)
    assert not re.search(r"(?<!\\)[%#_]", "".join(body))
    assert r"$\infty$" in text


def test_every_format_is_written_for_an_empty_view_too():
    empty = view(arrange(read_paper()), Query(model="LLaMA3-8B", search="nothing"))
    for name, write in export.FORMATS.items():
        assert isinstance(write(empty), bytes), name


def test_notes_go_with_the_numbers_that_are_shown():
    seen = view(arrange(read_paper()), Query(model="LLaMA3-8B", methods=("QuIP",)))
    notes = export.with_notes(seen, read_notes())
    assert any(note.startswith("LLaMA3-8B, QuIP W4A16, PTB: C4 (11.1)") for note in notes)
