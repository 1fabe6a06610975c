"""A process that quantizes nothing: how long it takes and how it ends is said by the name of the model.

"quantize=2" takes two seconds, "quantize=fail" says why it can't, "quantize=die" is killed. "quantize-by=FOLDER" ends
once the folder holds a file named after the method; it leaves a file with its process id there.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from quant_engine.answers.messages import FromQuantizer
from quant_engine.progress import Progress
from quant_engine.spec import WeightSpec


def end_with_parent():
    while os.read(0, 4096):
        pass
    os._exit(0)


def send(**news):
    print(FromQuantizer(**news).model_dump_json(), flush=True)


if __name__ == "__main__":
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit()
    threading.Thread(target=end_with_parent, daemon=True).start()
    spec = WeightSpec.model_validate_json(line)
    what, _, detail = spec.model.partition("=")
    method = spec.setting.method
    if what == "quantize-by":
        Path(detail, f"{method}.{os.getpid()}").touch()
    send(progress=Progress(stage="quantizing", block=7, blocks=30))
    if what == "quantize-by":
        while not Path(detail, method).exists():
            time.sleep(0.02)
    elif detail == "fail":
        send(failure="The disk is full: free some space.")
        sys.exit(1)
    elif detail == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        time.sleep(float(detail))
