"""What a Hugging Face Job does: `python -m quant_engine.runs.job`, one run, whose folder goes to the shared data set.

The run is in LOWBIT_SPEC as JSON, the data set in LOWBIT_SHARED. What is written to its log is read by whoever started
it: one JSON object a line with a number `n`, and `progress`, `log`, or the sentence of an `error`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

from quant_engine.failures import failure
from quant_engine.progress import Hooks, Progress
from quant_engine.runs import shared
from quant_engine.runs.execute import execute
from quant_engine.spec import RunSpec, UserError

BEAT_S = 10.0


def main() -> int:
    """Does the run and adds it to the data set. Ends with 1 where that can't be done, and says why."""
    say = _speaker()
    try:
        spec = RunSpec.model_validate_json(os.environ["LOWBIT_SPEC"])
        repository = shared.repository()
        if repository is None:
            raise UserError("A job has no place for its results: set LOWBIT_SHARED to a data set.")
        path = execute(spec, Hooks(_now_and_then(say), log=lambda line: say(log=line)))
        shared.add(repository, path)
    except Exception as error:
        say(error=failure(error, "run", "choose a larger flavor", "start the run again"))
        return 1
    return 0


def _speaker() -> Callable[..., None]:
    number = 0

    def say(**words: object) -> None:
        nonlocal number
        number += 1
        sys.stdout.write(json.dumps({"n": number, **words}) + "\n")
        sys.stdout.flush()

    return say


def _now_and_then(say: Callable[..., None]) -> Callable[[Progress], None]:
    """Says progress, but not each of a thousand steps."""
    last = 0.0

    def progress(state: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= BEAT_S:
            last = time.monotonic()
            say(progress=state.model_dump(mode="json"))

    return progress


if __name__ == "__main__":
    sys.exit(main())
