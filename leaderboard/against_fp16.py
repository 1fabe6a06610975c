"""How a number stands against FP16's: the percent kept, and the shade of its cell."""

from __future__ import annotations

import numpy as np

LARGEST_RATIO = 10.0
"""A perplexity this many times FP16's gets the full shade."""
LARGEST_LOSS = 0.5
"""A score that loses this share of FP16's gets the full shade."""


def percent_of_fp16(
    values: np.ndarray, reference: np.ndarray, lower: np.ndarray | bool, collapsed: np.ndarray | bool = False
) -> np.ndarray:
    """Percent of FP16's quality that is kept; NaN where there is nothing to compare, 0 where that is a collapse.

    Args:
        values: Numbers of settings, any shape.
        reference: FP16's, of the same shape.
        lower: Whether lower is better (perplexities): then it is FP16's number over the setting's.
        collapsed: Whether a setting's output is of no use.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        percent = 100 * np.where(lower, reference / values, values / reference)
    return np.where(collapsed & np.isnan(percent), 0.0, percent)


def shade(
    values: np.ndarray, reference: np.ndarray, lower: np.ndarray | bool, collapsed: np.ndarray | bool = False
) -> np.ndarray:
    """How far numbers are from FP16's, for the colour of a cell: from -1 (lost) over 0 to 1 (gained), NaN and collapses
    as in `percent_of_fp16`, whose arguments these are. The root keeps small losses visible beside collapses."""
    with np.errstate(divide="ignore", invalid="ignore"):
        by_ratio = np.log(reference / values) / np.log(LARGEST_RATIO)
        by_share = (values - reference) / np.abs(reference) / LARGEST_LOSS
    gain = np.clip(np.where(lower, by_ratio, by_share), -1, 1)
    gain = np.where(collapsed & np.isnan(gain), -1.0, gain)
    return np.sign(gain) * np.sqrt(np.abs(gain))
