"""A stand-in for the package `spaces` on ZeroGPU: a decorated call runs in a process that is forked for it, and what
asks for CUDA in any other process raises."""

import multiprocessing
import sys

if not hasattr(sys.modules.get("gradio"), "Blocks"):  # as the package does: Gradio looks for it while it is loaded
    raise ImportError

import torch

_fork = multiprocessing.get_context("fork")
granted = False
refusal = None
"""An error instead of a GPU."""
calls = []
"""The seconds that were asked for."""


def _cuda(*arguments):
    if not granted:
        raise RuntimeError("CUDA was touched outside of a decorated call.")


for name in ("current_device", "synchronize", "mem_get_info", "init", "_lazy_init"):
    setattr(torch.cuda, name, _cuda)
torch.cuda.is_available = lambda: True  # as the package's emulation says


def GPU(*, duration):
    def decorate(task):
        def call(*arguments):
            calls.append(duration(*arguments))
            if refusal:
                raise refusal
            results, stop = _fork.SimpleQueue(), _fork.Event()
            process = _fork.Process(target=_work, args=(task, arguments, results, stop), daemon=True)
            process.start()
            try:
                while (result := results.get()) is not None:
                    yield result
            finally:
                stop.set()
                process.join(20)

        return call

    return decorate


def _work(task, arguments, results, stop):
    global granted
    granted = True
    generator = task(*arguments)
    for result in generator:
        if stop.is_set():
            generator.close()
            break
        results.put(result)
    results.put(None)
