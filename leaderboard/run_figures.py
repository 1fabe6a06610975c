"""The charts of one measured run: the error of each of its linears, and the weights behind one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from leaderboard import plot
from leaderboard.plot import Figure
from quant_engine.spec import LayerRecord, UserError

_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
        {"type": "heatmap", "z": plot.grid(logs), "x": [int(block) for block in grid.columns], "y": names,
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
        "yaxis": plot.names_axis(),
        "height": 320,
    }
    table = frame[["block", "linear", "weight_error", "output_error", "stored_bits", "seconds"]]
    return Figure("layers", "Error by layer", finding, data, layout, table)
