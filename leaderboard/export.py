"""The view as a file: CSV, JSON, Parquet, Markdown, LaTeX (booktabs), and how to cite it (BibTeX).

Data formats hold the numbers of the view in its mode, unrounded, and how each is to be read; Markdown and LaTeX hold
what the table writes. Where there is no number, CSV has an empty cell, JSON null and Parquet NaN; an infinite one is
inf in CSV and Parquet, null in JSON, which has no word for it, and ∞ in the others. In CSV a text that a spreadsheet
would run as a formula has an apostrophe before it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import groupby
from typing import Literal

import numpy as np
import pandas as pd

from leaderboard import votes
from leaderboard.analysis import Cell, View
from leaderboard.store import Notes, note_on
from quant_engine import notation
from quant_engine.folders import PROJECT
from quant_engine.spec import clean_text

FIELDS = [
    "model", "track", "method", "w_bits", "a_bits", "group_size", "options", "source", "run_id", "stored_bits",
    "size_gb",
]  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
_SPACES = str.maketrans(dict.fromkeys("\r\n\t\v\f\x85\u2028\u2029", " "))
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\|`*<["}) | _SPACES
_LATEX = _SPACES | str.maketrans(
    {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
     "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
     "−": r"$-$", "·": "--", "∞": r"$\infty$", "[": "{[}"}
)  # fmt: skip
_BIBTEX = {code: text for code, text in _LATEX.items() if chr(code) not in "{}["}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_MODES = {"absolute": "values", "difference": "differences to FP16", "retained": "percent of FP16 retained"}


def frame(view: View) -> pd.DataFrame:
    """A line per row: what names the setting, then each task's number in the view's mode (NaN: none), a rate of blind
    votes with how many there are."""
    table = view.rows[FIELDS].copy()
    table["run_id"] = table["run_id"].astype(object).where(table["run_id"].notna(), None)
    for index, column in enumerate(view.columns):
        table[column.task] = view.values[:, index]
        if column.task == votes.TASK:
            count = view.results["items"].to_numpy()[view.origin[:, index]]
            table[f"{column.task}_votes"] = np.where(np.isnan(view.values[:, index]), np.nan, count)
    return table


def csv(view: View) -> bytes:
    table = frame(view)
    table.columns = [no_formula(name) for name in table]
    for name in table.columns[: len(FIELDS)]:
        table[name] = table[name].map(no_formula)
    return table.to_csv(index=False).encode()


def parquet(view: View) -> bytes:
    buffer = io.BytesIO()
    frame(view).to_parquet(buffer, index=False)
    return buffer.getvalue()


def as_json(view: View) -> bytes:
    return json.dumps(document(view), ensure_ascii=False, indent=1, allow_nan=False).encode()


def document(view: View) -> dict:
    """The query, the columns, and the rows with value, status and source of every number, as a JSON value."""
    fields = ("task", "title", "group", "better", "help")
    columns = [{field: getattr(column, field) for field in fields} for column in view.columns]
    rows = []
    for row, setting in enumerate(frame(view)[FIELDS].to_dict("records")):
        cells = {
            column.task: _cell(view, row, index)
            for index, column in enumerate(view.columns)
            if view.cells[row, index] != Cell.MISSING
        }
        rows.append({name: _plain(value) for name, value in setting.items()} | {"results": cells})
    return {"numbers": _MODES[view.query.mode], "query": view.query.model_dump(), "columns": columns, "rows": rows}


def markdown(view: View) -> bytes:
    """The table as it is written, one line per setting."""
    head = ["Model", "Setting", "Source", *(f"{column.title} {column.arrow}" for column in view.columns)]
    lines = [_bar(head), _bar(["---"] * 3 + ["---:"] * len(view.columns))]
    for names, texts in zip(_names(view), _texts(view), strict=True):
        lines.append(_bar([*names, *texts]))
    return ("\n".join(lines) + "\n").encode()


def latex(view: View) -> bytes:
    """The table for a paper that loads booktabs."""
    with_model = view.rows["model"].nunique() > 1
    fixed = 2 if with_model else 1
    top, rules, first = [" & " * (fixed - 1)], [], fixed + 1
    for group, columns in groupby(view.columns, key=lambda column: column.group):
        last = first + len(list(columns)) - 1
        top.append(rf"\multicolumn{{{last - first + 1}}}{{c}}{{{group.translate(_LATEX)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{last}}}")
        first = last + 1
    head = [*(["Model"] if with_model else []), "Setting"]
    head += [f"{column.title} {column.arrow}".translate(_LATEX) for column in view.columns]
    body = []
    for (model, setting, source), texts in zip(_names(view), _texts(view), strict=True):
        name = setting if source == "paper" else f"{setting} ({source})"
        cells = [cell.translate(_LATEX) for cell in ([model, name] if with_model else [name])]
        body.append([*cells, *map(_latex_number, texts)])
    lines = [
        f"% Low-Bit Lab: {_MODES[view.query.mode]}. Needs \\usepackage{{booktabs}}.",
        rf"\begin{{tabular}}{{{'l' * fixed}{'r' * len(view.columns)}}}",
        r"\toprule",
        " & ".join(top) + r" \\",
        "".join(rules),
        " & ".join(head) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for cells in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return ("\n".join(line for line in lines if line) + "\n").encode()


def bibtex(view: View | None = None) -> bytes:
    """The study and this software, from CITATION.cff."""
    import yaml

    cited = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    entries = [_entry("software", "lowbitlab", cited)]
    references = enumerate(cited.get("references", []))
    entries += [_entry("article", f"study{number or ''}", reference) for number, reference in references]
    return "\n".join(entries).encode()


Format = Literal["csv", "json", "parquet", "md", "tex", "bib"]
FORMATS: dict[Format, Callable[[View], bytes]] = {
    "csv": csv,
    "json": as_json,
    "parquet": parquet,
    "md": markdown,
    "tex": latex,
    "bib": bibtex,
}


def records(table: pd.DataFrame) -> list[dict]:
    """A small table's lines as JSON values."""
    return [{name: _plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def with_notes(view: View, notes: Notes) -> list[str]:
    """The known oddities of the printed numbers that the view shows, each with the cell that it is about."""
    sentences = []
    for row, cells in zip(view.rows.to_dict("records"), view.cells, strict=True):
        for column, cell in zip(view.columns, cells, strict=True):
            text = note_on(row, column.task, notes)
            if text and cell != Cell.MISSING:
                setting = notation.setting(row["method"], row["w_bits"], row["a_bits"], row["group_size"])
                sentences.append(f"{row['model']}, {setting}, {column.title}: {text}")
    return sentences


def _names(view: View) -> list[tuple[str, str, str]]:
    """Model, setting and source of every row."""
    fields = view.rows[["model", "source", "options", "method", "w_bits", "a_bits", "group_size"]]
    return [
        (model, f"{notation.setting(*setting)}{f' ({options})' if options else ''}", source)
        for model, source, options, *setting in fields.itertuples(index=False)
    ]


def _texts(view: View) -> list[list[str]]:
    """Every cell as the table writes it."""
    return [[view.text(row, column) for column in range(len(view.columns))] for row in range(len(view.rows))]


def _cell(view: View, row: int, column: int) -> dict:
    cell, origin = Cell(view.cells[row, column]), view.origin[row, column]
    fields = {"value": _plain(view.values[row, column]), "status": cell.name.lower()}
    if origin >= 0:
        result = view.results.iloc[origin]
        fields |= {name: _plain(result[name]) for name in ("table", "run_id", "standard_error", "items")}
    return {name: value for name, value in fields.items() if value is not None or name == "value"}


def _plain(value: object) -> object:
    """A value as JSON knows it: numpy's numbers as Python's, NaN and infinity as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return None if value is pd.NA else value


def no_formula(value: object) -> object:
    """A text that no spreadsheet takes for a formula, with line ends that CSV quotes; other values as they are."""
    if not isinstance(value, str):
        return value
    text = clean_text(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _bar(cells: list[str]) -> str:
    return "| " + " | ".join(cell.translate(_MARKDOWN) for cell in cells) + " |"


def _latex_number(text: str) -> str:
    mantissa, times, power = text.partition("×10")
    if not times:
        return text.translate(_LATEX)
    return rf"${mantissa.replace('−', '-')}\times 10^{{{power.translate(_RAISED)}}}$"


def _entry(kind: str, key: str, cited: dict) -> str:
    people = " and ".join(
        f"{{{author['name']}}}" if "name" in author else f"{author['family-names']}, {author['given-names']}"
        for author in cited["authors"]
    )
    fields = {
        "title": f"{{{cited['title'].translate(_LATEX)}}}",
        "author": people.translate(_BIBTEX),
        "year": cited.get("year") or str(cited.get("date-released", ""))[:4],
        "journal": cited.get("journal", "").translate(_LATEX),
        "version": cited.get("version"),
        "doi": cited.get("doi"),
        "url": cited.get("url") or cited.get("repository-code"),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}", ""])
