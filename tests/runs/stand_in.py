"""A worker process whose engine is a few lines: what it does is said by the name of the run's model.

Started by the supervisor in place of `python -m quant_engine.runs.worker`, with the same arguments. Everything but the
engine is the real worker.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from quant_engine.progress import Progress
from quant_engine.runs.worker import main
from quant_engine.spec import UserError


def execute(spec, hooks):
    what, _, detail = spec.weights.model.partition("=")
    hooks.log(f"the engine was asked to {what}")
    if what == "work":  # for so many seconds, and leave a mark each time that it starts
        marks = os.environ.get("STAND_IN_MARKS")
        if marks:
            with open(marks, "a") as file:
                file.write(f"{spec.run_id} {os.getpid()}\n")
        end = time.monotonic() + float(detail)
        while time.monotonic() < end:
            hooks.progress(Progress(stage="quantizing", fraction=0.5, block=3, blocks=6, linear="q_proj"))
            hooks.check_stop()
            time.sleep(0.02)
    elif what == "hang":  # and never ask whether to stop
        time.sleep(60)
    elif what == "user-error":
        raise UserError("The model has no pictures: choose another task.")
    elif what == "memory":
        raise MemoryError
    elif what == "disk":
        raise OSError(28, "No space left on device", "/some/file")
    elif what == "bug":
        raise ZeroDivisionError("division by zero")
    elif what == "die":
        os.kill(os.getpid(), int(detail))
    elif what == "exit":
        os._exit(int(detail))
    elif what == "print":
        print("a library said something")
    return Path("/results") / spec.run_id


if __name__ == "__main__":
    sys.modules["quant_engine.runs.execute"] = SimpleNamespace(execute=execute)
    sys.exit(main())
