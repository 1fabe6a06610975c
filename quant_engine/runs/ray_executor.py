"""Runs on a Ray cluster: each is a task that Ray puts on a node with the processors, the GPU and the memory it needs.

The cluster is that of RAY_ADDRESS, else the one that runs on this machine. Every node has this project installed. A
task whose node or process dies is taken up by another; where LOWBIT_HOME lies on storage that the nodes share, it goes
on behind the last finished block. The run folder comes home as an archive and is checked like any file of others.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

from quant_engine import __version__, folders
from quant_engine.deferred import deferred
from quant_engine.failures import failure
from quant_engine.progress import Hooks, Progress, Stopped
from quant_engine.runs import archive, folder
from quant_engine.runs.needs import needs
from quant_engine.spec import RunSpec, UserError

here = deferred("quant_engine.runs.execute")
ray = deferred("ray")
exceptions = deferred("ray.exceptions")
scheduling = deferred("ray.util.scheduling_strategies")
torch = deferred("torch")

BEAT_S = 0.5
PATIENCE_S = 5.0
RETRIES = 5
"""How often a run is taken up again whose node or process died."""


class RayExecutor:
    """Hands runs to the cluster and brings their folders home. As many are in work as its processors hold."""

    def __init__(self) -> None:
        """Connects to the cluster. Raises UserError where there is none, or Ray is not installed."""
        address = os.environ.get("RAY_ADDRESS") or "auto"
        try:
            if not ray.is_initialized():
                _check_answers(address)
                ray.init(address=address, log_to_driver=False, configure_logging=False)
        except ImportError:
            raise UserError("Ray is not installed: pip install 'low-bit-lab[distributed]' on each node.") from None
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"No Ray cluster answers ({type(error).__name__}): start one with `ray start --head`, or set "
                "RAY_ADDRESS to that of one."
            ) from None
        self.at_once = max(1, sum(int(node.get("CPU", 0)) // self._threads() for node in _nodes()))

    def execute(self, spec: RunSpec, hooks: Hooks) -> Path:
        if folder.exists(spec.run_id):
            return here.execute(spec, hooks)
        mailbox = self._mailbox()
        try:
            outcome = self._follow(self._start(spec, mailbox), mailbox, hooks)
        finally:
            ray.kill(mailbox)
        match outcome:
            case {"archive": content}:
                with folder.disk_errors():
                    return archive.unpack(content, spec.run_id, folders.results())
            case {"refusal": sentence}:
                raise UserError(sentence)
        raise Stopped

    def abandon(self, spec: RunSpec) -> None:
        """The task was asked to stop, and has."""

    @staticmethod
    def _mailbox() -> Any:
        """On this node, for it is of no use when this process is gone."""
        node = scheduling.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=node).remote()

    @staticmethod
    def _start(spec: RunSpec, mailbox: Any) -> Any:
        """The task, with as many threads as it would have here: another number adds up in another order."""
        threads = RayExecutor._threads()
        memory = min(needs(spec).memory or 0, max(node.get("memory", 0) for node in _nodes()))
        options = {"num_cpus": threads, "num_gpus": int(spec.device == "cuda"), "memory": int(memory)}
        environment = {name: os.environ[name] for name in ("HF_HUB_OFFLINE",) if name in os.environ}
        work = ray.remote(max_calls=1)(_work).options(  # a process for each run: its peak memory is its own
            max_retries=RETRIES,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads), **environment}},
            **options,
        )
        return work.remote(spec.model_dump_json(), __version__, mailbox)

    @staticmethod
    def _threads() -> int:
        return min(torch.get_num_threads(), int(max(node.get("CPU", 0) for node in _nodes())) or 1)

    @staticmethod
    def _follow(task: Any, mailbox: Any, hooks: Hooks) -> dict[str, Any]:
        stopping = False
        try:
            while True:
                ended, _ = ray.wait([task], timeout=BEAT_S)
                for progress, lines in ray.get(mailbox.take.remote()):
                    for line in lines:
                        hooks.log(line)
                    if progress:
                        hooks.progress(Progress.model_validate_json(progress))
                if ended:
                    return ray.get(task)
                if hooks.should_stop() and not stopping:
                    stopping = True
                    if not ray.get(mailbox.stop.remote()):
                        ray.cancel(task)  # it waits for a node
        except exceptions.TaskCancelledError:
            raise Stopped from None
        except exceptions.RayError as error:
            raise UserError(
                f"The run was lost on the cluster {RETRIES + 1} times ({type(error).__name__}), most likely because "
                "memory ran out: give its nodes more, or start the run again: finished blocks are kept."
            ) from error


def _check_answers(address: str) -> None:
    """Raises OSError or ValueError if nothing listens at host:port: Ray itself would end this process."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()


def _nodes() -> list[dict[str, float]]:
    """What the living nodes have."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class _Mailbox:
    """Between a task and the process that follows it, in an actor: progress and log there, the word to stop back."""

    def __init__(self) -> None:
        self._letters: list[tuple[str | None, list[str]]] = []
        self._stop = self._started = False

    def put(self, progress: str | None, lines: list[str]) -> bool:
        """Takes news, and answers whether the task is to stop."""
        self._started = True
        self._letters.append((progress, lines))
        return self._stop

    def take(self) -> list[tuple[str | None, list[str]]]:
        letters, self._letters = self._letters, []
        return letters

    def stop(self) -> bool:
        """Whether the task has begun, and will read of it."""
        self._stop = True
        return self._started


def _work(spec: str, version: str, mailbox: Any) -> dict[str, Any]:
    """The task: does the run on its node. An outcome is an archive, a refusal, or neither when it was stopped."""
    if version != __version__:
        return {"refusal": f"A node has version {__version__} of Low-Bit Lab, not {version}: install the same on each."}
    postman = _Postman(mailbox)
    postman.start()
    try:
        postman.log(f"node {ray.util.get_node_ip_address()}, process {os.getpid()}")
        path = here.execute(
            RunSpec.model_validate_json(spec), Hooks(postman.progress, lambda: postman.to_stop, postman.log)
        )
        return {"archive": archive.pack(path)}
    except Stopped:
        return {}
    except Exception as error:
        return {"refusal": failure(error, "run", "give the nodes more memory", "start it again")}
    finally:
        postman.end()


class _Postman(threading.Thread):
    """Carries news to the mailbox, twice a second, and brings the word to stop."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(name="postman", daemon=True)
        self.to_stop = False
        self._mailbox, self._ended = mailbox, threading.Event()
        self._lines: list[str] = []
        self._progress: Progress | None = None

    def progress(self, state: Progress) -> None:
        self._progress = state

    def log(self, line: str) -> None:
        self._lines.append(line)

    def run(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._deliver()

    def end(self) -> None:
        self._ended.set()
        self.join()
        self._deliver()

    def _deliver(self) -> None:
        lines, self._lines = self._lines, []
        progress, self._progress = self._progress, None
        try:
            self.to_stop = ray.get(self._mailbox.put.remote(progress and progress.model_dump_json(), lines))
        except exceptions.RayError:
            self.to_stop = True  # nobody follows any more
