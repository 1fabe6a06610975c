"""The process that does one run: `python -m quant_engine.runs.worker QUEUE RUN_ID`, started by the page's supervisor.

The command line does the same work in its own process through `run_claimed`, under the same claim, so a page and a
terminal never do one run twice at once. Where the run is computed is for its executor to say (`executors.py`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from quant_engine.failures import failure
from quant_engine.progress import Hooks, Progress, Stopped
from quant_engine.runs.executors import Executor, LocalExecutor, executor
from quant_engine.runs.queue import ENDED, Queue, QueuedRun, Standing, owner_name
from quant_engine.spec import UserError

BEAT_S = 0.5
GRACE_S = 10.0
LOST_CLAIM = 3

_RETRY = "start the run again: finished blocks are kept"
_LESS_MEMORY = (
    "choose a smaller model, or start the run again when other programs have freed some: finished blocks are kept"
)

OnProgress = Callable[[Progress], None]


class _Heartbeat(threading.Thread):
    """Renews the lease, carries the latest progress to the queue, and learns whether the run is to stop.

    A thread of its own, so that the engine's progress calls cost nothing however often they come, and a block that
    computes for a minute doesn't lose the lease.
    """

    def __init__(self, queue: Queue, run_id: str, log: Callable[[str], None]) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.standing: Standing = "mine"
        self._queue, self._run_id, self._log = queue, run_id, log
        self._progress: Progress | None = None
        self._ended = threading.Event()

    def report(self, progress: Progress) -> None:
        """Carry this with the next beat."""
        self._progress = progress

    def run(self) -> None:
        while self.standing == "mine" and not self._ended.wait(BEAT_S):
            progress, self._progress = self._progress, None
            try:
                self.standing = self._queue.report(self._run_id, owner_name(), progress)
            except UserError as refusal:
                # The run itself may be fine: go on, and try again with the next beat.
                self._log(f"Could not renew the lease: {refusal}")

    def stop(self) -> None:
        self._ended.set()
        self.join()


def run_claimed(
    queue: Queue,
    run_id: str,
    on_progress: OnProgress,
    executor: Executor | None = None,
    shutdown: threading.Event | None = None,
) -> QueuedRun:
    """Do a queued run and return it as it ended: done, failed, cancelled or paused; as it is when `shutdown` is set.

    When another process has the run already, follow that one and return when it ends. Ctrl-C cancels a run that this
    process does and leaves one that it follows alone.
    """
    executor, shutdown = executor or LocalExecutor(), shutdown or threading.Event()
    while True:
        run = queue.claim(run_id)
        if run:
            return _work(queue, run, on_progress, shutdown, executor)
        run = queue.get(run_id)
        if run.state in ENDED or shutdown.is_set():
            return run
        on_progress(run.progress)
        time.sleep(BEAT_S)


def _work(
    queue: Queue, run: QueuedRun, on_progress: OnProgress, shutdown: threading.Event, executor: Executor
) -> QueuedRun:
    """Execute a run that this process has claimed, and write to the queue how it ended."""
    run_id, owner = run.run_id, owner_name()
    log = _Log(queue.log_path(run_id))
    heartbeat = _Heartbeat(queue, run_id, log)

    def report(progress: Progress) -> None:
        heartbeat.report(progress)
        on_progress(progress)

    def should_stop() -> bool:
        return heartbeat.standing != "mine" or shutdown.is_set()

    try:
        weights = run.spec.weights
        log(f"{weights.model}, {weights.setting.label}: attempt {run.attempts}, process {os.getpid()}.")
        heartbeat.start()
        folder = executor.execute(run.spec, Hooks(report, should_stop, log))
        log(f"Done: {folder}")
        queue.finish(run_id, owner)
    except KeyboardInterrupt:
        executor.abandon(run.spec)
        queue.confirm_stop(run_id, owner)
        raise
    except Stopped:
        log("Stopped; finished blocks are kept.")
        if heartbeat.standing in ("cancel", "pause"):
            executor.abandon(run.spec)
            queue.confirm_stop(run_id, owner)
        else:
            queue.release(run_id, owner)
    except Exception as error:
        log(traceback.format_exc())
        queue.fail(run_id, owner, failure(error, "run", _LESS_MEMORY, _RETRY))
    finally:
        heartbeat.stop()
    return queue.get(run_id)


class _Log:
    """Appends dated lines to the run's log file; a log that can't be written doesn't end the run."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def __call__(self, line: str) -> None:
        dated = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line.rstrip()}\n"
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(dated)
        except OSError as error:
            sys.stderr.write(f"{dated}({self._path} can't be written: {error})\n")


def main() -> int:
    """Claim the run, do it, and end with 0, or with LOST_CLAIM when there was nothing to claim."""
    parser = argparse.ArgumentParser(prog="python -m quant_engine.runs.worker", description="Do one queued run.")
    parser.add_argument("queue", type=Path, help="the SQLite file of the run queue")
    parser.add_argument("run_id")
    parser.add_argument("--parent", type=int, help="end when this process, which started the worker, is gone")
    arguments = parser.parse_args()
    queue = Queue(arguments.queue)

    shutdown = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: shutdown.set())
    run = queue.claim(arguments.run_id)
    if run is None:
        return LOST_CLAIM
    threading.Thread(target=_leave_in_time, args=(queue, run.run_id, shutdown, arguments.parent), daemon=True).start()
    try:
        chosen = executor()
    except UserError as refusal:
        queue.fail(run.run_id, owner_name(), str(refusal))
        return 0
    _work(queue, run, lambda _: None, shutdown, chosen)
    return 0


def _leave_in_time(queue: Queue, run_id: str, shutdown: threading.Event, parent: int | None) -> None:
    """Stop the run when it is asked to end or when the page is gone, and end the process if the run won't stop.

    Without this a killed page would leave its worker behind, computing for nobody.
    """
    while not shutdown.wait(BEAT_S):
        if parent and os.getppid() != parent:
            shutdown.set()
    time.sleep(GRACE_S)
    try:
        queue.release(run_id, owner_name())
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
