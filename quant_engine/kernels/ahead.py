"""Compiles what the answers of all models share, in a process of its own: `python -m quant_engine.kernels.ahead`.

On a machine that never did so it takes about as long as loading a model, which goes on beside it. What only some models
need is compiled when one of them is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from quant_engine import folders
from quant_engine.deferred import deferred

compiled, decoding = deferred("quant_engine.kernels.compiled"), deferred("quant_engine.kernels.decoding")
vectors, stored_vectors = deferred("quant_engine.kernels.vectors"), deferred("quant_engine.kernels.stored_vectors")

COMMAND = (sys.executable, "-m", "quant_engine.kernels.ahead")
PATIENCE_S = 60.0
_FOLDER = Path(__file__).parent


def is_needed() -> bool:
    """Whether machine code can be kept beside this file, and none is there that is newer than what it is made of."""
    written = max(file.stat().st_mtime for file in _FOLDER.glob("*.py"))
    code = (_FOLDER / "__pycache__").glob("decoding.stepper*.nbi")
    return os.access(_FOLDER, os.W_OK) and not any(file.stat().st_mtime > written for file in code)


@contextmanager
def at_work() -> Iterator[None]:
    """Held by the process that compiles: whoever needs the same waits for it here instead of compiling it too. Where
    that can't be written down, or takes too long, nobody waits."""
    lock = None
    with suppress(OSError, NotImplementedError):
        folders.home().mkdir(parents=True, exist_ok=True)
        lock = FileLock(folders.home() / "compiling.lock")
        lock.acquire(PATIENCE_S)
    try:
        yield
    finally:
        if lock:
            lock.release()


def compile_shared() -> None:
    """Compiles, or finds compiled before, the step of a decoder and the products, on one thread and on several. They
    get arrays of the kinds that they get from models, in which there is nothing to do."""
    kinds = [(0, 4, vectors.Integers.ZEROS), (4, 16, vectors.Halves.FLOAT16), (4, 16, vectors.Halves.BFLOAT16)]
    products = [compiled.product(*kind).address for kind in kinds]
    dequantizers = [compiled.dequantizer(*kind).address for kind in kinds]
    factors, weight = stored_vectors.input_factors(*kinds[0][:2]), np.array([0, 0, 1, 1, 0], np.int64)
    for parallel in (False, True):
        _step(parallel)
        compiled.multiplier(parallel)(
            _zeros(1, 32), factors, products[0], weight, _zeros(1, 32), _zeros(1, 1), _zeros(1, 0), 1
        )
        compiled.unpacker(parallel)(dequantizers[0], weight, _zeros(32, 0), 0, 1)


def _step(parallel: bool) -> None:
    """The step of a decoder without blocks."""
    entries, sets, texts = np.zeros((0, decoding.FIELDS), np.int64), np.zeros(1, np.int64), np.zeros((1, 3), np.int64)
    shapes = (1, 2), (1, 2), (1, 1, 2), (1, 2), (1, 1), (1, 2), (2,), (1, 1), (1, 1, 1)
    decoding.stepper(parallel)(
        entries, sets, _zeros(1, 2), np.float32(1), _zeros(1, 2), _zeros(1, 2), _zeros(1, 2), texts, 0, 1, _zeros(1),
        *(_zeros(*shape) for shape in shapes), 1,
    )  # fmt: skip


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


if __name__ == "__main__":
    with at_work():
        compile_shared()
