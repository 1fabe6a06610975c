"""Memory as the operating system has it: how much there is, what was freed, and what is read as a whole."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil

_HUGE_PAGE = 2**21
_ADVICE = 14
"""MADV_HUGEPAGE of Linux."""
_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc."""
_OWN_PAGES = 2**22
_CONTAINER = Path("/sys/fs/cgroup")


def installed() -> int:
    """Bytes of memory of this machine, or of the container."""
    return min(psutil.virtual_memory().total, _limit())


def free() -> int:
    """Bytes of it that can be had now. What the system only remembers of files counts as free."""
    available, limit = psutil.virtual_memory().available, _limit()
    try:
        used = int((_CONTAINER / "memory.current").read_text())
        files = (_CONTAINER / "memory.stat").read_text()
    except OSError:
        return min(available, limit)
    remembered = sum(int(line.split()[1]) for line in files.splitlines() if line.startswith("inactive_file "))
    return max(0, min(available, limit - used + remembered))


def _limit() -> int:
    """The most bytes that the container may have; more than any machine has where there is no limit."""
    try:
        text = (_CONTAINER / "memory.max").read_text().strip()
    except OSError:
        text = "max"
    return sys.maxsize if text == "max" else int(text)


def prefer_huge_pages(address: int, size: int) -> None:
    """Asks for pages of 2 MiB where `size` bytes lie that nobody has touched yet. What is read from beginning to end,
    again and again, then waits less for the tables of its pages. Elsewhere than on Linux nothing happens."""
    first, end = -(-address // _HUGE_PAGE) * _HUGE_PAGE, (address + size) // _HUGE_PAGE * _HUGE_PAGE
    advise = _library("madvise") if sys.platform == "linux" else None
    if advise and first < end:
        advise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _ADVICE)


def give_back() -> None:
    """Returns what was freed. glibc would keep whatever lies below memory still in use: large tensors that come and go
    leave holes, which grow with every block of a model. With other C libraries nothing happens."""
    trim = _library("malloc_trim")
    if trim:
        trim(0)


def give_back_at_once() -> None:
    """From here on tensors of 4 MiB or more lie in pages of their own, which go back when they are freed: a peak is
    what is in use. glibc would raise its limit to 32 MiB with the first large tensors that are freed, and hold holes of
    up to half of a peak for the next. With other C libraries nothing happens."""
    option = _library("mallopt")
    if option:
        option(_MMAP_THRESHOLD, _OWN_PAGES)


@cache
def _library(name: str) -> Callable[..., int] | None:
    """A function of the C library, where it has it."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # Windows has no library without a name
        return None
