"""Runs as Hugging Face Jobs: for a Space without the memory or GPU, with results through the shared data set.

LOWBIT_JOBS_IMAGE is the container's image, a Space (hf.co/spaces/OWNER/NAME) or one of a registry that holds this
project; a Space uses its own. LOWBIT_JOBS_FLAVOR is the hardware. A job that is at work on a run already is followed,
whoever started it: a page that starts again starts none twice.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from quant_engine import hub_jobs
from quant_engine.progress import Hooks, Progress
from quant_engine.runs import shared
from quant_engine.runs.queue import RESUMABLE, Queue
from quant_engine.spec import RunSpec, UserError

LOOK_S = 10.0
PATIENCE_S = 600.0
"""For so long a hub that does not answer is asked again; the job works on meanwhile."""
LINES = 400
TIMEOUT = "12h"
_COMMAND = ("python", "-m", "quant_engine.runs.job")


class JobsExecutor:
    """Starts and follows one job for each run."""

    at_once = 4

    def __init__(self) -> None:
        """Raises UserError where the data set or the image is not set."""
        repository, space = shared.repository(), os.environ.get("SPACE_ID")
        if repository is None:
            raise UserError("Jobs bring their results home in a data set: set LOWBIT_SHARED to OWNER/NAME of one.")
        image = os.environ.get("LOWBIT_JOBS_IMAGE") or (f"hf.co/spaces/{space}" if space else None)
        if image is None:
            raise UserError("Jobs need an image with this project: set LOWBIT_JOBS_IMAGE, as hf.co/spaces/YOU/LAB.")
        self._repository, self._image = repository, image

    def execute(self, spec: RunSpec, hooks: Hooks) -> Path:
        found = shared.fetch(self._repository, spec.run_id)
        if found:
            hooks.log(f"The run was in {self._repository} already.")
            return found
        job = hub_jobs.working(spec.run_id) or self._start(spec)
        hooks.log(f"Job {job} works on it.")
        problem = self._follow(job, hooks)
        path = shared.fetch(self._repository, spec.run_id)
        if path is None:
            raise UserError(problem or f"The job {job} ended without a result in {self._repository}: see its log.")
        return path

    def abandon(self, spec: RunSpec) -> None:
        job = hub_jobs.working(spec.run_id)
        if job:
            hub_jobs.cancel(job)

    def _start(self, spec: RunSpec) -> str:
        flavor = os.environ.get("LOWBIT_JOBS_FLAVOR") or ("a10g-small" if spec.device == "cuda" else "cpu-upgrade")
        return hub_jobs.start(
            spec.run_id,
            image=self._image,
            command=_COMMAND,
            env={"LOWBIT_SPEC": spec.model_dump_json(), "LOWBIT_SHARED": self._repository},
            flavor=flavor,
            timeout=TIMEOUT,
        )

    def _follow(self, job: str, hooks: Hooks) -> str:
        """Waits until a job ends, with its progress and log; why it failed, as far as that is known. Raises Stopped
        when asked to stop; the job then works on, unless it is abandoned."""
        reader, answered = _LogReader(hooks), time.monotonic()
        while True:
            try:
                stage, message = hub_jobs.stage(job)
                reader.read(hub_jobs.log_lines(job, LINES))
                answered = time.monotonic()
            except UserError as refusal:
                if time.monotonic() - answered > PATIENCE_S:
                    raise
                hooks.log(str(refusal))
                stage, message = "", ""
            if stage and stage not in hub_jobs.WORKING:
                ended = f"The job {job} ended as {stage}{f' ({message})' if message else ''}: see its log on the hub."
                return reader.problem or ("" if stage == hub_jobs.DONE else ended)
            end = time.monotonic() + LOOK_S
            while time.monotonic() < end:
                hooks.check_stop()
                time.sleep(0.2)


def end_unwanted(queue: Queue) -> None:
    """Ends the jobs of runs that this queue has as cancelled, paused or failed: of one that was cancelled while no
    process followed its job."""
    jobs = hub_jobs.all_working()
    runs = queue.several(set(jobs.values()))
    for job, run_id in jobs.items():
        if run_id in runs and runs[run_id].state in RESUMABLE:
            hub_jobs.cancel(job)


class _LogReader:
    """Hands on what a job says, each line once."""

    def __init__(self, hooks: Hooks) -> None:
        self.problem = ""
        self._hooks, self._last = hooks, 0

    def read(self, lines: list[str]) -> None:
        for line in lines:
            try:
                words = json.loads(line)
                number = int(words["n"])
            except (ValueError, TypeError, KeyError):
                continue  # of a library, or of the container
            if number <= self._last:
                continue
            self._last = number
            if "log" in words:
                self._hooks.log(str(words["log"]))
            if "error" in words:
                self.problem = str(words["error"])
            if "progress" in words:
                try:
                    self._hooks.progress(Progress.model_validate(words["progress"]))
                except ValueError:
                    continue  # another version's
