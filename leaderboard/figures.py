"""The charts about one model: data and layout for the browser, the finding in a sentence, the table behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from leaderboard import items, notation, plot, quality
from leaderboard.analysis import Board
from leaderboard.columns import Column
from leaderboard.plot import Figure
from quant_engine.spec import UserError

MOST_SETTINGS = 18
CLIFF = {"points": 10.0, "%": 100.0}
"""A step to fewer bits that loses this much more, in the units of `quality.losses`, is a cliff."""
PAIRS = {"LLaMA3-8B": "LLaVA-Next-8B", "SmolLM2-135M": "Demo LLaVA-NeXT"}
"""Language models with the multimodal model that is built on them."""


def bits_and_quality(board: Board, model: str, task: str, within: float) -> Figure:
    """Weight bits against quality, a line per method through its best setting of each width, the cliff dashed."""
    column, found = quality.column_of_task(board, task), quality.points(board, model, task)
    data = []
    for method, line in quality.best_of_width(found[found["a_bits"] == 16]).groupby("method", sort=False):
        if method == "FP16":
            continue
        data.append(plot.line(method, line["w_bits"], line["value"], line["label"], plot.hover(column)))
    others = found[found["a_bits"] < 16]
    for method, rows in others.groupby("method", sort=False):
        data.append(plot.dots(method, rows["w_bits"], rows["value"], rows["label"], plot.hover(column), opacity=0.55))
    said, unit = [], quality.loss_unit(column)
    for method, above, below, _ in quality.cliffs(found, CLIFF[unit]).itertuples(index=False):
        line = quality.best_of_width(found[(found["method"] == method) & (found["a_bits"] == 16)])
        ends = line[line["w_bits"].isin([above, below])]
        data.append(
            plot.line(method, ends["w_bits"], ends["value"], ends["label"], plot.hover(column))
            | {"line": {"dash": "dot", "width": 5, "color": "var(--loss)"}, "opacity": 0.5, "showlegend": False,
               "mode": "lines", "hoverinfo": "skip"}
        )  # fmt: skip
        said.append(f"{method} {above:g}→{below:g} bits")
    reference = found.loc[found["w_bits"] == 16, "value"]
    shapes = [plot.level(float(reference.iloc[0]))] if len(reference) else []
    chosen = quality.cheapest(found, within)
    if found["loss"].isna().all():
        finding = f"There is no FP16 of {model} under the same conditions to compare with."
    elif chosen is None:
        finding = f"No setting is within {_amount(within, unit)} of FP16."
    else:
        data.append(
            plot.star(chosen["w_bits"], chosen["value"], f"Cheapest within {_amount(within, unit)}: {chosen['label']}")
        )
        finding = (
            f"Cheapest within {_amount(within, unit)} of FP16: {chosen['label']}, "
            f"{chosen['stored_bits']:.2f} bits stored, {_lost(chosen['loss'], unit)}."
        )
    if said:
        finding += f" Cliffs (dashed): {', '.join(said)}."
    gone = quality.collapsed(board, model, task)
    if len(gone):
        data.append(_collapsed(gone, column))
        widths = gone.groupby("w_bits", sort=False)["method"].unique()
        told = [f"{', '.join(methods)} at {width:g} bits" for width, methods in widths.items()]
        finding += f" Collapsed (crosses): {'; '.join(told)}."
    layout = {
        "xaxis": plot.axis("weight bits (nominal)") | {"autorange": "reversed", "dtick": 1},
        "yaxis": plot.quality_axis(column, found["value"]),
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        "shapes": shapes,
    }
    return Figure("bits", "Bits against quality", finding, data, layout, _told(found, column, gone))


def _collapsed(gone: pd.DataFrame, column: Column) -> dict[str, Any]:
    """Settings without a number as crosses at the bad edge of the figure, one for each width."""
    names = gone.groupby("w_bits", sort=False)["label"].agg(list)
    return {
        "type": "scatter", "mode": "markers", "name": "collapsed", "yaxis": "y2", "x": plot.numbers(names.index),
        "y": [0.03 if column.better == "higher" else 0.97] * len(names),
        "text": ["<br>".join([f"Collapsed on {column.title}:", *settings]) for settings in names],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": "x-thin-open", "size": 10, "color": "var(--alarm)", "line": {"width": 2.5}},
    }  # fmt: skip


def size_and_quality(board: Board, model: str, task: str) -> Figure:
    """Size of all weights against quality, with the Pareto front."""
    column = quality.column_of_task(board, task)
    found = quality.points(board, model, task).dropna(subset="size_gb").reset_index(drop=True)
    if found.empty:
        raise UserError(f"The size of {model} is not known.")
    higher = column.better == "higher"
    front = quality.pareto(found["size_gb"].to_numpy(), found["value"].to_numpy(), higher_is_better=higher)
    resampled = items.resampled_values(items.runs_with(board, model, column), task, quality.DRAWS)
    chance = quality.pareto_chance(found, resampled, higher_is_better=higher)
    by_items = found["run_id"].isin(resampled.keys())
    ways = np.select([np.isnan(chance), by_items], ["", "items drawn anew"], "by its standard error")
    labels = [
        label + (f"<br>on the front in {100 * share:.0f}% of resamples ({way})" if way else "")
        for label, share, way in zip(found["label"], chance, ways, strict=True)
    ]
    hover = "%{text}<br>%{x:.2f} GB<br>" + plot.value_hover(column, "y") + "<extra></extra>"
    data = []
    on_front = found[front].sort_values("size_gb")
    data.append(
        {"type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
         "x": plot.numbers(on_front["size_gb"]), "y": plot.numbers(on_front["value"]),
         "line": {"color": "var(--ink)", "width": 1.5, "shape": "hv"}}
    )  # fmt: skip
    for method, rows in found.groupby("method", sort=False):
        marks = plot.dots(method, rows["size_gb"], rows["value"], [labels[at] for at in rows.index], hover)
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
        table.insert(4, "Chance by", ways)
    layout = {"xaxis": plot.axis("size of all weights, GB"), "yaxis": plot.quality_axis(column, found["value"])}
    return Figure("size", "Size against quality", finding, data, layout, table)


def methods_and_bits(board: Board, model: str, task: str) -> Figure:
    """Methods × widths, each the best group size, coloured by what is lost against FP16."""
    column, found = quality.column_of_task(board, task), quality.points(board, model, task)
    unit, gone = quality.loss_unit(column), quality.collapsed(board, model, task)
    best = quality.best_of_width(found[found["w_bits"] < 16])
    best = best.sort_values("loss").drop_duplicates(["method", "w_bits"])
    methods = sorted({*best["method"], *gone["method"]}, key=lambda method: (quality.method_order(method), method))
    widths = sorted({*best["w_bits"], *gone["w_bits"]}, reverse=True)
    if not methods:
        raise UserError(f"{model} has no quantized setting with {column.title}.")
    kept = {(one.method, one.w_bits): one for one in best.itertuples()}
    lost = gone.groupby(["method", "w_bits"])["label"].agg("<br>".join)

    def cell(method: str, width: float) -> tuple[float | None, str, str]:
        """Shade, text and hover."""
        if (one := kept.get((method, width))) is not None:
            said = f"{one.label}<br>{_lost(one.loss, unit)}"
            return _shade(one.loss, column), quality.written(one.value, column), said
        if (method, width) in lost.index:
            return -1.0, "collapsed", lost[method, width]
        return None, "", "not reported"

    grid = [[cell(method, width) for width in widths] for method in methods]
    color, text, hover = ([[one[part] for one in row] for row in grid] for part in range(3))
    data = [
        {"type": "heatmap", "z": color, "x": [f"{width:g}" for width in widths], "y": methods, "text": text,
         "texttemplate": "%{text}", "customdata": hover, "hovertemplate": "%{customdata}<br>%{text}<extra></extra>",
         "zmin": -1, "zmax": 1, "colorscale": plot.SHADE, "showscale": False, "xgap": 2, "ygap": 2}
    ]  # fmt: skip
    most = CLIFF[unit]
    narrow = best[best["loss"] <= most]
    lowest = narrow.sort_values(["w_bits", "loss"]).head(1)
    finding = f"{column.title} {column.arrow}, the best group size of each. Orange is lost against FP16, blue gained."
    if len(lowest):
        one = lowest.iloc[0]
        finding += f" Fewest bits that lose less than {_amount(most, unit)}: {one['label']}."
    layout = {
        "xaxis": plot.axis("weight bits (nominal)") | {"fixedrange": True, "type": "category", "tickangle": 0},
        "yaxis": plot.names_axis(),
        "height": 110 + 30 * len(methods),
    }
    return Figure("methods", "Methods × bits", finding, data, layout, _told(best, column, gone))


def loss_by_task(board: Board, model: str, w_bits: float) -> Figure:
    """Percent of FP16 kept on each task, a row of dots per task, at one width."""
    rows, kept, columns = quality.kept_of(board, model)
    mask = (rows["w_bits"] == w_bits).to_numpy()
    rows, kept = rows[mask], kept[mask]
    filled = ~np.isnan(kept).all(axis=0)
    if not filled.any():
        raise UserError(f"{model} has no setting of {w_bits:g} bits that can be compared with FP16.")
    columns = [column for column, any_ in zip(columns, filled, strict=True) if any_]
    kept = kept[:, filled]
    titles = [f"{column.title} {column.arrow}" for column in columns]
    data, labels = [], []
    scores = np.nan_to_num(kept).mean(axis=1)
    best: dict[str, int] = {}
    for place in np.argsort(-scores, kind="stable"):
        best.setdefault(rows["method"].iloc[place], int(place))
    best = dict(sorted(best.items(), key=lambda pair: quality.method_order(pair[0])))
    for method, place in best.items():
        one = rows.iloc[place]
        label = notation.setting(one["method"], one["w_bits"], one["a_bits"], one["group_size"])
        labels.append(label)
        data.append(
            plot.dots(
                method, kept[place], titles, [label] * len(titles), "%{text}<br>%{y}: %{x:.1f}% of FP16<extra></extra>"
            )
        )
    mean = np.nanmean(kept[list(best.values())], axis=0)
    worst = int(np.argmin(mean))
    finding = (
        f"At {w_bits:g} bits {columns[worst].title} suffers most: methods keep {mean[worst]:.1f}% of FP16 on average. "
        "One dot a method, its best group size; for perplexity, FP16's over the setting's."
    )
    layout = {
        "xaxis": plot.kept_axis(),
        "yaxis": plot.names_axis(),
        "height": 130 + 26 * len(titles),
        "shapes": [plot.level(100.0, vertical=True)],
    }
    table = pd.DataFrame(kept[list(best.values())].round(2), columns=titles)
    table.insert(0, "Setting", labels)
    return Figure("tasks", "Loss by task", finding, data, layout, table)


def language_and_pictures(board: Board, model: str) -> Figure:
    """The same setting in a language model and in the multimodal model built on it: percent of FP16 kept by each."""
    pair = next(((llm, mllm) for llm, mllm in PAIRS.items() if model in (llm, mllm)), None)
    if pair is None:
        raise UserError(f"{model} has no counterpart to compare with; LLaMA3-8B and SmolLM2-135M have one.")
    sides = [quality.mean_kept(board, one, picture) for one, picture in zip(pair, (False, True), strict=True)]
    both = sides[0].merge(sides[1], on=["method", "w_bits", "a_bits", "group"], suffixes=("_language", "_pictures"))
    if both.empty:
        raise UserError(f"No setting was measured on both {pair[0]} and {pair[1]}.")
    both["label"] = [
        notation.setting(method, w, a, group or None)
        for method, w, a, group in both[["method", "w_bits", "a_bits", "group"]].itertuples(index=False)
    ]
    hover = "%{text}<br>" + pair[0] + ": %{x:.1f}% kept<br>" + pair[1] + ": %{y:.1f}% kept<extra></extra>"
    data = [
        plot.dots(method, rows["kept_language"], rows["kept_pictures"], rows["label"], hover)
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
        "xaxis": plot.kept_axis(f"{pair[0]}: percent of FP16 kept"),
        "yaxis": plot.kept_axis(f"{pair[1]}: percent of FP16 kept"),
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
    labels = quality.labels(rows)
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
        {"type": "scatter", "mode": "markers", "x": plot.numbers(rows["w_bits"]), "y": labels, "name": "nominal",
         "marker": {"symbol": "circle-open", "size": 9, "color": "var(--quiet)"}, "hovertemplate": nominal_hover},
        {"type": "scatter", "mode": "markers", "x": plot.numbers(rows["stored_bits"]), "y": labels, "name": "stored",
         "marker": {"symbol": "circle", "size": 9, "color": "#d9730d"}, "hovertemplate": stored_hover},
    ]  # fmt: skip
    first = rows.iloc[0]
    finding = (
        f"{labels[0]} stores {first['stored_bits']:.2f} bits per quantized weight, {first['extra']:.2f} more than its "
        "name says. Measured settings come from the ledger, the study's are counted from what the method stores."
    )
    layout = {
        "xaxis": plot.axis("bits per quantized weight"),
        "yaxis": plot.names_axis(),
        "height": 120 + 22 * len(labels),
    }
    return Figure("honest", "Nominal and stored bits", finding, data, layout, table)


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
            {"type": "scatter", "mode": "markers", "x": plot.numbers(values), "y": titles, "name": label,
             "marker": {"size": 11, "color": plot.COLORS[place], "symbol": plot.SYMBOLS[place]},
             "hovertemplate": label + "<br>%{y}: %{x:.1f}% of FP16<extra></extra>"}
        )  # fmt: skip
    layout = {
        "xaxis": plot.kept_axis(),
        "yaxis": plot.names_axis(),
        "height": 130 + 28 * len(titles),
        "shapes": [plot.level(100.0, vertical=True)],
    }
    table = pd.DataFrame(kept.T.round(2), columns=labels)
    table.insert(0, "Task", titles)
    spread = np.nanmax(kept, axis=0) - np.nanmin(kept, axis=0)
    widest = int(np.argmax(spread))
    finding = f"They differ most on {titles[widest]}: {spread[widest]:.1f} percent of FP16 apart."
    return Figure("pins", "Pinned settings", finding, data, layout, table)


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
    largest = 40.0 if quality.in_points(column) else 300.0
    share = min(abs(loss) / largest, 1.0) ** 0.5
    return round(-share if loss > 0 else share, 4)


def _told(found: pd.DataFrame, column: Column, gone: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table behind a figure about one task; `gone` are settings that collapsed without a number."""
    some = gone is not None and len(gone) > 0
    rows = pd.concat([found, gone.assign(status="collapsed")], ignore_index=True) if some else found
    table = pd.DataFrame(
        {
            "Setting": rows["label"],
            "Source": rows["source"],
            "Stored bits": rows["stored_bits"].round(3),
            "Size GB": rows["size_gb"].round(3),
            column.title: rows["value"],
            f"Lost ({quality.loss_unit(column)})": rows["loss"].round(2),
        }
    ).reset_index(drop=True)
    return table.assign(Status=rows["status"].fillna("")) if some else table
