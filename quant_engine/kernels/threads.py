"""How many threads a numba kernel runs on: as many as torch, or one where that is faster just now."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

WORTH_IT = 20
"""Trying the other number of threads takes at most this part of the time, one in so many."""
_SAFE_LAYERS = ("omp", "tbb")
_RUNNING = threading.RLock()


def share_threads() -> int:
    """Makes numba's next parallel kernels run on torch's number of threads, and returns it.

    Both may use the same OpenMP, whose number of threads numba sets whenever a parallel kernel begins.
    """
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)  # numba's first call gave OpenMP all cores
    return threads


@contextmanager
def parallel_kernels() -> Iterator[int]:
    """Numba's parallel kernels may run inside, on so many threads.

    Where numba finds neither OpenMP nor TBB, it ends the process when a second thread begins one while the first
    still runs: there they wait for each other.
    """
    threads = share_threads()
    if numba.threading_layer() in _SAFE_LAYERS:
        yield threads
        return
    with _RUNNING:
        yield threads


class Pace:
    """Whether work that is done again and again is faster on one thread or on all.

    Threads that meet often wait for the slowest: where another program keeps a core busy, each meeting can take as long
    as that program's turn. So both are timed, and the slower one is tried anew as seldom as it costs.
    """

    def __init__(self) -> None:
        self._seconds: dict[bool, float] = {}
        self._spent = 0.0  # since the slower one was tried

    @contextmanager
    def threads(self) -> Iterator[int]:
        """How many threads to do the work on, which is then done."""
        with parallel_kernels() as most:
            alone = most > 1 and self._alone()
            started = time.perf_counter()
            yield 1 if alone else most
            seconds = time.perf_counter() - started
        if most > 1:
            self._seconds[alone] = seconds
            self._spent = 0.0 if alone != self._faster_alone() else self._spent + seconds

    def _faster_alone(self) -> bool:
        return len(self._seconds) == 2 and self._seconds[True] < self._seconds[False]

    def _alone(self) -> bool:
        if not self._seconds:
            return False
        if len(self._seconds) == 1:
            return True
        better = self._faster_alone()
        lost = self._seconds[not better] - self._seconds[better]
        return better != (self._spent > WORTH_IT * lost)
