"""Where runs are computed: in this process, on a Ray cluster, or by Hugging Face Jobs.

An executor does one run and has its folder on this machine in the end. The queue, its claims, progress, cancel and
pause are the same for all of them: a process here owns the run and watches over it, wherever it is computed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Protocol, get_args

from quant_engine.deferred import deferred
from quant_engine.progress import Hooks
from quant_engine.spec import RunSpec, UserError, quoted

here = deferred("quant_engine.runs.execute")
ray_executor = deferred("quant_engine.runs.ray_executor")
jobs_executor = deferred("quant_engine.runs.jobs_executor")

Name = Literal["local", "ray", "jobs"]


AT_ONCE: dict[str, int] = {"local": 1, "ray": 8, "jobs": 4}
"""How many runs a page has in work at the same time."""


def at_once() -> int:
    """That of the executor of LOWBIT_EXECUTOR; 1 for one that there is not, whose runs say so."""
    return AT_ONCE.get(name(), 1)


def is_local() -> bool:
    """Whether runs of the page are computed on this machine."""
    return name() == "local"


def name() -> str:
    """What LOWBIT_EXECUTOR says, else local."""
    return os.environ.get("LOWBIT_EXECUTOR") or "local"


class Executor(Protocol):
    """`at_once` is how many runs may be in work at the same time; more than that wait in the queue."""

    at_once: int

    def execute(self, spec: RunSpec, hooks: Hooks) -> Path:
        """The run's folder on this machine. Raises UserError where the user can change something, and Stopped when
        asked to stop."""

    def abandon(self, spec: RunSpec) -> None:
        """Ends what still works elsewhere on a run that was cancelled or paused."""


class LocalExecutor:
    """Computes in this process."""

    at_once = 1

    def execute(self, spec: RunSpec, hooks: Hooks) -> Path:
        return here.execute(spec, hooks)

    def abandon(self, spec: RunSpec) -> None:
        """Nothing works elsewhere."""


def executor(asked: str | None = None) -> Executor:
    """The executor of that name, else that of LOWBIT_EXECUTOR, else the local one. Raises UserError for a name that
    there is not, and where what it needs is not installed or set."""
    chosen = asked or name()
    match chosen:
        case "local":
            return LocalExecutor()
        case "ray":
            return ray_executor.RayExecutor()
        case "jobs":
            return jobs_executor.JobsExecutor()
    raise UserError(f"There is no executor {quoted(chosen)}: choose {', '.join(get_args(Name))}.")
