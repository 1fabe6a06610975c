"""Pages, workers and whoever writes to the queue, killed at random: nothing is lost, done twice or left behind.

`make test` kills a few times, with a tiny model; with LOWBIT_LARGE_TESTS a hundred times, with the demo model.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from quant_engine import folders
from quant_engine.progress import Hooks
from quant_engine.runs import folder
from quant_engine.runs.execute import execute
from quant_engine.runs.queue import Queue
from quant_engine.runs.sweep import Sweep, plan

LARGE = "LOWBIT_LARGE_TESTS" in os.environ
KILLS = 100 if LARGE else 3
PAGE = (
    "import sys, time; from quant_engine.runs.queue import Queue; from quant_engine.runs.supervisor import Supervisor;"
)
PAGE += "Supervisor(Queue(sys.argv[1])).start(); time.sleep(3600)"
WRITER = """
import sys
from quant_engine.runs.queue import Queue
queue = Queue(sys.argv[1])
while True:
    for run in queue.list():
        queue.annotate(run.run_id, "a note")
        queue.prioritize(run.run_id, run.priority)
        queue.next_to_start()
"""


def start(code, queue):
    environment = os.environ | {"PYTHONPATH": str(folders.PROJECT)}
    return subprocess.Popen([sys.executable, "-c", code, str(queue.path)], env=environment)


def workers(queue):
    """The processes that hold a run."""
    return [int(run.owner.rpartition(":")[2]) for run in queue.list() if run.owner]


def of_this_queue(queue):
    """All processes that were started with the queue's path."""
    return [
        process for process in psutil.process_iter(["cmdline"]) if str(queue.path) in (process.info["cmdline"] or [])
    ]


def specs_of(model, task, limit):
    settings = "rtn-4-g64,gptq-3-g64,fp16" if LARGE else "rtn-4-g16,gptq-3-g16"
    calibration = {"samples": 8, "length": 64}
    sweep = Sweep(models=model, settings=settings, tasks=task, limit=limit, window=64, calibration=calibration)
    return plan(sweep).specs


@pytest.mark.demo
@pytest.mark.timeout(5400)
def test_whatever_is_killed_every_run_ends_with_the_results_of_an_undisturbed_one(tiny_models, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 2000)
    model = "demo-llm" if LARGE else str(tiny_models / "deep")
    specs = specs_of(model, f"perplexity:{text}", 300)
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    queue, chance = Queue(folders.queue()), random.Random(1)
    queue.submit_sweep(specs)
    page, writer = start(PAGE, queue), start(WRITER, queue)
    killed = {"page": 0, "worker": 0, "writer": 0}
    try:
        while sum(killed.values()) < KILLS:
            time.sleep(chance.uniform(0.2, 4))
            victim = chance.choice([name for name in killed if name != "worker" or workers(queue)])
            killed[victim] += 1
            if victim == "worker":
                for pid in workers(queue):
                    if psutil.pid_exists(pid):
                        os.kill(pid, signal.SIGKILL)
            elif victim == "page":
                page.kill()
                page.wait()
                page = start(PAGE, queue)
            else:
                writer.kill()
                writer.wait()
                writer = start(WRITER, queue)
            failed = [run for run in queue.list() if run.state == "failed"]
            assert all("then retry it: finished blocks are kept" in run.error for run in failed)
            for run in failed:
                queue.resume(run.run_id)
            if all(run.state == "done" for run in queue.list()):  # begin again, and go on killing
                for spec in specs:
                    queue.delete(spec.run_id)
                remove(folders.checkpoints())
                queue.submit_sweep(specs)
        end = time.monotonic() + 600
        while any(run.state != "done" for run in queue.list()):
            assert time.monotonic() < end, queue.list()
            for run in queue.list():
                if run.state == "failed":
                    queue.resume(run.run_id)
            time.sleep(0.2)
    finally:
        page.terminate()
        page.wait()
        writer.kill()
        writer.wait()
    end = time.monotonic() + 60
    while of_this_queue(queue) and time.monotonic() < end:  # a worker that has just begun finds nothing to do
        time.sleep(0.5)
    assert of_this_queue(queue) == []
    assert all(run.owner is None for run in queue.list())
    assert {path.name for path in folders.results().iterdir()} == {spec.run_id for spec in specs}
    assert list((folders.home() / "evaluations").glob("*")) == []
    assert [path for path in folders.home().rglob(".*") if path.suffix != ".lock"] == []
    check_results(specs, tmp_path, monkeypatch)


def remove(path: Path) -> None:
    for inner in sorted(path.rglob("*"), reverse=True):
        inner.rmdir() if inner.is_dir() else inner.unlink()


def check_results(specs, tmp_path, monkeypatch):
    """Holds the runs against those that this process makes, undisturbed, in another home."""
    found = {spec.run_id: folder.run_path(spec.run_id) for spec in specs}
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "undisturbed"))
    for spec in specs:
        here, there = folder.read(execute(spec, Hooks())), folder.read(found[spec.run_id])
        assert [result.value for result in here.results] == [result.value for result in there.results]
        for task in spec.tasks:
            assert folder.read_items(here.path, task) == folder.read_items(there.path, task)
        errors = [
            [
                (layer.block, layer.linear, layer.output_error, layer.weight_error)
                for layer in folder.read_layers(run.path)
            ]
            for run in (here, there)
        ]
        assert errors[0] == errors[1]
