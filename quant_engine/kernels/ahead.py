"""Compiles what answers need, in a process of its own: `python -m quant_engine.kernels.ahead`.

First comes what all models share. On a machine that never compiled it this takes about as long as loading a model,
which goes on beside it. Then, at leisure, come the products of all forms in which the methods store weights. What else
a model needs is compiled when it is loaded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock

from quant_engine import folders
from quant_engine.deferred import deferred

compiled, decoding = deferred("quant_engine.kernels.compiled"), deferred("quant_engine.kernels.decoding")
vectors, stored_vectors = deferred("quant_engine.kernels.vectors"), deferred("quant_engine.kernels.stored_vectors")
low_rank, rotation = deferred("quant_engine.kernels.low_rank"), deferred("quant_engine.kernels.rotation")
matmul, registry = deferred("quant_engine.kernels.matmul"), deferred("quant_engine.weights.registry")
torch = deferred("torch")

COMMAND = (sys.executable, "-m", "quant_engine.kernels.ahead")
PATIENCE_S = 60.0
LEISURE = 3.0
"""So many times as long as it took to compile something, nothing is compiled."""
_COLUMNS = 64
_GROUP, _BLOCK = {"group": _COLUMNS}, {"block": _COLUMNS}
FORMS: tuple[tuple[str, dict[str, object]], ...] = (
    *(
        ("grouped_int", {"bits": bits, **_GROUP, "symmetric": False, "ordered": False})
        for bits in (3, 2, 8, 1, 5, 6, 7)
    ),
    *(("codebook", {"bits": bits, **_BLOCK, "double": True, "shifted": False}) for bits in (4, 3, 2)),
    *(("int_activations", {"bits": bits, "a_bits": bits, "quantized_output": False}) for bits in (8, 4, 6)),
    *(("rotated_int", {"bits": bits, "seed": 0, "rotation": "kronecker"}) for bits in (4, 3, 2)),
    ("dual_binary", _GROUP),
    ("partly_binary", {**_GROUP, "salient": 0}),
    ("residual_binary", _GROUP),
    ("binary", _GROUP),
    *(("codebook", {"bits": bits, **_BLOCK, "double": True, "shifted": True}) for bits in (4, 3, 2)),
)
"""How the methods store weights: what is known of each form when it is compiled."""
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


def compile_forms(leisure: float = LEISURE) -> None:
    """Compiles the products of `FORMS`, and what a decoder's step does beside them."""
    step_parts = rotation.rotator, low_rank.adder
    for compile_one in (*(partial(_product, form, config) for form, config in FORMS), *step_parts):
        started = time.monotonic()
        compile_one()
        time.sleep(leisure * (time.monotonic() - started))


def _product(form: str, config: dict[str, object]) -> None:
    """The products of a weight that is all zero."""
    weight = registry.empty_weight(form, out_features=16, in_features=_COLUMNS, **config)
    for buffer in weight.buffers():
        buffer.zero_()
    matmul.warm_up([weight], torch.float32)


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
    compile_forms()
