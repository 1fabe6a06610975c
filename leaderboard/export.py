"""The view as a file: CSV, JSON, Parquet, Markdown, LaTeX (booktabs), and how to cite it (BibTeX).

Data formats hold the numbers of the view in its mode, unrounded, and how each is to be read; Markdown and LaTeX hold
what the table writes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import groupby

import numpy as np
import pandas as pd

from leaderboard.analysis import Cell, View
from leaderboard.store import Notes, note_on
from quant_engine import notation
from quant_engine.folders import PROJECT

FIELDS = [
    "model", "track", "method", "w_bits", "a_bits", "group_size", "options", "source", "run_id", "stored_bits",
    "size_gb",
]  # fmt: skip
_LATEX = str.maketrans(
    {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
     "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
     "−": r"$-$", "·": "--", "∞": r"$\infty$"}
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_MODES = {"absolute": "values", "difference": "differences to FP16", "retained": "percent of FP16 retained"}


def frame(view: View) -> pd.DataFrame:
    """A line per row: what names the setting, then each task's number in the view's mode (NaN: none)."""
    told = view.rows.rename(columns={"chosen": "options"})[FIELDS].copy()
    told["run_id"] = told["run_id"].astype(object).where(told["run_id"].notna(), None)
    for place, column in enumerate(view.columns):
        told[column.task] = view.values[:, place]
    return told


def csv(view: View) -> bytes:
    return frame(view).to_csv(index=False).encode()


def parquet(view: View) -> bytes:
    buffer = io.BytesIO()
    frame(view).to_parquet(buffer, index=False)
    return buffer.getvalue()


def as_json(view: View) -> bytes:
    """The query, the columns, and the rows with value, status and source of every number."""
    return json.dumps(document(view), ensure_ascii=False, indent=1, allow_nan=False).encode()


def document(view: View) -> dict:
    """What `as_json` writes, as a JSON value."""
    columns = [
        {"task": one.task, "title": one.title, "group": one.group, "better": one.better, "help": one.help}
        for one in view.columns
    ]
    rows = []
    for place, row in enumerate(frame(view)[FIELDS].to_dict("records")):
        cells = {
            column.task: _cell(view, place, at)
            for at, column in enumerate(view.columns)
            if view.cells[place, at] != Cell.MISSING
        }
        rows.append({name: _plain(value) for name, value in row.items()} | {"results": cells})
    return {"numbers": _MODES[view.query.mode], "query": view.query.model_dump(), "columns": columns, "rows": rows}


def markdown(view: View) -> bytes:
    """The table as it is written, one line per setting."""
    head = ["Model", "Setting", "Source", *(f"{column.title} {column.arrow}" for column in view.columns)]
    lines = [_bar(head), _bar(["---"] * 3 + ["---:"] * len(view.columns))]
    for place, named in enumerate(_named(view)):
        lines.append(_bar([*named, *(view.text(place, at) for at in range(len(view.columns)))]))
    return ("\n".join(lines) + "\n").encode()


def latex(view: View) -> bytes:
    """The table for a paper that loads booktabs."""
    several = view.rows["model"].nunique() > 1
    fixed = 2 if several else 1
    groups = [(group, len(list(members))) for group, members in groupby(view.columns, key=lambda one: one.group)]
    top, rules, at = [" & " * (fixed - 1)], [], fixed + 1
    for group, count in groups:
        top.append(rf"\multicolumn{{{count}}}{{c}}{{{group.translate(_LATEX)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + count - 1}}}")
        at += count
    head = [*(["Model"] if several else []), "Setting"]
    head += [f"{column.title} {column.arrow}".translate(_LATEX) for column in view.columns]
    body = []
    for place, (model, setting, source) in enumerate(_named(view)):
        name = setting if source == "paper" else f"{setting} (measured)"
        cells = [*([model] if several else []), name]
        cells = [cell.translate(_LATEX) for cell in cells]
        body.append([*cells, *(_latex_number(view.text(place, at)) for at in range(len(view.columns)))])
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
    entries += [
        _entry("article", f"study{number or ''}", one) for number, one in enumerate(cited.get("references", []))
    ]
    return "\n".join(entries).encode()


FORMATS: dict[str, Callable[[View], bytes]] = {
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
    told = []
    for place, row in enumerate(view.rows.to_dict("records")):
        for at, column in enumerate(view.columns):
            text = note_on(row, column.task, notes)
            if text and view.cells[place, at] != Cell.MISSING:
                setting = notation.setting(row["method"], row["w_bits"], row["a_bits"], row["group_size"])
                told.append(f"{row['model']}, {setting}, {column.title}: {text}")
    return told


def _named(view: View) -> list[tuple[str, str, str]]:
    """Model, setting and source of every row."""
    fields = view.rows[["model", "source", "chosen", "method", "w_bits", "a_bits", "group_size"]]
    return [
        (model, f"{notation.setting(*one)}{f' ({chosen})' if chosen else ''}", source)
        for model, source, chosen, *one in fields.itertuples(index=False)
    ]


def _cell(view: View, row: int, column: int) -> dict:
    cell, origin = Cell(view.cells[row, column]), view.origin[row, column]
    told = {"value": _plain(view.values[row, column]), "status": cell.name.lower()}
    if origin >= 0:
        result = view.results.iloc[origin]
        told |= {name: _plain(result[name]) for name in ("table", "run_id", "standard_error", "items")}
    return {name: value for name, value in told.items() if value is not None or name == "value"}


def _plain(value: object) -> object:
    """A value as JSON knows it: numpy's numbers as Python's, NaN and infinity as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return None if value is pd.NA else value


def _bar(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


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
        "title": f"{{{cited['title']}}}",
        "author": people,
        "year": cited.get("year") or str(cited.get("date-released", ""))[:4],
        "journal": cited.get("journal"),
        "version": cited.get("version"),
        "doi": cited.get("doi"),
        "url": cited.get("url") or cited.get("repository-code"),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}", ""])
