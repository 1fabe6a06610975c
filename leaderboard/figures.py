"""The charts about one model: data and layout for the browser, the finding in a sentence, the table behind it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd

from leaderboard import items, plot, quality, votes
from leaderboard.analysis import Board
from leaderboard.columns import Column
from leaderboard.plot import Figure
from quant_engine import notation
from quant_engine.evaluate.intervals import share_interval
from quant_engine.spec import UserError

MOST_SETTINGS = 18
SETTING = ["method", "w_bits", "a_bits", "group_size"]
CLIFF = {"points": 10.0, "%": 100.0}
"""A step to fewer bits that loses this much more, in the units of `quality.losses`, is a cliff."""
PAIRS = {"LLaMA3-8B": "LLaVA-Next-8B", "SmolLM2-135M": "Demo LLaVA-NeXT"}
"""Language models with the multimodal model that is built on them."""


def bits_and_quality(board: Board, model: str, task: str, within: float) -> Figure:
    """Weight bits against quality, a line per method through its best setting of each width, the cliff dashed."""
    column, settings = quality.column_of_task(board, task), quality.points(board, model, task)
    hover, unit = plot.hover(column), quality.loss_unit(column)
    lines = quality.best_of_width(settings[settings["a_bits"] == 16])
    data = [
        plot.line(method, line["w_bits"], line["value"], line["label"], hover)
        for method, line in lines.groupby("method", sort=False)
        if method != "FP16"
    ]
    for method, rows in settings[settings["a_bits"] < 16].groupby("method", sort=False):
        data.append(plot.dots(method, rows["w_bits"], rows["value"], rows["label"], hover, opacity=0.55))
    cliffs = quality.cliffs(settings, CLIFF[unit])
    for method, above, below, _ in cliffs.itertuples(index=False):
        ends = lines[(lines["method"] == method) & lines["w_bits"].isin([above, below])]
        data.append(
            plot.line(method, ends["w_bits"], ends["value"], ends["label"], hover)
            | {"line": {"dash": "dot", "width": 5, "color": "var(--loss)"}, "opacity": 0.5, "showlegend": False,
               "mode": "lines", "hoverinfo": "skip"}
        )  # fmt: skip
    cheapest = quality.cheapest(settings, within)
    if cheapest is not None:
        text = f"Cheapest within {_amount(within, unit)}: {cheapest['label']}"
        data.append(plot.star(cheapest["w_bits"], cheapest["value"], text))
    collapsed = quality.collapsed(board, model, task)
    if len(collapsed):
        data.append(_crosses(collapsed, column))
    reference = settings.loc[settings["w_bits"] == 16, "value"]
    layout = {
        "xaxis": plot.axis("weight bits (nominal)") | {"autorange": "reversed", "dtick": 1},
        "yaxis": plot.quality_axis(column, settings["value"]),
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        "shapes": [plot.level(float(reference.iloc[0]))] if len(reference) else [],
    }
    finding = f"There is no FP16 of {model} under the same conditions to compare with."
    if settings["loss"].notna().any():
        finding = _cheapest_finding(cheapest, _amount(within, unit), unit)
    finding += _cliffs_finding(cliffs) + _collapsed_finding(collapsed)
    return Figure("bits", "Bits against quality", finding, data, layout, _table(settings, column, collapsed))


def _cheapest_finding(cheapest: pd.Series | None, within: str, unit: str) -> str:
    if cheapest is None:
        return f"No setting is within {within} of FP16."
    return (
        f"Cheapest within {within} of FP16: {cheapest['label']}, {cheapest['stored_bits']:.2f} bits stored, "
        f"{_lost(cheapest['loss'], unit)}."
    )


def _cliffs_finding(cliffs: pd.DataFrame) -> str:
    steps = [f"{method} {above:g}→{below:g} bits" for method, above, below, _ in cliffs.itertuples(index=False)]
    return f" Cliffs (dashed): {', '.join(steps)}." if steps else ""


def _collapsed_finding(collapsed: pd.DataFrame) -> str:
    methods = collapsed.groupby("w_bits", sort=False)["method"].unique()
    widths = [f"{', '.join(names)} at {width:g} bits" for width, names in methods.items()]
    return f" Collapsed (crosses): {'; '.join(widths)}." if widths else ""


def _crosses(collapsed: pd.DataFrame, column: Column) -> dict[str, Any]:
    """Settings without a number as crosses at the bad edge of the figure, one for each width."""
    names = collapsed.groupby("w_bits", sort=False)["label"].agg(list)
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
    settings = quality.points(board, model, task).dropna(subset="size_gb").reset_index(drop=True)
    if settings.empty:
        raise UserError(f"The size of {model} is not known.")
    higher = column.better == "higher"
    front = quality.pareto(settings["size_gb"].to_numpy(), settings["value"].to_numpy(), higher_is_better=higher)
    resampled = items.resampled_values(items.runs_with(board, model, column), task, quality.DRAWS)
    chance = quality.pareto_chance(settings, resampled, higher_is_better=higher)
    by_items = settings["run_id"].isin(resampled.keys())
    ways = np.select([np.isnan(chance), by_items], ["", "items drawn anew"], "by its standard error")
    labels = [
        label + (f"<br>on the front in {100 * share:.0f}% of resamples ({way})" if way else "")
        for label, share, way in zip(settings["label"], chance, ways, strict=True)
    ]
    hover = "%{text}<br>%{x:.2f} GB<br>" + plot.value_hover(column, "y") + "<extra></extra>"
    on_front = settings[front].sort_values("size_gb")
    data = [
        {"type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
         "x": plot.numbers(on_front["size_gb"]), "y": plot.numbers(on_front["value"]),
         "line": {"color": "var(--ink)", "width": 1.5, "shape": "hv"}}
    ]  # fmt: skip
    for method, rows in settings.groupby("method", sort=False):
        marks = plot.dots(method, rows["size_gb"], rows["value"], [labels[index] for index in rows.index], hover)
        widths = [2.0 if front[index] else 0.0 for index in rows.index]
        marks["marker"]["line"] = {"color": "var(--ink)", "width": widths}
        data.append(marks)
    smallest = on_front[on_front["w_bits"] < 16]
    names = ", ".join(smallest["label"].iloc[::-1].head(4))
    more = " and more" if len(smallest) > 4 else ""
    finding = f"{int(front.sum())} of {len(settings)} settings are on the front: {names}{more}."
    table = _table(settings, column)
    table.insert(2, "On the front", np.where(front, "yes", ""))
    if not np.isnan(chance).all():
        table.insert(3, "Chance to be on it", np.round(chance, 3))
        table.insert(4, "Chance by", ways)
    layout = {"xaxis": plot.axis("size of all weights, GB"), "yaxis": plot.quality_axis(column, settings["value"])}
    return Figure("size", "Size against quality", finding, data, layout, table)


def methods_and_bits(board: Board, model: str, task: str) -> Figure:
    """Methods × widths, each the best group size, coloured by what is lost against FP16."""
    column, settings = quality.column_of_task(board, task), quality.points(board, model, task)
    unit, collapsed = quality.loss_unit(column), quality.collapsed(board, model, task)
    best = quality.best_of_width(settings[settings["w_bits"] < 16])
    best = best.sort_values("loss").drop_duplicates(["method", "w_bits"])
    methods = sorted({*best["method"], *collapsed["method"]}, key=lambda name: (quality.method_order(name), name))
    widths = sorted({*best["w_bits"], *collapsed["w_bits"]}, reverse=True)
    if not methods:
        raise UserError(f"{model} has no quantized setting with {column.title}.")
    with_number = {(setting.method, setting.w_bits): setting for setting in best.itertuples()}
    without = collapsed.groupby(["method", "w_bits"])["label"].agg("<br>".join)

    def cell(method: str, width: float) -> tuple[float | None, str, str]:
        """Shade, text and hover."""
        if (setting := with_number.get((method, width))) is not None:
            shade = None if np.isnan(setting.shade) else round(setting.shade, 4)
            return shade, setting.text, f"{setting.label}<br>{_lost(setting.loss, unit)}"
        if (method, width) in without.index:
            return -1.0, "collapsed", without[method, width]
        return None, "", "not reported"

    grid = [[cell(method, width) for width in widths] for method in methods]
    shades, texts, hovers = ([[parts[index] for parts in row] for row in grid] for index in range(3))
    data = [
        {"type": "heatmap", "z": shades, "x": [f"{width:g}" for width in widths], "y": methods, "text": texts,
         "texttemplate": "%{text}", "customdata": hovers, "hovertemplate": "%{customdata}<br>%{text}<extra></extra>",
         "zmin": -1, "zmax": 1, "colorscale": plot.SHADE, "showscale": False, "xgap": 2, "ygap": 2}
    ]  # fmt: skip
    finding = f"{column.title} {column.arrow}, the best group size of each. Orange is lost against FP16, blue gained."
    narrowest = best[best["loss"] <= CLIFF[unit]].sort_values(["w_bits", "loss"]).head(1)
    for label in narrowest["label"]:
        finding += f" Fewest bits that lose less than {_amount(CLIFF[unit], unit)}: {label}."
    layout = {
        "xaxis": plot.axis("weight bits (nominal)") | {"fixedrange": True, "type": "category", "tickangle": 0},
        "yaxis": plot.names_axis(),
        "height": 110 + 30 * len(methods),
    }
    return Figure("methods", "Methods × bits", finding, data, layout, _table(best, column, collapsed))


def loss_by_task(board: Board, model: str, w_bits: float) -> Figure:
    """Percent of FP16 kept on each task, a row of dots per task, at one width."""
    indices = quality.quantized_rows(board, model)
    indices = indices[board.rows["w_bits"].to_numpy()[indices] == w_bits]
    columns, percents = quality.score_percents(board, indices)
    filled = ~np.isnan(percents).all(axis=0)
    if not filled.any():
        raise UserError(f"{model} has no setting of {w_bits:g} bits that can be compared with FP16.")
    columns, percents = list(compress(columns, filled)), percents[:, filled]
    titles = [f"{column.title} {column.arrow}" for column in columns]
    rows = board.rows.iloc[indices].reset_index(drop=True)
    means = pd.Series(np.nan_to_num(percents).mean(axis=1))
    best = rows.loc[means.sort_values(ascending=False, kind="stable").index].drop_duplicates("method")
    best = best.sort_values("method", key=lambda methods: methods.map(quality.method_order), kind="stable")
    percents = percents[best.index]
    labels = [notation.setting(*fields) for fields in best[SETTING].itertuples(index=False)]
    hover = "%{text}<br>%{y}: %{x:.1f}% of FP16<extra></extra>"
    data = [
        plot.dots(method, values, titles, [label] * len(titles), hover)
        for method, values, label in zip(best["method"], percents, labels, strict=True)
    ]
    average = np.nanmean(percents, axis=0)
    worst = int(np.argmin(average))
    finding = (
        f"At {w_bits:g} bits {columns[worst].title} suffers most: methods keep {average[worst]:.1f}% of FP16 on "
        "average. One dot a method, its best group size; for perplexity, FP16's over the setting's."
    )
    layout = {
        "xaxis": plot.percent_axis(),
        "yaxis": plot.names_axis(),
        "height": 130 + 26 * len(titles),
        "shapes": [plot.level(100.0, vertical=True)],
    }
    table = pd.DataFrame(percents.round(2), columns=titles)
    table.insert(0, "Setting", labels)
    return Figure("tasks", "Loss by task", finding, data, layout, table)


def language_and_pictures(board: Board, model: str) -> Figure:
    """The same setting in a language model and in the multimodal model built on it: percent of FP16 kept by each."""
    pair = next(((llm, mllm) for llm, mllm in PAIRS.items() if model in (llm, mllm)), None)
    if pair is None:
        raise UserError(f"{model} has no counterpart to compare with; LLaMA3-8B and SmolLM2-135M have one.")
    key = ["method", "w_bits", "a_bits", "group"]
    language = quality.mean_percents(board, pair[0], pictures=False)
    both = language.merge(
        quality.mean_percents(board, pair[1], pictures=True), on=key, suffixes=("_language", "_pictures")
    )
    if both.empty:
        raise UserError(f"No setting was measured on both {pair[0]} and {pair[1]}.")
    both["label"] = [
        notation.setting(method, w_bits, a_bits, group or None)
        for method, w_bits, a_bits, group in both[key].itertuples(index=False)
    ]
    hover = "%{text}<br>" + pair[0] + ": %{x:.1f}% kept<br>" + pair[1] + ": %{y:.1f}% kept<extra></extra>"
    data = [
        plot.dots(method, rows["percent_language"], rows["percent_pictures"], rows["label"], hover)
        for method, rows in both.groupby("method", sort=False)
    ]
    gap = both["percent_language"] - both["percent_pictures"]
    worst = both.loc[gap.idxmax()]
    finding = (
        f"Below the line pictures lose more than language. The largest gap is {worst['label']}: "
        f"{worst['percent_language']:.0f}% of language kept, {worst['percent_pictures']:.0f}% of pictures. "
        "Means over all scores; a collapsed score counts as 0."
    )
    layout = {
        "xaxis": plot.percent_axis(f"{pair[0]}: percent of FP16 kept"),
        "yaxis": plot.percent_axis(f"{pair[1]}: percent of FP16 kept"),
        "shapes": [
            {"type": "line", "x0": 0, "y0": 0, "x1": 100, "y1": 100, "line": {"color": "var(--edge)", "width": 1}}
        ],
    }
    table = both[["label", "percent_language", "percent_pictures"]].round(2)
    table.columns = ["Setting", f"{pair[0]}, % kept", f"{pair[1]}, % kept"]
    return Figure("pair", "Language against pictures", finding, data, layout, table)


def honest_bits(board: Board, model: str) -> Figure:
    """Nominal against stored bits of each setting of a model, the most dishonest first."""
    rows = board.rows[(board.rows["model"] == model) & (board.rows["w_bits"] < 16)].dropna(subset="stored_bits")
    rows = rows[rows["source"] != votes.SOURCE]
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


def told_apart(board: Board, model: str) -> Figure:
    """Weight bits against the share of blind votes that named the quantized answer, a line per method over all its
    groups, with 95% intervals; open marks where that holds 50%, which is chance."""
    settings = quality.blind_rates(board, model)
    settings["right"] = settings["share"] * settings["votes"]
    pooled = settings.groupby(["method", "w_bits"], sort=False)[["right", "votes"]].sum().reset_index()
    pooled["share"] = pooled["right"] / pooled["votes"]
    ends = np.array([share_interval(*pair) for pair in zip(pooled["share"], pooled["votes"], strict=True)])
    pooled["low"], pooled["high"] = ends.T
    clear = (pooled["low"] > 0.5) | (pooled["high"] < 0.5)
    methods, data = list(dict.fromkeys(pooled["method"])), []
    for number, (method, rates) in enumerate(pooled.groupby("method", sort=False)):
        text = [
            f"{method}, {bits:g} bits<br>{100 * share:.1f}% of {votes.describe(100 * share, count)}"
            for bits, share, count in zip(rates["w_bits"], rates["share"], rates["votes"], strict=True)
        ]
        x = rates["w_bits"] + 0.08 * (number - (len(methods) - 1) / 2)  # so that intervals stand side by side
        marks = plot.line(method, x, 100 * rates["share"], text, "%{text}<extra></extra>")
        symbol = marks["marker"]["symbol"]
        marks["marker"]["symbol"] = [symbol if clear[index] else f"{symbol}-open" for index in rates.index]
        data.append(marks | {"error_y": {
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 4,
            "array": plot.numbers(100 * (rates["high"] - rates["share"])),
            "arrayminus": plot.numbers(100 * (rates["share"] - rates["low"])),
        }})  # fmt: skip
    layout = {
        "xaxis": plot.axis("weight bits (nominal)") | {"autorange": "reversed", "dtick": 1},
        "yaxis": plot.axis("votes that named the quantized answer") | {"range": [-2, 102], "ticksuffix": "%"},
        "shapes": [plot.level(50.0)],
        "annotations": [{"xref": "paper", "x": 1, "y": 50, "yanchor": "bottom", "xanchor": "right", "text": "chance",
                         "showarrow": False, "font": {"color": "var(--quiet)", "size": 11}}],
    }  # fmt: skip
    shown = settings.assign(label=quality.labels(settings.assign(source=votes.SOURCE)))
    ends = [share_interval(*pair) for pair in zip(shown["share"], shown["votes"], strict=True)]
    table = pd.DataFrame(
        {
            "Setting": shown["label"],
            "Told apart %": (100 * shown["share"]).round(1),
            "Votes": shown["votes"].astype(int),
            "95% from": [round(100 * low, 1) for low, _ in ends],
            "95% to": [round(100 * high, 1) for _, high in ends],
        }
    )
    finding = _votes_finding(pooled[clear & (pooled["share"] > 0.5)], int(settings["votes"].sum()))
    return Figure("votes", "Told apart in blind votes", finding, data, layout, table)


def _votes_finding(clear: pd.DataFrame, count: int) -> str:
    """How many votes there are, and which methods are told apart at which bits."""
    widths = clear.groupby("method", sort=False)["w_bits"].agg(lambda bits: ", ".join(map("{:g}".format, bits)))
    found = [f"{method} at {bits} bits" for method, bits in widths.items()]
    what = (
        f"Told apart by more than chance: {', '.join(found)}."
        if found
        else "Nothing is told apart by more than chance."
    )
    total = "1 vote" if count == 1 else f"{count:,} votes"
    return f"{total} on this machine, of answers that differ. {what} Open marks: the 95% interval holds 50%, a guess."


def dumbbells(labels: list[str], columns: Sequence[Column], percents: np.ndarray) -> Figure:
    """Up to four settings on every task: percent of FP16 kept [settings, tasks], a bar between worst and best."""
    filled = ~np.isnan(percents).all(axis=0)
    if not filled.any():
        raise UserError("The pinned settings have no number that can be compared with FP16.")
    titles = [f"{column.title} {column.arrow}" for column in compress(columns, filled)]
    percents = percents[:, filled]
    span_x, span_y = [], []
    for title, values in zip(titles, percents.T, strict=True):
        span_x += [float(np.nanmin(values)), float(np.nanmax(values)), None]
        span_y += [title, title, None]
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "x": span_x, "y": span_y, "line": {"color": "var(--edge)", "width": 3},
         "hoverinfo": "skip", "showlegend": False}
    ]  # fmt: skip
    styles = zip(plot.COLORS, plot.SYMBOLS, strict=False)
    for label, values, (color, symbol) in zip(labels, percents, styles, strict=False):
        data.append(
            {"type": "scatter", "mode": "markers", "x": plot.numbers(values), "y": titles, "name": label,
             "marker": {"size": 11, "color": color, "symbol": symbol},
             "hovertemplate": label + "<br>%{y}: %{x:.1f}% of FP16<extra></extra>"}
        )  # fmt: skip
    layout = {
        "xaxis": plot.percent_axis(),
        "yaxis": plot.names_axis(),
        "height": 130 + 28 * len(titles),
        "shapes": [plot.level(100.0, vertical=True)],
    }
    table = pd.DataFrame(percents.T.round(2), columns=labels)
    table.insert(0, "Task", titles)
    spread = np.nanmax(percents, axis=0) - np.nanmin(percents, axis=0)
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


def _table(settings: pd.DataFrame, column: Column, collapsed: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table behind a figure about one task; `collapsed` are settings without a number."""
    some = collapsed is not None and len(collapsed) > 0
    rows = pd.concat([settings, collapsed.assign(status="collapsed")], ignore_index=True) if some else settings
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
