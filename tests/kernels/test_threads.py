"""On how many threads a kernel runs, by a clock of our own."""

from contextlib import nullcontext
from itertools import cycle

import pytest

from quant_engine.kernels import threads


@pytest.mark.parametrize(
    ("alone", "both", "share_alone"),
    [
        (21, [12], (0, 0.07)),
        (21, [30], (0.88, 1)),
        (21, [13, 60, 14, 55], (0.88, 1)),  # another program has a core for every second turn
    ],
)
def test_work_runs_on_the_threads_that_are_faster_on_the_whole(monkeypatch, alone, both, share_alone):
    clock, together = [0.0], cycle(both)
    monkeypatch.setattr(threads, "parallel_kernels", lambda: nullcontext(2))
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])
    pace, chosen = threads.Pace(), []
    for _ in range(2000):
        with pace.threads() as count:
            chosen.append(count)
            clock[0] += alone if count == 1 else next(together)
    least, most = share_alone
    assert least <= chosen.count(1) / len(chosen) <= most
    assert {1, 2} == set(chosen[1000:])  # what is slower is tried now and then
