"""The page's side of shared results: a thread that looks at the data set at the start and every so often."""

from __future__ import annotations

import logging
import threading
import time

from quant_engine.runs import executors, jobs_executor, shared
from quant_engine.runs.queue import Queue
from quant_engine.spec import UserError

logger = logging.getLogger(__name__)

LOOK_S = 600.0
TICK_S = 15.0
"""How often results of this machine are looked for: each is added soon after it is there."""


class Sharing:
    """Fetches and adds runs from `start()` to `stop()`, and ends jobs that nobody wants any more; `problem` is why the
    last look failed, in a sentence."""

    def __init__(self, repository: str, queue: Queue | None = None) -> None:
        self.repository, self.problem = repository, ""
        self._queue = queue
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._share, name="sharing", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _share(self) -> None:
        looked, seen = -LOOK_S, set[str]()
        while not self._stopping.is_set():
            own = {path.name for path in shared.own()}
            if own - seen or time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                if self._look():
                    seen = own
            self._end_jobs()
            self._stopping.wait(TICK_S if not self.problem else LOOK_S / 10)

    def _end_jobs(self) -> None:
        if self._queue is None or executors.name() != "jobs":
            return
        try:
            jobs_executor.end_unwanted(self._queue)
        except UserError as refusal:
            logger.warning("%s", refusal)

    def _look(self) -> bool:
        try:
            exchanged = shared.exchange(self.repository, self._stopping.is_set)
        except UserError as refusal:
            self.problem = str(refusal)
            logger.warning("%s", refusal)
            return False
        except Exception:
            self.problem = f"The shared results in {self.repository} could not be read."
            logger.exception("Shared results met an error.")
            return False
        self.problem = ""
        for refusal in exchanged.refused:
            logger.warning("%s", refusal)
        return True
