"""The charts of one measured run: the error of each of its linears, and the weights behind one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from leaderboard import plot
from leaderboard.plot import Figure
from quant_engine.results import LayerRecord
from quant_engine.spec import UserError

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linears of a block in the order in which it uses them, without the part that they belong to."""


def layer_errors(records: list[LayerRecord], label: str) -> Figure:
    """Layer × linear map of a measured run's relative error: of outputs where the method saw data, else of weights."""
    frame, what = _with_errors(records)
    frame["short"] = frame["linear"].str.rpartition(".")[2]
    names = sorted(frame["short"].unique(), key=lambda n: LINEARS.index(n) if n in LINEARS else len(LINEARS))
    grid = frame.pivot_table(index="short", columns="block", values="error", aggfunc="first").reindex(names)
    bits = frame.pivot_table(index="short", columns="block", values="stored_bits", aggfunc="first").reindex(names)
    with np.errstate(divide="ignore"):
        logs = np.log10(grid.to_numpy(dtype=float))
    logs[~np.isfinite(logs)] = np.nan
    keys = {(row.block, row.short): linear_key(row.block, row.linear) for row in frame.itertuples()}
    ticks = np.arange(np.floor(np.nanmin(logs)), np.ceil(np.nanmax(logs)) + 1) if np.isfinite(logs).any() else []
    data = [
        {"type": "heatmap", "z": plot.grid(logs), "x": [int(block) for block in grid.columns], "y": names,
         "text": [[keys.get((int(block), name), "") for block in grid.columns] for name in names],
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
    if frame["weights_after"].notna().any():
        finding += " Press a cell to see its weights."

    layout = {
        "xaxis": {"title": {"text": "block"}, "fixedrange": True, "automargin": True},
        "yaxis": plot.names_axis(),
        "height": 320,
    }
    table = frame[["block", "linear", "weight_error", "output_error", "stored_bits", "seconds"]]
    return Figure("layers", "Error by layer", finding, data, layout, table)


def _with_errors(records: list[LayerRecord]) -> tuple[pd.DataFrame, str]:
    """The records with the `error` to show, and which that is. Raises UserError if there are none."""
    if not records:
        raise UserError("This run quantized no layer.")
    frame = pd.DataFrame([record.model_dump() for record in records])
    of_outputs = frame["output_error"].notna().all()
    frame["error"] = frame["output_error"] if of_outputs else frame["weight_error"]
    return frame, "output error" if of_outputs else "weight error"


def linear_key(block: int, linear: str) -> str:
    """The name of a linear within its run, in addresses too: 3.self_attn.q_proj."""
    return f"{block}.{linear}"


def linears(records: list[LayerRecord]) -> list[tuple[str, str]]:
    """The linears of a run, as (what it is, key)."""
    return [(f"block {row.block}, {row.linear}", linear_key(row.block, row.linear)) for row in records]


def weights(records: list[LayerRecord], linear: str | None = None) -> Figure:
    """Histogram of a linear's weights before and after quantization; None is the linear with the largest error.

    Raises UserError where the run has none.
    """
    if linear is None:
        frame, _ = _with_errors(records)
        record = records[int(frame["error"].idxmax())]
    else:
        record = next((row for row in records if linear_key(row.block, row.linear) == linear), None)
    if record is None:
        raise UserError(f"This run has no linear {linear}.")
    if record.weights_before is None or record.weights_after is None or record.weights_reach is None:
        raise UserError("This run was made before histograms were kept. Run its setting again to see the weights.")
    counts = np.array([record.weights_before, record.weights_after])
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts = counts.shape[1]
    edges = np.linspace(-record.weights_reach, record.weights_reach, parts + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    data = [
        {"type": "bar", "name": "before", "x": plot.numbers(middles), "y": _logarithmic(shares[0]),
         "marker": {"color": "var(--edge)"}, "hovertemplate": "%{x:.4f}: %{y:.3g}% before<extra></extra>"},
        {"type": "bar", "name": "after", "x": plot.numbers(middles), "y": _logarithmic(shares[1]),
         "marker": {"color": "#d9730d", "opacity": 0.7}, "hovertemplate": "%{x:.4f}: %{y:.3g}% after<extra></extra>"},
    ]  # fmt: skip
    beyond = shares[:, [0, -1]].sum(axis=1)
    middle = shares[:, parts // 2]
    finding = (
        f"Block {record.block}, {record.linear}: {middle[1]:.2g}% of the weights lie at zero (the middle part) after "
        f"quantization, {middle[0]:.2g}% before. The outermost parts hold all that lies beyond: {beyond[1]:.2g}% "
        f"after, {beyond[0]:.2g}% before. Weights are as the method saw them, its scales folded in."
    )
    layout = {
        "xaxis": plot.axis("weight"),
        "yaxis": plot.axis("share of the weights, %, log scale")
        | {"type": "log", "exponentformat": "none", "dtick": 1},
        "barmode": "overlay",
        "bargap": 0,
        "height": 320,
    }
    table = pd.DataFrame({"From": edges[:-1], "To": edges[1:], "Before, %": shares[0], "After, %": shares[1]})
    return Figure("weights", "Weights before and after", finding, data, layout, table.round(5))


def _logarithmic(shares: np.ndarray) -> list[float | None]:
    """Shares for a logarithmic axis, which has no zero."""
    return plot.numbers(np.where(shares > 0, shares, np.nan))
