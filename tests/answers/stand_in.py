"""The real answering process with models made on the spot: what loading does is said by the name of the model."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from models import tiny_chat

from quant_engine.answers import quantizing, worker
from quant_engine.progress import Progress
from quant_engine.spec import UserError, WeightSpec


def load(spec, sibling, on_progress):
    what, _, detail = spec.model.partition("=")
    setting = spec.setting
    print("a library prints to standard output")
    os.system("echo a child process does so too")
    if setting.method == "refused":
        raise UserError("Method refused has no 4 bits: choose rtn.")
    if what == "bug":
        raise ZeroDivisionError
    if what == "memory":
        raise MemoryError
    if what == "die":
        os.kill(os.getpid(), int(detail))
    if what == "load":  # for so many seconds
        for block in range(int(float(detail) * 50)):
            on_progress(Progress(stage="loading", block=block, blocks=30))
            time.sleep(0.02)
    if what == "load-when":  # the folder has a file "go"
        Path(detail, f"loading-{time.monotonic()}").touch()
        while not Path(detail, "go").exists():
            time.sleep(0.02)
    seed = 2 if setting.method == "other" or setting.w_bits == 2 else 1
    loaded = tiny_chat.llava_next(seed=seed) if what in ("pictures", "demo") else tiny_chat.llama(seed=seed)
    if setting.method == "slow" or what == "demo":  # whoever looks on sees its tokens come
        seconds = 0.1 if setting.method == "slow" else 0.02
        loaded.model.get_output_embeddings().register_forward_pre_hook(lambda *_: time.sleep(seconds))
    return loaded


def resolve(model, setting):
    return WeightSpec(model=model, setting=setting), model.startswith("quantize") and setting.w_bits < 16


if __name__ == "__main__":
    worker.load_weights, worker.resolve, worker.has_room = load, resolve, lambda model: model != "huge"
    if sys.argv[1:]:  # bytes for models
        worker.memory_budget = lambda: int(sys.argv[1])
    quantizing.COMMAND = (sys.executable, str(Path(__file__).with_name("stand_in_quantizer.py")))
    worker.main()
