"""The page's side of runs: a thread that starts worker processes and notices how each one ends.

A run's process may take all memory, crash or be killed; the page only reads about it here. Any number of pages may
share a queue, since a worker starts nothing that it could not claim.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from quant_engine.children import start_child
from quant_engine.runs.queue import Queue, owner_name
from quant_engine.runs.worker import LOST_CLAIM
from quant_engine.spec import UserError

logger = logging.getLogger(__name__)

TICK_S = 0.25
GRACE_S = 15.0  # longer than a worker grants itself, so that it can end in its own way
STOP_S = 5.0
NICE = 10  # a run takes long anyway, and the page and its answers should not
_COMMAND = (sys.executable, "-m", "quant_engine.runs.worker")


@dataclass
class _Worker:
    """The process of a run. `needed` is when it was last seen to own its run."""

    process: subprocess.Popen[bytes]
    needed: float


class Supervisor:
    """Does the queue's runs, `at_once` at a time, each in a process of its own, from `start()` to `stop()`."""

    def __init__(self, queue: Queue, command: Sequence[str] = _COMMAND, at_once: int = 1) -> None:
        self._queue = queue
        self._command = tuple(command)
        self._at_once = at_once
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._workers: dict[str, _Worker] = {}

    def start(self) -> None:
        """Begin with the run whose turn it is. Does nothing when already started."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._supervise, name="run-supervisor", daemon=True)
            self._thread.start()
            atexit.register(self.stop)

    def stop(self) -> None:
        """End the workers; their runs go back to the queue and are taken up again by the next page that starts."""
        thread, self._thread = self._thread, None
        if thread is not None:
            atexit.unregister(self.stop)
            self._stopping.set()
            thread.join()

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            try:
                self._check()
            except UserError as refusal:
                # The queue's disk may be full or read-only for a while; the page shows the same sentence.
                logger.warning("%s", refusal)
                self._stopping.wait(STOP_S)
            except Exception:
                # Whatever is wrong with one run, the thread must live on for the others.
                logger.exception("The supervisor of runs met an error.")
                self._stopping.wait(STOP_S)
            self._stopping.wait(TICK_S)
        self._end_workers()

    def _check(self) -> None:
        for run_id, worker in list(self._workers.items()):
            if worker.process.poll() is None:
                self._kill_if_unneeded(run_id, worker)
            else:
                del self._workers[run_id]
                self._record_end(run_id, worker.process)
        if len(self._workers) < self._at_once:
            run_id = self._queue.next_to_start(self._at_once)
            if run_id and run_id not in self._workers:  # a worker that starts has not claimed its run yet
                try:
                    self._start_worker(run_id)
                except OSError as error:
                    self._fail_unstarted(run_id, f"The run's process can't be started ({error.strerror}): free memory.")

    def _start_worker(self, run_id: str) -> None:
        log = self._queue.log_path(run_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            command = [*self._command, str(self._queue.path), run_id, "--parent", str(os.getpid())]
            process = start_child(command, subprocess.DEVNULL, output, output, nice=NICE)
        self._workers[run_id] = _Worker(process, time.monotonic())

    def _kill_if_unneeded(self, run_id: str, worker: _Worker) -> None:
        """Kill a worker that is still there long after its run was cancelled, ended or taken from it."""
        run = self._queue.get(run_id)
        starting, stopping = run.state == "queued", run.cancelling or run.pausing
        if starting or (run.owner == owner_name(worker.process.pid) and not stopping):
            worker.needed = time.monotonic()
        elif time.monotonic() - worker.needed > GRACE_S:
            worker.process.kill()

    def _record_end(self, run_id: str, process: subprocess.Popen[bytes]) -> None:
        """Write to the queue how a worker ended, unless it did so itself."""
        run, owner = self._queue.get(run_id), owner_name(process.pid)
        if process.returncode not in (0, LOST_CLAIM):
            logger.warning("Run %s: its process ended with %s.", run_id, process.returncode)
        if run.state == "queued" and process.returncode not in (0, LOST_CLAIM):
            self._fail_unstarted(run_id, _sentence(process.returncode))
        elif run.cancelling or run.pausing:
            self._queue.confirm_stop(run_id, owner)
        else:
            self._queue.fail(run_id, owner, _sentence(process.returncode))

    def _fail_unstarted(self, run_id: str, sentence: str) -> None:
        """A worker that can't even claim its run would be started for ever: claim the run for it, and fail it."""
        if self._queue.claim(run_id):
            self._queue.fail(run_id, owner_name(), sentence)

    def _end_workers(self) -> None:
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            worker.process.terminate()
        end = time.monotonic() + STOP_S
        for run_id, worker in workers.items():
            try:
                worker.process.wait(max(end - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            try:
                self._queue.release(run_id, owner_name(worker.process.pid))
            except UserError as refusal:
                logger.warning("%s", refusal)  # the lease runs out by itself


def _sentence(code: int) -> str:
    """How a worker's process ended, in one sentence that names what to change."""
    resume = "then retry it: finished blocks are kept."
    if code == -signal.SIGKILL:
        return (
            "The run's process was stopped by the system (signal 9), most likely because memory ran out; choose a"
            f" smaller model or fewer samples, {resume}"
        )
    if code < 0:
        return f"The run's process crashed (signal {-code}); see the log for what it did last, {resume}"
    return f"The run's process ended unexpectedly (exit code {code}); see the log for the reason, {resume}"
