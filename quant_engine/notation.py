"""How numbers are written: few digits, real minus signs, and powers of ten for perplexities that exploded."""

from __future__ import annotations

import math

MINUS = "−"
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def perplexity(value: float, *, measured: bool) -> str:
    """A perplexity as the study prints it (6.1, 110, 2.7×10⁶); a measured one keeps two decimals below 100."""
    size = abs(value)
    if not math.isfinite(value):
        return "∞"
    if size >= 999.5:
        power = math.floor(math.log10(size))
        mantissa = value / 10**power
        if abs(mantissa) >= 9.95:
            power, mantissa = power + 1, mantissa / 10
        return f"{_signed(mantissa, 1)}×10{str(power).translate(_RAISED)}"
    if size >= 99.95:
        return _signed(value, 0)
    return _signed(value, 2 if measured else 1)


def score(value: float) -> str:
    """A percentage or a benchmark's points, with one decimal."""
    return _signed(value, 1)


def cost(value: float, digits: int | None = None) -> str:
    """A number of minutes, GB, bits or tokens/s: with `digits` decimals, or up to two without trailing zeros."""
    return _signed(value, 2).rstrip("0").rstrip(".") if digits is None else _signed(value, digits)


def number(value: float | None) -> str:
    """A number of any kind, with four digits; a dash for none."""
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.2e}"


def standard_error(value: float) -> str:
    """A standard error with two digits: it is not known better."""
    return f"{value:.2g}"


def difference(text: str) -> str:
    """A written number with its sign shown, as differences are."""
    return text if text.startswith(MINUS) or not text.strip("0.") else f"+{text}"


def percent(value: float) -> str:
    """A share of FP16's quality: 97.4%, and <0.1% rather than a zero that is none."""
    return "<0.1%" if 0 < value < 0.05 else f"{_signed(value, 1)}%"


def _signed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def seconds(value: float) -> str:
    """A duration for people: 0.42 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if value < 10:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    value = round(value)
    if value < 60:
        return f"{value} s"
    if value < 3600:
        return f"{value // 60} min {value % 60:02d} s"
    return f"{value // 3600} h {value % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes in decimal units, as model sizes are given: 95 MB, 16.1 GB."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            amount = count / step
            return f"{amount:.1f} {unit}" if amount < 10 or unit == "GB" else f"{amount:.0f} {unit}"
    return f"{count:.0f} B"


def setting(method: str, w_bits: float, a_bits: float, group_size: float | None) -> str:
    """A setting as the field writes it: GPTQ W4A16 g128. `group_size` None or NaN is one group per row."""
    if w_bits == 16:
        return method
    group = "" if group_size is None or math.isnan(group_size) else f" g{group_size:g}"
    return f"{method} W{w_bits:g}A{a_bits:g}{group}"
