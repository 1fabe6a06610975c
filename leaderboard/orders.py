"""Runs that differ in nothing but the order of their sums, as one row: their median, and how far they lie apart.

A method that looks at data turns the roundings of its arithmetic into other codes, and those into other numbers; how
much it does is seen in runs whose calibration went through the blocks in other portions (`Calibration.at_once`). Two
settings whose ranges overlap are not called different, whatever their items say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from leaderboard.columns import ordered

SAME_NUMBER = ["alike", "task", "conditions", "data_revision"]
"""What runs share whose numbers differ by the order of sums alone."""
RANGE = ("orders", "lowest", "highest")


def folded(results: pd.DataFrame) -> pd.DataFrame:
    """The results without those of other orders, wherever there is one of the usual order to stand for them.

    Such a number is the median of all orders (of an even number, the worse of the two in the middle) with its standard
    error and status. Added are `orders` (how many; 1), `lowest` and `highest` of them, and the `median_run`.
    """
    results = results.assign(orders=1, lowest=results["value"], highest=results["value"], median_run=None)
    other = results["at_once"] > 0
    if not other.any():
        return results
    drawn = results[results["alike"].isin(results.loc[other, "alike"])]
    superseded: list[int] = []
    for _, group in drawn.groupby(SAME_NUMBER, dropna=False, sort=False):
        usual, others = group.index[~other[group.index]], group.index[other[group.index]]
        if usual.empty or others.empty:
            continue
        superseded += others.tolist()
        (column,) = ordered([group["task"].iloc[0]])
        order = group["value"].sort_values(ascending=column.better == "lower", na_position="last").index
        median = results.loc[order[len(order) // 2]]
        results.loc[usual, ["value", "standard_error", "status", "median_run"]] = [
            median["value"], median["standard_error"], median["status"], median["run_id"],
        ]  # fmt: skip
        results.loc[usual, ["orders", "lowest", "highest"]] = [len(group), group["value"].min(), group["value"].max()]
    return results.drop(index=superseded).reset_index(drop=True)


def words(result: Mapping[str, Any], text: Callable[[float], str]) -> str:
    """What a number of several orders is, and their range, written by `text`; nothing for a number of one."""
    if not result["orders"] > 1:
        return ""
    return f"median of {result['orders']:g} orders of sums, {text(result['lowest'])} to {text(result['highest'])}"


def apart(lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """For each two of some numbers, whether their ranges are apart: [n, n] from the ends [n]. Without a number, NaN,
    one is apart from all."""
    return ~((lowest[:, None] <= highest[None, :]) & (lowest[None, :] <= highest[:, None]))
