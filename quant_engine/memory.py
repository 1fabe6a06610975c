"""Memory that was freed goes back to the operating system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Returns what was freed. glibc would keep whatever lies below memory still in use: large tensors that come and go
    leave holes, which grow with every block of a model. With other C libraries nothing happens."""
    trim = _trim()
    if trim:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc; Windows has no library without a name
        return None
