"""Parts of a model quantized alone (`WeightSpec.only`): what each kind of linear, and each block, costs.

Such runs are no settings that anybody would use, so they are apart from the leaderboard's rows.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd

from leaderboard import plot
from leaderboard.items import unit_scores
from leaderboard.plot import Figure
from quant_engine import notation
from quant_engine.evaluate.intervals import reach_of_error
from quant_engine.evaluate.task import mean_and_error
from quant_engine.spec import UserError

TASKS = {"wikitext2": "WikiText-2", "c4-new": "C4", "perplexity": "the built-in text"}
"""Perplexities that parts are held against FP16 by, the first that is there."""
KINDS = ("attention", "mlp", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BLOCK = "block-"
SETTING = ["method", "w_bits", "a_bits", "group_size"]


def costs(results: pd.DataFrame, parts: pd.DataFrame, model: str) -> tuple[pd.DataFrame, str]:
    """For each part of a model that was quantized alone, and for all of it in the same setting, how many times FP16's
    its perplexity is on the same windows: `only` (empty: all), `setting`, `times`, `low`, `high`, `run_id`; and the
    task. Raises UserError where there is none."""
    own = parts[parts["model"] == model]
    task = next((task for task in TASKS if (own["task"] == task).any()), None)
    if task is None:
        raise UserError(f"No part of {model} was quantized alone yet: run a setting with --only attention, say.")
    own = own[own["task"] == task]
    whole = results[(results["model"] == model) & (results["source"] == "measured") & (results["task"] == task)]
    rows = []
    for (conditions, revision), group in own.groupby(["conditions", "data_revision"], sort=False):
        alike = whole[(whole["conditions"] == conditions) & (whole["data_revision"] == revision)]
        fp16 = alike[alike["w_bits"] == 16]
        if fp16.empty:
            continue
        key = [*SETTING, "options"]
        settings = group.assign(options=group["options"].map(_without_only))[key].drop_duplicates()
        every = alike.merge(settings, on=key).drop_duplicates(key).assign(only="")
        for row in pd.concat([every, group]).to_dict("records"):
            times = _times(row["run_id"], fp16["run_id"].iloc[0], task)
            if times:
                setting = notation.setting(*(row[name] for name in SETTING))
                rows.append({"only": row["only"], "setting": setting, **times, "run_id": row["run_id"]})
    return pd.DataFrame(rows, columns=["only", "setting", "times", "low", "high", "run_id"]), task


def _without_only(options: str) -> str:
    return json.dumps({name: value for name, value in json.loads(options).items() if name != "only"}, sort_keys=True)


def _times(run_id: str, fp16: str, task: str) -> dict[str, float] | None:
    """How many times another run's a run's perplexity is, with a 95% interval over windows in pairs."""
    ours, theirs = unit_scores(run_id, task), unit_scores(fp16, task)
    if ours is None or theirs is None or ours[0] != theirs[0]:
        return None
    mean, error = mean_and_error(list(ours[1] - theirs[1]))
    reach = reach_of_error(error, len(ours[1])) if error else 0.0
    if not math.isfinite(mean) or mean + reach > 700:
        return None
    return {"times": math.exp(mean), "low": math.exp(mean - reach), "high": math.exp(mean + reach)}


def kinds(results: pd.DataFrame, parts: pd.DataFrame, model: str) -> Figure:
    """Each kind of linear quantized alone, and all of them."""
    found, task = costs(results, parts, model)
    found = found[found["only"].isin(("", *KINDS))]
    if found.empty:
        raise UserError(f"No kind of linear of {model} was quantized alone yet: run a setting with --only attention.")
    names = found["only"].replace("", "all linears")
    order = ["all linears", *KINDS]
    shown = found.assign(part=pd.Categorical(names, [name for name in order if name in set(names)], ordered=True))
    shown = shown.sort_values("part", kind="stable")
    data = [_dots(setting, rows, "times", "part") for setting, rows in shown.groupby("setting", sort=False)]
    axis = plot.axis(f"× FP16's perplexity on {TASKS[task]}")
    if shown["high"].max() > 5 * shown["low"].min():
        axis |= plot.log_scale(shown["low"].min(), shown["high"].max())
    layout = {
        "xaxis": axis,
        "yaxis": plot.names_axis(),
        "shapes": [plot.level(1.0, vertical=True)],
        "height": 150 + 30 * shown["part"].nunique(),
    }
    single = shown[~shown["part"].isin(("all linears", "attention", "mlp"))]
    finding = "One kind of linear in low bits, the others in 16."
    if len(single):
        worst, best = single.loc[single["times"].idxmax()], single.loc[single["times"].idxmin()]
        finding += (
            f" {worst['setting']} costs most in {worst['part']} ({worst['times']:.3g}×); least of all costs "
            f"{best['part']} ({best['setting']}, {best['times']:.3g}×)."
        )
    return Figure("kinds", "Which linears cost what", finding, data, layout, _table(shown))


def blocks(results: pd.DataFrame, parts: pd.DataFrame, model: str) -> Figure:
    """Each block quantized alone, from the first to the last."""
    found, task = costs(results, parts, model)
    found = found[found["only"].str.fullmatch(rf"{BLOCK}\d+")]
    if found.empty:
        raise UserError(f"No block of {model} was quantized alone yet: run a setting with --only block-0, say.")
    shown = found.assign(block=found["only"].str.removeprefix(BLOCK).astype(int)).sort_values("block")
    data = [
        _dots(setting, rows, "block", "times") | {"mode": "lines+markers"}
        for setting, rows in shown.groupby("setting", sort=False)
    ]
    axis = plot.axis(f"× FP16's perplexity on {TASKS[task]}")
    if shown["high"].max() > 5 * shown["low"].min():
        axis |= plot.log_scale(shown["low"].min(), shown["high"].max())
    worst = shown.loc[shown["times"].idxmax()]
    finding = (
        f"One block in low bits, the others in 16. Block {worst['block']} costs most: {worst['times']:.3g}× by "
        f"{worst['setting']}; the median block {shown['times'].median():.3g}×."
    )
    layout = {"xaxis": plot.axis("block"), "yaxis": axis, "shapes": [plot.level(1.0)]}
    return Figure("blocks", "Which blocks cost what", finding, data, layout, _table(shown))


def _dots(setting: str, rows: pd.DataFrame, x: str, y: str) -> dict:
    """A setting's parts with their intervals along the axis of `times`."""
    along = "error_x" if x == "times" else "error_y"
    texts = [f"{setting}, {only or 'all linears'}: {times:.3g}×" for only, times in rows[["only", "times"]].to_numpy()]
    marks = plot.dots(setting.partition(" ")[0], rows["times"], rows["times"], texts, "%{text}<extra></extra>")
    return marks | {
        "name": setting,
        "x": plot.numbers(rows[x]),
        "y": rows[y].astype(str).tolist() if y == "part" else plot.numbers(rows[y]),
        along: {
            "type": "data",
            "symmetric": False,
            "array": np.round(rows["high"] - rows["times"], 6).tolist(),
            "arrayminus": np.round(rows["times"] - rows["low"], 6).tolist(),
        },
    }


def _table(shown: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Quantized alone": shown["only"].replace("", "all linears"),
            "Setting": shown["setting"],
            "× FP16": shown["times"].round(4),
            "From": shown["low"].round(4),
            "To": shown["high"].round(4),
            "Run": shown["run_id"],
        }
    )
