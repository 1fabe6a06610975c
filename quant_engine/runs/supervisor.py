"""The page's side of runs: a thread that starts one worker process after another and notices how each one ends.

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


class Supervisor:
    """Does the queue's runs, one at a time, each in a process of its own, from `start()` to `stop()`."""

    def __init__(self, queue: Queue, command: Sequence[str] = _COMMAND) -> None:
        self._queue = queue
        self._command = tuple(command)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._run_id = ""
        self._last_needed = 0.0

    def start(self) -> None:
        """Begin with the oldest run that waits. Does nothing when already started."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._supervise, name="run-supervisor", daemon=True)
            self._thread.start()
            atexit.register(self.stop)

    def stop(self) -> None:
        """End the worker; its run goes back to the queue and is taken up again by the next page that starts."""
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
        self._end_worker()

    def _check(self) -> None:
        if self._process is None:
            run_id = self._queue.next_to_start()
            if run_id:
                try:
                    self._start_worker(run_id)
                except OSError as error:
                    self._fail_unstarted(run_id, f"The run's process can't be started ({error.strerror}): free memory.")
        elif self._process.poll() is None:
            self._kill_if_unneeded()
        else:
            process, self._process = self._process, None
            self._record_end(process)

    def _start_worker(self, run_id: str) -> None:
        log = self._queue.log_path(run_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            command = [*self._command, str(self._queue.path), run_id, "--parent", str(os.getpid())]
            self._process = start_child(command, subprocess.DEVNULL, output, output, nice=NICE)
        self._run_id, self._last_needed = run_id, time.monotonic()

    def _kill_if_unneeded(self) -> None:
        """Kill a worker that is still there long after its run was cancelled, ended or taken from it."""
        run = self._queue.get(self._run_id)
        starting = run.state == "queued"
        if starting or (run.owner == owner_name(self._process.pid) and not run.cancelling):
            self._last_needed = time.monotonic()
        elif time.monotonic() - self._last_needed > GRACE_S:
            self._process.kill()

    def _record_end(self, process: subprocess.Popen[bytes]) -> None:
        """Write to the queue how a worker ended, unless it did so itself."""
        run, owner = self._queue.get(self._run_id), owner_name(process.pid)
        if process.returncode not in (0, LOST_CLAIM):
            logger.warning("Run %s: its process ended with %s.", run.run_id, process.returncode)
        if run.state == "queued" and process.returncode not in (0, LOST_CLAIM):
            self._fail_unstarted(run.run_id, _sentence(process.returncode))
        elif run.cancelling:
            self._queue.confirm_cancel(run.run_id, owner)
        else:
            self._queue.fail(run.run_id, owner, _sentence(process.returncode))

    def _fail_unstarted(self, run_id: str, sentence: str) -> None:
        """A worker that can't even claim its run would be started for ever: claim the run for it, and fail it."""
        if self._queue.claim(run_id):
            self._queue.fail(run_id, owner_name(), sentence)

    def _end_worker(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        try:
            self._queue.release(self._run_id, owner_name(process.pid))
        except UserError as refusal:
            logger.warning("%s", refusal)  # the lease runs out by itself


def _sentence(code: int) -> str:
    """How a worker's process ended, in one sentence that names what to change."""
    resume = "then press Resume: finished blocks are kept."
    if code == -signal.SIGKILL:
        return (
            "The run's process was stopped by the system (signal 9), most likely because memory ran out; choose a"
            f" smaller model or fewer samples, {resume}"
        )
    if code < 0:
        return f"The run's process crashed (signal {-code}); see the log for what it did last, {resume}"
    return f"The run's process ended unexpectedly (exit code {code}); see the log for the reason, {resume}"
