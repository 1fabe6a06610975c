"""A process that quantizes nothing: how long it takes and how it ends is said by the name of the model.

"quantize=2" takes two seconds, "quantize=fail" says why it can't, "quantize=die" is killed. "quantize-by=FOLDER" takes
until the folder holds a file named after the method; it leaves a file with its process id there.
"""

import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from quant_engine.answers.messages import FromQuantizer
from quant_engine.progress import Progress
from quant_engine.spec import WeightSpec


def listen(lines):
    for line in iter(sys.stdin.buffer.readline, b""):
        lines.put(line)
    os._exit(0)


def send(**news):
    print(FromQuantizer(**news).model_dump_json(), flush=True)


def make(spec):
    what, _, detail = spec.model.partition("=")
    method = spec.setting.method
    if what == "quantize-by":
        Path(detail, f"{method}.{os.getpid()}").touch()
    send(progress=Progress(stage="quantizing", block=7, blocks=30))
    if what == "quantize-by":
        while not Path(detail, method).exists():
            time.sleep(0.02)
    elif detail == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif detail != "fail":
        time.sleep(float(detail))
    send(**({"failure": "The disk is full: free some space."} if detail == "fail" else {"done": True}))


if __name__ == "__main__":
    lines = queue.SimpleQueue()
    threading.Thread(target=listen, args=(lines,), daemon=True).start()
    while True:
        make(WeightSpec.model_validate_json(lines.get()))
