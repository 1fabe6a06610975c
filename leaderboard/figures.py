"""The charts of the Explore tab as plain Plotly figures: data and layout as dictionaries, drawn by the browser.

Plotly's Python side is not needed for that, which keeps the page's process small. Colours that depend on the theme are
named as the stylesheet names them ("var(--loss)"); the page puts in the theme's own. Every figure says its finding in a
sentence and has the table that it was drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from leaderboard import notation
from leaderboard.analysis import Board, Cell
from leaderboard.columns import Column
from leaderboard.store import PAPER_METHODS
from quant_engine.spec import LayerRecord, UserError

MOST_POINTS = 1_500
MOST_SETTINGS = 18
CLIFF = {"points": 10.0, "%": 100.0}
"""A step to fewer bits that loses this much more, in the units of `losses`, is a cliff."""
DRAWS = 2_000
PAIRS = {"LLaMA3-8B": "LLaVA-Next-8B", "SmolLM2-135M": "Demo LLaVA-NeXT"}
"""Language models with the multimodal model that is built on them."""
_COLORS = (
    "#2f78c4", "#d9730d", "#2a9160", "#c8453b", "#8a5cc9", "#96703a", "#c4588f", "#1f8fa3", "#7d8a1f", "#7d7a74",
)  # fmt: skip
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "hexagon", "star", "x", "cross")
_SHADE = [[0, "var(--loss)"], [0.5, "var(--sheet)"], [1, "var(--gain)"]]
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Figure:
    """A chart: `data` and `layout` as Plotly takes them, its finding, and the `table` that it shows."""

    key: str
    title: str
    finding: str
    data: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    table: pd.DataFrame = field(default_factory=pd.DataFrame)


def points(board: Board, model: str, task: str) -> pd.DataFrame:
    """One line per row of a model that has a number for a task: its setting, `stored_bits`, `size_gb`, `value`, FP16's
    `reference`, `loss` (see `losses`), `error` (standard error) and the `label`. Raises UserError if there is none."""
    column = column_of_task(board, task)
    place = board.columns.index(column)
    mask = (board.rows["model"] == model).to_numpy() & ~np.isnan(board.values[:, place])
    once = ["method", "w_bits", "a_bits", "group_size", "source", "run_id"]  # FP16 stands in several tracks
    places = board.rows[mask].drop_duplicates(once).head(MOST_POINTS).index
    if places.empty:
        raise UserError(f"{model} has no number for {column.title}.")
    rows = board.rows.loc[places].reset_index(drop=True)
    rows["value"], rows["reference"] = board.values[places, place], board.reference[places, place]
    origin = board.origin[places, place]
    errors = board.results["standard_error"].to_numpy(dtype=float)
    rows["error"] = np.where(origin >= 0, errors[np.maximum(origin, 0)], np.nan)
    rows["loss"] = losses(column, rows["value"].to_numpy(), rows["reference"].to_numpy())
    rows["collapsed"] = board.cells[places, place] == Cell.COLLAPSED
    rows["label"] = [
        notation.setting(*one) + (" (measured)" if source == "measured" else "")
        for *one, source in rows[["method", "w_bits", "a_bits", "group_size", "source"]].itertuples(index=False)
    ]
    return rows


def losses(column: Column, values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """What is lost against FP16: points of a percentage; percent of FP16's number for perplexities and MME's scores."""
    if _in_points(column):
        return reference - values
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 100 * (values / reference - 1)
    return share if column.better == "lower" else -share


def loss_unit(column: Column) -> str:
    """The unit of `losses`, as it is written behind a number."""
    return "points" if _in_points(column) else "%"


def cheapest(found: pd.DataFrame, within: float) -> pd.Series | None:
    """The setting with the fewest stored bits that loses at most `within`; the best of those that tie. None if none."""
    good = found[(found["loss"] <= within) & (found["w_bits"] < 16) & found["stored_bits"].notna()]
    return None if good.empty else good.sort_values(["stored_bits", "loss"], kind="stable").iloc[0]


def best_of_width(found: pd.DataFrame) -> pd.DataFrame:
    """For each method and width, the row that loses least, methods in the study's order, wide to narrow."""
    ordered = found.assign(rank=found["method"].map(_method_order), lossless=found["loss"].fillna(np.inf))
    kept = ordered.sort_values(["rank", "method", "w_bits", "lossless"], ascending=[True, True, False, True])
    return kept.drop_duplicates(["method", "w_bits", "a_bits"]).drop(columns=["rank", "lossless"])


def cliffs(found: pd.DataFrame, least: float) -> pd.DataFrame:
    """For each method, the step to fewer bits that loses most, if it loses `least` or more."""
    steps = []
    for method, line in best_of_width(found[found["a_bits"] == 16]).groupby("method", sort=False):
        loss, bits = line["loss"].to_numpy(), line["w_bits"].to_numpy()
        if len(loss) < 2 or np.isnan(loss).all():
            continue
        extra = np.diff(loss)
        at = int(np.nanargmax(extra)) if not np.isnan(extra).all() else 0
        if extra[at] >= least:
            steps.append((method, bits[at], bits[at + 1], extra[at]))
    return pd.DataFrame(steps, columns=["method", "above", "below", "lost"])


def pareto(sizes: np.ndarray, values: np.ndarray, *, higher_is_better: bool) -> np.ndarray:
    """For each point, whether none that is as small is better, and none as good is smaller."""
    quality = values if higher_is_better else -values
    front = np.zeros(len(sizes), dtype=bool)
    best = -np.inf
    for place in np.lexsort((-quality, sizes)):
        if np.isfinite(quality[place]) and quality[place] > best:
            front[place], best = True, quality[place]
    return front


def pareto_chance(found: pd.DataFrame, *, higher_is_better: bool, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """For each point, how often it is on the front when all values are drawn anew from their standard errors (a
    parametric bootstrap); NaN for points without one, which stay where they are."""
    values, errors = found["value"].to_numpy(), found["error"].to_numpy()
    if np.isnan(errors).all():
        return np.full(len(found), np.nan)
    generator = np.random.default_rng(seed)
    sizes, spread = found["size_gb"].to_numpy(), np.nan_to_num(errors)
    hits = np.zeros(len(found))
    for _ in range(draws):
        drawn = values + spread * generator.standard_normal(len(values))
        hits += pareto(sizes, drawn, higher_is_better=higher_is_better)
    return np.where(np.isnan(errors), np.nan, hits / draws)


def bits_and_quality(board: Board, model: str, task: str, within: float) -> Figure:
    """Weight bits against quality, a line per method through its best setting of each width, the cliff dashed."""
    column, found = column_of_task(board, task), points(board, model, task)
    data = []
    for method, line in best_of_width(found[found["a_bits"] == 16]).groupby("method", sort=False):
        if method == "FP16":
            continue
        data.append(_line(method, line["w_bits"], line["value"], line["label"], _hover(column)))
    others = found[found["a_bits"] < 16]
    for method, rows in others.groupby("method", sort=False):
        data.append(_dots(method, rows["w_bits"], rows["value"], rows["label"], _hover(column), opacity=0.55))
    said = []
    for method, above, below in cliffs(found, CLIFF[loss_unit(column)])[["method", "above", "below"]].to_numpy():
        line = best_of_width(found[(found["method"] == method) & (found["a_bits"] == 16)])
        ends = line[line["w_bits"].isin([above, below])]
        data.append(
            _line(method, ends["w_bits"], ends["value"], ends["label"], _hover(column))
            | {"line": {"dash": "dot", "width": 5, "color": "var(--loss)"}, "opacity": 0.5, "showlegend": False,
               "mode": "lines", "hoverinfo": "skip"}
        )  # fmt: skip
        said.append(f"{method} {above:g}→{below:g} bits")
    reference = found.loc[found["w_bits"] == 16, "value"]
    shapes = [_level(float(reference.iloc[0]))] if len(reference) else []
    chosen = cheapest(found, within)
    unit = loss_unit(column)
    if found["loss"].isna().all():
        finding = f"There is no FP16 of {model} under the same conditions to compare with."
    elif chosen is None:
        finding = f"No setting is within {_amount(within, unit)} of FP16."
    else:
        data.append(
            _star(chosen["w_bits"], chosen["value"], f"Cheapest within {_amount(within, unit)}: {chosen['label']}")
        )
        finding = (
            f"Cheapest within {_amount(within, unit)} of FP16: {chosen['label']}, "
            f"{chosen['stored_bits']:.2f} bits stored, {_lost(chosen['loss'], unit)}."
        )
    if said:
        finding += f" Cliffs (dashed): {', '.join(said)}."
    layout = {
        "xaxis": _axis("weight bits (nominal)") | {"autorange": "reversed", "dtick": 1},
        "yaxis": _quality_axis(column, found["value"]),
        "shapes": shapes,
    }
    return Figure("bits", "Bits against quality", finding, data, layout, _told(found, column))


def size_and_quality(board: Board, model: str, task: str) -> Figure:
    """Size of all weights against quality, with the Pareto front."""
    column = column_of_task(board, task)
    found = points(board, model, task).dropna(subset="size_gb").reset_index(drop=True)
    if found.empty:
        raise UserError(f"The size of {model} is not known.")
    higher = column.better == "higher"
    front = pareto(found["size_gb"].to_numpy(), found["value"].to_numpy(), higher_is_better=higher)
    chance = pareto_chance(found, higher_is_better=higher)
    labels = [
        label + ("" if np.isnan(share) else f"<br>on the front in {100 * share:.0f}% of resamples")
        for label, share in zip(found["label"], chance, strict=True)
    ]
    hover = "%{text}<br>%{x:.2f} GB<br>" + _value_hover(column, "y") + "<extra></extra>"
    data = []
    on_front = found[front].sort_values("size_gb")
    data.append(
        {"type": "scatter", "mode": "lines", "x": _numbers(on_front["size_gb"]), "y": _numbers(on_front["value"]),
         "line": {"color": "var(--ink)", "width": 1.5, "shape": "hv"}, "name": "Pareto front", "hoverinfo": "skip"}
    )  # fmt: skip
    for method, rows in found.groupby("method", sort=False):
        marks = _dots(method, rows["size_gb"], rows["value"], [labels[at] for at in rows.index], hover)
        marks["marker"]["line"] = {
            "color": "var(--ink)",
            "width": [2.0 if front[at] else 0.0 for at in rows.index],
        }
        data.append(marks)
    smallest = on_front[on_front["w_bits"] < 16]
    names = ", ".join(smallest["label"].iloc[::-1].head(4))
    more = " and more" if len(smallest) > 4 else ""
    finding = f"{int(front.sum())} of {len(found)} settings are on the front: {names}{more}."
    table = _told(found, column)
    table.insert(2, "On the front", np.where(front, "yes", ""))
    if not np.isnan(chance).all():
        table.insert(3, "Chance to be on it", np.round(chance, 3))
    layout = {"xaxis": _axis("size of all weights, GB"), "yaxis": _quality_axis(column, found["value"])}
    return Figure("size", "Size against quality", finding, data, layout, table)


def methods_and_bits(board: Board, model: str, task: str) -> Figure:
    """Methods × widths, each the best group size, coloured by what is lost against FP16."""
    column, found = column_of_task(board, task), points(board, model, task)
    best = best_of_width(found[found["w_bits"] < 16])
    best = best.sort_values("loss").drop_duplicates(["method", "w_bits"])
    methods = sorted(best["method"].unique(), key=_method_order)
    widths = sorted(best["w_bits"].unique(), reverse=True)
    if not methods:
        raise UserError(f"{model} has no quantized setting with {column.title}.")
    at = best.set_index(["method", "w_bits"])
    color, text, hover = [], [], []
    for method in methods:
        row = [at.loc[(method, width)] if (method, width) in at.index else None for width in widths]
        color.append([None if one is None else _shade(one["loss"], column) for one in row])
        text.append(["" if one is None else written(one["value"], column) for one in row])
        hover.append(
            [
                "not reported" if one is None else f"{one['label']}<br>{_lost(one['loss'], loss_unit(column))}"
                for one in row
            ]
        )
    data = [
        {"type": "heatmap", "z": color, "x": [f"{width:g}" for width in widths], "y": methods, "text": text,
         "texttemplate": "%{text}", "customdata": hover, "hovertemplate": "%{customdata}<br>%{text}<extra></extra>",
         "zmin": -1, "zmax": 1, "colorscale": _SHADE, "showscale": False, "xgap": 2, "ygap": 2}
    ]  # fmt: skip
    most = CLIFF[loss_unit(column)]
    narrow = best[best["loss"] <= most]
    lowest = narrow.sort_values(["w_bits", "loss"]).head(1)
    finding = f"{column.title} {column.arrow}, the best group size of each. Orange is lost against FP16, blue gained."
    if len(lowest):
        one = lowest.iloc[0]
        finding += f" Fewest bits that lose less than {_amount(most, loss_unit(column))}: {one['label']}."
    layout = {
        "xaxis": _axis("weight bits (nominal)") | {"fixedrange": True, "type": "category", "tickangle": 0},
        "yaxis": {"autorange": "reversed", "fixedrange": True, "type": "category", "automargin": True},
        "height": 110 + 30 * len(methods),
    }
    return Figure("methods", "Methods × bits", finding, data, layout, _told(best, column))


def loss_by_task(board: Board, model: str, w_bits: float) -> Figure:
    """Percent of FP16 kept on each task, a row of dots per task, at one width."""
    rows, kept, columns = _kept(board, model)
    mask = (rows["w_bits"] == w_bits).to_numpy()
    rows, kept = rows[mask], kept[mask]
    filled = ~np.isnan(kept).all(axis=0)
    if not filled.any():
        raise UserError(f"{model} has no setting of {w_bits:g} bits that can be compared with FP16.")
    columns = [column for column, any_ in zip(columns, filled, strict=True) if any_]
    kept = kept[:, filled]
    titles = [f"{column.title} {column.arrow}" for column in columns]
    data, labels = [], []
    best: dict[str, int] = {}
    for place, score in enumerate(np.nanmean(np.where(np.isnan(kept), 0, kept), axis=1)):
        method = rows["method"].iloc[place]
        if method not in best or score > np.nanmean(np.where(np.isnan(kept[best[method]]), 0, kept[best[method]])):
            best[method] = place
    for method in sorted(best, key=_method_order):
        place = best[method]
        one = rows.iloc[place]
        label = notation.setting(one["method"], one["w_bits"], one["a_bits"], one["group_size"])
        labels.append(label)
        data.append(
            _dots(
                method, kept[place], titles, [label] * len(titles), "%{text}<br>%{y}: %{x:.1f}% of FP16<extra></extra>"
            )
        )
    mean = np.nanmean(kept[[best[method] for method in best]], axis=0)
    worst = int(np.argmin(mean))
    finding = (
        f"At {w_bits:g} bits {columns[worst].title} suffers most: methods keep {mean[worst]:.1f}% of FP16 on average. "
        "One dot a method, its best group size; for perplexity, FP16's over the setting's."
    )
    layout = {
        "xaxis": _axis("percent of FP16 kept") | {"ticksuffix": "%"},
        "yaxis": {"autorange": "reversed", "fixedrange": True, "type": "category", "automargin": True},
        "height": 130 + 26 * len(titles),
        "shapes": [_level(100.0, vertical=True)],
    }
    table = pd.DataFrame(kept[[best[m] for m in sorted(best, key=_method_order)]].round(2), columns=titles)
    table.insert(0, "Setting", labels)
    return Figure("tasks", "Loss by task", finding, data, layout, table)


def language_and_pictures(board: Board, model: str) -> Figure:
    """The same setting in a language model and in the multimodal model built on it: percent of FP16 kept by each."""
    pair = next(((llm, mllm) for llm, mllm in PAIRS.items() if model in (llm, mllm)), None)
    if pair is None:
        raise UserError(f"{model} has no counterpart to compare with; LLaMA3-8B and SmolLM2-135M have one.")
    sides = [_mean_kept(board, one, picture) for one, picture in zip(pair, (False, True), strict=True)]
    both = sides[0].merge(sides[1], on=["method", "w_bits", "a_bits", "group"], suffixes=("_language", "_pictures"))
    if both.empty:
        raise UserError(f"No setting was measured on both {pair[0]} and {pair[1]}.")
    both["label"] = [
        notation.setting(method, w, a, group or None)
        for method, w, a, group in both[["method", "w_bits", "a_bits", "group"]].itertuples(index=False)
    ]
    hover = "%{text}<br>" + pair[0] + ": %{x:.1f}% kept<br>" + pair[1] + ": %{y:.1f}% kept<extra></extra>"
    data = [
        _dots(method, rows["kept_language"], rows["kept_pictures"], rows["label"], hover)
        for method, rows in both.groupby("method", sort=False)
    ]
    gap = both["kept_language"] - both["kept_pictures"]
    worst = both.loc[gap.idxmax()]
    finding = (
        f"Below the line pictures lose more than language. The largest gap is {worst['label']}: "
        f"{worst['kept_language']:.0f}% of language kept, {worst['kept_pictures']:.0f}% of pictures. "
        "Means over all scores; a collapsed score counts as 0."
    )
    layout = {
        "xaxis": _axis(f"{pair[0]}: percent of FP16 kept") | {"ticksuffix": "%"},
        "yaxis": _axis(f"{pair[1]}: percent of FP16 kept") | {"ticksuffix": "%"},
        "shapes": [
            {"type": "line", "x0": 0, "y0": 0, "x1": 100, "y1": 100, "line": {"color": "var(--edge)", "width": 1}}
        ],
    }
    table = both[["label", "kept_language", "kept_pictures"]].round(2)
    table.columns = ["Setting", f"{pair[0]}, % kept", f"{pair[1]}, % kept"]
    return Figure("pair", "Language against pictures", finding, data, layout, table)


def honest_bits(board: Board, model: str) -> Figure:
    """Nominal against stored bits of each setting of a model, the most dishonest first."""
    rows = board.rows[(board.rows["model"] == model) & (board.rows["w_bits"] < 16)].dropna(subset="stored_bits")
    rows = rows.assign(group=rows["group_size"].fillna(0))
    rows = rows.drop_duplicates(["method", "w_bits", "a_bits", "group", "source"])
    if rows.empty:
        raise UserError(f"What the settings of {model} store is not known.")
    rows = rows.assign(extra=rows["stored_bits"] - rows["w_bits"]).sort_values("extra", ascending=False)
    labels = [
        notation.setting(*one) + (" (measured)" if source == "measured" else "")
        for *one, source in rows[["method", "w_bits", "a_bits", "group_size", "source"]].itertuples(index=False)
    ]
    table = pd.DataFrame(
        {"Setting": labels, "Nominal bits": rows["w_bits"], "Stored bits": rows["stored_bits"].round(3)}
    )
    rows, labels = rows.head(MOST_SETTINGS), labels[:MOST_SETTINGS]
    gaps_x, gaps_y = [], []
    for label, nominal, stored in zip(labels, rows["w_bits"], rows["stored_bits"], strict=True):
        gaps_x += [float(nominal), float(stored), None]
        gaps_y += [label, label, None]
    nominal_hover = "%{y}<br>nominal %{x:.2f} bits<extra></extra>"
    stored_hover = "%{y}<br>stored %{x:.3f} bits<extra></extra>"
    data = [
        {"type": "scatter", "mode": "lines", "x": gaps_x, "y": gaps_y, "line": {"color": "var(--edge)", "width": 3},
         "hoverinfo": "skip", "showlegend": False},
        {"type": "scatter", "mode": "markers", "x": _numbers(rows["w_bits"]), "y": labels, "name": "nominal",
         "marker": {"symbol": "circle-open", "size": 9, "color": "var(--quiet)"}, "hovertemplate": nominal_hover},
        {"type": "scatter", "mode": "markers", "x": _numbers(rows["stored_bits"]), "y": labels, "name": "stored",
         "marker": {"symbol": "circle", "size": 9, "color": "#d9730d"}, "hovertemplate": stored_hover},
    ]  # fmt: skip
    first = rows.iloc[0]
    finding = (
        f"{labels[0]} stores {first['stored_bits']:.2f} bits per quantized weight, {first['extra']:.2f} more than its "
        "name says. Measured settings come from the ledger, the study's are counted from what the method stores."
    )
    layout = {
        "xaxis": _axis("bits per quantized weight"),
        "yaxis": {"autorange": "reversed", "fixedrange": True, "type": "category", "automargin": True},
        "height": 120 + 22 * len(labels),
    }
    return Figure("honest", "Nominal and stored bits", finding, data, layout, table)


def layer_errors(records: list[LayerRecord], label: str) -> Figure:
    """Layer × linear map of a measured run's relative error: of outputs where the method saw data, else of weights."""
    if not records:
        raise UserError("This run quantized no layer.")
    frame = pd.DataFrame([record.model_dump() for record in records])
    of_outputs = frame["output_error"].notna().all()
    frame["error"] = frame["output_error"] if of_outputs else frame["weight_error"]
    frame["short"] = frame["linear"].str.rpartition(".")[2]
    names = sorted(frame["short"].unique(), key=lambda n: _LINEARS.index(n) if n in _LINEARS else len(_LINEARS))
    grid = frame.pivot_table(index="short", columns="block", values="error", aggfunc="first").reindex(names)
    bits = frame.pivot_table(index="short", columns="block", values="stored_bits", aggfunc="first").reindex(names)
    with np.errstate(divide="ignore"):
        logs = np.log10(grid.to_numpy(dtype=float))
    logs[~np.isfinite(logs)] = np.nan
    what = "output error" if of_outputs else "weight error"
    ticks = np.arange(np.floor(np.nanmin(logs)), np.ceil(np.nanmax(logs)) + 1) if np.isfinite(logs).any() else []
    data = [
        {"type": "heatmap", "z": _grid(logs), "x": [int(block) for block in grid.columns], "y": names,
         "customdata": np.dstack([grid.to_numpy(float), bits.to_numpy(float)]).tolist(),
         "hovertemplate": "block %{x}, %{y}<br>" + what + " %{customdata[0]:.3%}<br>%{customdata[1]:.2f} bits stored"
         "<extra></extra>",
         "colorscale": [[0, "var(--sheet)"], [1, "var(--loss)"]], "xgap": 1, "ygap": 1,
         "colorbar": {"title": {"text": what}, "tickvals": [float(tick) for tick in ticks],
                      "ticktext": [f"{100 * 10**tick:g}%" for tick in ticks], "thickness": 10, "outlinewidth": 0}}
    ]  # fmt: skip
    worst = frame.loc[frame["error"].idxmax()]
    finding = (
        f"{label}: the largest {what} is {100 * worst['error']:.2g}% of the original's squared norm, in block "
        f"{worst['block']}, {worst['linear']}; the median is {100 * frame['error'].median():.2g}%."
    )
    layout = {
        "xaxis": {"title": {"text": "block"}, "fixedrange": True, "automargin": True},
        "yaxis": {"autorange": "reversed", "fixedrange": True, "type": "category", "automargin": True},
        "height": 320,
    }
    table = frame[["block", "linear", "weight_error", "output_error", "stored_bits", "seconds"]]
    return Figure("layers", "Error by layer", finding, data, layout, table)


def dumbbells(labels: list[str], columns: tuple[Column, ...], kept: np.ndarray) -> Figure:
    """Up to four settings on every task: percent of FP16 kept [settings, tasks], a bar between worst and best."""
    filled = ~np.isnan(kept).all(axis=0)
    if not filled.any():
        raise UserError("The pinned settings have no number that can be compared with FP16.")
    titles = [f"{column.title} {column.arrow}" for column, any_ in zip(columns, filled, strict=True) if any_]
    kept = kept[:, filled]
    span_x, span_y = [], []
    for title, values in zip(titles, kept.T, strict=True):
        span_x += [float(np.nanmin(values)), float(np.nanmax(values)), None]
        span_y += [title, title, None]
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "x": span_x, "y": span_y, "line": {"color": "var(--edge)", "width": 3},
         "hoverinfo": "skip", "showlegend": False}
    ]  # fmt: skip
    for place, (label, values) in enumerate(zip(labels, kept, strict=True)):
        data.append(
            {"type": "scatter", "mode": "markers", "x": _numbers(values), "y": titles, "name": label,
             "marker": {"size": 11, "color": _COLORS[place], "symbol": _SYMBOLS[place]},
             "hovertemplate": label + "<br>%{y}: %{x:.1f}% of FP16<extra></extra>"}
        )  # fmt: skip
    layout = {
        "xaxis": _axis("percent of FP16 kept") | {"ticksuffix": "%"},
        "yaxis": {"autorange": "reversed", "fixedrange": True, "type": "category", "automargin": True},
        "height": 130 + 28 * len(titles),
        "shapes": [_level(100.0, vertical=True)],
    }
    table = pd.DataFrame(kept.T.round(2), columns=labels)
    table.insert(0, "Task", titles)
    spread = np.nanmax(kept, axis=0) - np.nanmin(kept, axis=0)
    widest = int(np.argmax(spread))
    finding = f"They differ most on {titles[widest]}: {spread[widest]:.1f} percent of FP16 apart."
    return Figure("pins", "Pinned settings", finding, data, layout, table)


def column_of_task(board: Board, task: str) -> Column:
    """A board's column by its task. Raises UserError if no result is of it."""
    for column in board.columns:
        if column.task == task:
            return column
    raise UserError(f"No result is of the task {task!r}.")


def _in_points(column: Column) -> bool:
    return column.better == "higher" and not column.task.startswith("mme")


def _method_order(method: str) -> int:
    return PAPER_METHODS.index(method) if method in PAPER_METHODS else len(PAPER_METHODS)


def _kept(board: Board, model: str) -> tuple[pd.DataFrame, np.ndarray, list[Column]]:
    """A model's quantized rows and, for each score, the percent of FP16 kept; collapsed without a number is 0."""
    mask = ((board.rows["model"] == model) & (board.rows["w_bits"] < 16)).to_numpy()
    places = [place for place, column in enumerate(board.columns) if not column.cost]
    at = np.ix_(mask, places)
    columns = [board.columns[place] for place in places]
    lower = np.array([column.better == "lower" for column in columns], dtype=bool)
    return board.rows[mask], kept_percent(board.values[at], board.reference[at], board.cells[at], lower), columns


def kept_percent(values: np.ndarray, reference: np.ndarray, cells: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Percent of FP16 kept [rows, columns]; for columns where `lower` is better, FP16's value over the setting's."""
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = 100 * np.where(lower, reference / values, values / reference)
    kept[(cells == Cell.COLLAPSED) & np.isnan(kept)] = 0
    return kept


def _mean_kept(board: Board, model: str, pictures: bool) -> pd.DataFrame:
    """Percent of FP16 kept on average over a model's scores, per setting: accuracies, or perplexity if it has none."""
    rows, kept, columns = _kept(board, model)
    groups = np.array([column.group for column in columns])
    wanted = groups == "Pictures" if pictures else np.isin(groups, ("CommonSenseQA", "MMLU"))
    if not pictures and np.isnan(kept[:, wanted]).all():
        wanted = groups == "Perplexity"
    rows, kept = rows.assign(group=rows["group_size"].fillna(0)), kept[:, wanted]
    some = ~np.isnan(kept).all(axis=1) if kept.size else np.zeros(len(rows), dtype=bool)
    rows = rows[some].assign(kept=np.nanmean(kept[some], axis=1) if some.any() else [])
    return rows[["method", "w_bits", "a_bits", "group", "kept"]].drop_duplicates(
        ["method", "w_bits", "a_bits", "group"]
    )


def _style(method: str) -> tuple[str, str]:
    """A method's color and symbol, the same in every figure."""
    place = _method_order(method) - 1
    return _COLORS[place % len(_COLORS)], _SYMBOLS[place % len(_SYMBOLS) if place < len(_COLORS) else (place + 3) % 10]


def _dots(method: str, x: Any, y: Any, text: Any, hover: str, opacity: float = 1.0) -> dict[str, Any]:
    color, symbol = ("var(--ink)", "circle-open") if method == "FP16" else _style(method)
    return {
        "type": "scatter", "mode": "markers", "name": method, "x": _numbers(x), "y": _numbers(y), "text": list(text),
        "hovertemplate": hover, "opacity": opacity, "marker": {"color": color, "symbol": symbol, "size": 10},
    }  # fmt: skip


def _line(method: str, x: Any, y: Any, text: Any, hover: str) -> dict[str, Any]:
    dots = _dots(method, x, y, text, hover)
    return dots | {"mode": "lines+markers", "line": {"color": dots["marker"]["color"], "width": 1.5}}


def _star(x: float, y: float, text: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "x": [float(x)], "y": [float(y)], "name": "cheapest", "text": [text],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": "circle-open", "size": 22, "color": "var(--ink)", "line": {"width": 2.5}},
    }  # fmt: skip


def _level(value: float, *, vertical: bool = False) -> dict[str, Any]:
    """FP16's level, across the whole figure."""
    line = {"color": "var(--quiet)", "width": 1, "dash": "dash"}
    if vertical:
        return {"type": "line", "x0": value, "x1": value, "yref": "paper", "y0": 0, "y1": 1, "line": line}
    return {"type": "line", "y0": value, "y1": value, "xref": "paper", "x0": 0, "x1": 1, "line": line}


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, "zeroline": False}


def _quality_axis(column: Column, values: pd.Series) -> dict[str, Any]:
    unit = "perplexity, log scale" if column.better == "lower" else "%" if _in_points(column) else "score"
    axis = _axis(f"{column.title} {column.arrow} ({unit})")
    if column.better == "higher":
        return axis
    decades = values.max() > 30 * values.min()
    return axis | {"type": "log", "dtick": 1 if decades else "D2", "exponentformat": "power" if decades else "none"}


def _value_hover(column: Column, axis: str) -> str:
    return f"{column.title} %{{{axis}:,.4~g}}" + ("%" if _in_points(column) else "")


def _hover(column: Column) -> str:
    return "%{text}<br>" + _value_hover(column, "y") + "<extra></extra>"


def _amount(value: float, unit: str) -> str:
    return f"{value:g}%" if unit == "%" else f"{value:g} {unit}"


def _lost(loss: float, unit: str) -> str:
    if np.isnan(loss):
        return "no FP16 to compare with"
    amount = f"{abs(loss):.1f}{'' if unit == '%' else ' '}{unit}" if abs(loss) < 1000 else "more than 1000%"
    return f"{amount} {'lost' if loss >= 0 else 'gained'} against FP16"


def _shade(loss: float, column: Column) -> float | None:
    """From -1 (lost) to 1 (gained), with the root that keeps small losses visible."""
    if np.isnan(loss):
        return None
    largest = 40.0 if _in_points(column) else 300.0
    share = min(abs(loss) / largest, 1.0) ** 0.5
    return round(-share if loss > 0 else share, 4)


def written(value: float, column: Column) -> str:
    """A value of a column as the table writes it."""
    return notation.perplexity(value, measured=False) if column.better == "lower" else notation.score(value)


def _told(found: pd.DataFrame, column: Column) -> pd.DataFrame:
    """The table behind a figure about one task."""
    return pd.DataFrame(
        {
            "Setting": found["label"],
            "Source": found["source"],
            "Stored bits": found["stored_bits"].round(3),
            "Size GB": found["size_gb"].round(3),
            column.title: found["value"],
            f"Lost ({loss_unit(column)})": found["loss"].round(2),
        }
    ).reset_index(drop=True)


def _numbers(values: Any) -> list:
    """Values as JSON knows them: no NaN, no numpy."""
    return [
        value if isinstance(value, str) else None if value is None or not np.isfinite(value) else float(value)
        for value in values
    ]


def _grid(values: np.ndarray) -> list[list[float | None]]:
    return [_numbers(row) for row in values]
