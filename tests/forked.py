"""Processes of Python, forked from one that has loaded what pages and the engine need: each starts in a moment."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait

from quant_engine import folders

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "app", "leaderboard.lab", "leaderboard.ui.page", "leaderboard.ui.theme",
        "quant_engine.answers.worker", "quant_engine.runs.weights", "quant_engine.finetune.training",
        "transformers.models.llama.modeling_llama", "transformers.models.llava_next.modeling_llava_next",
    ]
)  # fmt: skip


class Python:
    """`python script.py …` or `python -c code …` with this environment: what of subprocess.Popen is used of it.

    Both pipes are of bytes. Other than by an interpreter of its own, threads are as many as the environment said when
    libraries were loaded: the code sets their number where it matters.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
        child_input, our_input = FORKS.Pipe(duplex=False)
        our_output, child_output = FORKS.Pipe(duplex=False)
        arguments = (list(words), dict(environment), child_input, child_output)
        self._process = FORKS.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        self._lock = threading.Lock()
        self.pid = self._process.pid
        self.stdin, self.stdout = (
            os.fdopen(os.dup(ours.fileno()), mode) for ours, mode in ((our_input, "wb"), (our_output, "rb"))
        )
        for end in (child_input, our_input, our_output, child_output):
            end.close()

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with self._lock:  # the exit code can be read once
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        if not wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.poll()

    def kill(self) -> None:
        self._process.kill()


def _run(words: list[str], environment: dict[str, str], stdin: Connection, stdout: Connection) -> None:
    os.setsid()
    for descriptor, end in enumerate((stdin, stdout)):
        os.dup2(end.fileno(), descriptor)
        end.close()
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    os.chdir(folders.PROJECT)
    os.environ.clear()
    os.environ.update(environment)
    first, *rest = words
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")
