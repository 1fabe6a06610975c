"""How many threads a numba kernel runs on: as many as torch."""

from __future__ import annotations

import numba
import torch


def share_threads() -> int:
    """Makes numba's next parallel kernels run on torch's number of threads, and returns it.

    Both may use the same OpenMP, whose number of threads numba sets whenever a parallel kernel begins.
    """
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)  # numba's first call gave OpenMP all cores
    return threads
