"""How far a number may be off for the items that were drawn: 95% intervals of means. Imports no torch."""

from __future__ import annotations

import math

Z95 = 1.959964
"""95% of a normal distribution lies within so many standard deviations."""
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706)
"""The same of Student's t with 1 to 5 degrees of freedom."""


def share_interval(share: float, count: float) -> tuple[float, float]:
    """The 95% interval of a share of independent events (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    if count <= 0:
        return 0.0, 1.0
    spread = Z95 * Z95 / count
    center = (share + spread / 2) / (1 + spread)
    reach = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / count / 4)
    return max(0.0, center - reach), min(1.0, center + reach)


def reach_of_error(error: float, units: int) -> float:
    """How far the 95% interval of a mean of `units` scores goes to either side, its standard error being `error`.

    By Student's t, whose quantiles are expanded in the degrees of freedom (Abramowitz and Stegun, 26.7.5).
    """
    freedom = units - 1
    if freedom <= len(T95):
        return T95[freedom - 1] * error
    z = Z95
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return error * sum(term / freedom**power for power, term in enumerate(terms))
