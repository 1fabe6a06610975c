"""Runs on a Ray cluster of two nodes on this machine: the same results as here, and what happens when a node dies.

Where Ray is not installed these tests are skipped. The large sweep is run by `make test-distributed`.
"""

import os
import threading
import time

import pytest
from typer.testing import CliRunner

from quant_engine import folders
from quant_engine.cli import app
from quant_engine.progress import Hooks
from quant_engine.runs import archive, folder
from quant_engine.runs.execute import execute
from quant_engine.runs.queue import ENDED, Queue
from quant_engine.runs.sweep import Sweep, plan

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
large = pytest.mark.skipif("LOWBIT_LARGE_TESTS" not in os.environ, reason="make test-distributed runs it")

THREE = "fp16,rtn-4-g16,gptq-3-g16"
SIX = f"{THREE},rtn-2,awq-4-g16,quip-2"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two nodes that share a home, which is not that of this process."""
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "nodes"))
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    monkeypatch.setenv("LOWBIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def task(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 8000)
    return f"perplexity:{text}"


def options(tiny_models, task, settings, windows=2, samples=4):
    return [
        *("-m", str(tiny_models / "deep"), "--settings", settings, "-t", task, "--limit", str(windows)),
        *("--window", "64", "--samples", str(samples), "--length", "64"),
    ]


def specs_of(tiny_models, task, settings, windows=2, samples=4):
    return plan(
        Sweep(
            models=str(tiny_models / "deep"),
            settings=settings,
            tasks=task,
            limit=windows,
            window=64,
            calibration={"samples": samples, "length": 64},
        )
    ).specs


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.05)


def equal(specs, root, monkeypatch):
    """Whether the runs' numbers and items are those that this process finds, to the last digit."""
    monkeypatch.setenv("LOWBIT_HOME", str(root))
    there = {spec.run_id: folder.run_path(spec.run_id) for spec in specs}
    monkeypatch.setenv("LOWBIT_HOME", str(root.parent / "again"))
    for spec in specs:
        here = execute(spec, Hooks())
        first, second = folder.read(here), folder.read(there[spec.run_id])
        assert [result.value for result in first.results] == [result.value for result in second.results]
        for name in spec.tasks:
            assert folder.read_items(first.path, name) == folder.read_items(second.path, name)
        parts = [
            [layer.model_copy(update={"seconds": 0}) for layer in folder.read_layers(path)]
            for path in (first.path, second.path)
        ]
        assert parts[0] == parts[1]


def test_a_sweep_on_two_nodes_finds_what_is_found_here(cluster, tiny_models, task, tmp_path, monkeypatch):
    settings = SIX if "LOWBIT_LARGE_TESTS" in os.environ else THREE
    done = CliRunner().invoke(app, ["sweep", *options(tiny_models, task, settings), "--executor", "ray"])
    assert done.exit_code == 0, done.output
    specs = specs_of(tiny_models, task, settings)
    logs = [Queue(folders.queue()).log_tail(spec.run_id) for spec in specs]
    assert all("node " in log for log in logs)
    assert list((tmp_path / "home").glob("checkpoints/*")) == []
    equal(specs, tmp_path / "home", monkeypatch)


def test_a_run_on_the_cluster_is_cancelled_and_a_refusal_comes_home(cluster, tiny_models, task, monkeypatch):
    slow = "awq-4-g16", 2, 4096
    (spec,) = specs_of(tiny_models, task, *slow)
    queue = Queue(folders.queue())
    queue.submit(spec)

    def cancel():
        wait_until(lambda: queue.get(spec.run_id).progress.block or queue.get(spec.run_id).state in ENDED)
        queue.cancel(spec.run_id)

    stopper = threading.Thread(target=cancel)
    stopper.start()
    done = CliRunner().invoke(app, ["sweep", *options(tiny_models, task, *slow), "--executor", "ray"])
    stopper.join()
    assert done.exit_code == 1, done.output
    assert queue.get(spec.run_id).state == "cancelled"
    (folders.home().parent / "text.txt").write_text("Other words. " * 900)
    queue.submit(spec)
    refused = CliRunner().invoke(app, ["queue", "work", "--executor", "ray"])
    assert refused.exit_code == 1
    assert "changed" in queue.get(spec.run_id).error


@large
def test_a_sweep_ends_well_when_a_node_dies_midway(cluster, tiny_models, task, tmp_path, monkeypatch):
    specs = specs_of(tiny_models, task, SIX, windows=60)
    doomed = next(node for node in cluster.worker_nodes)
    queue = Queue(folders.queue())

    def kill():
        wait_until(lambda: any(0.1 < run.progress.fraction < 1 for run in queue.list()))
        cluster.remove_node(doomed, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    done = CliRunner().invoke(app, ["sweep", *options(tiny_models, task, SIX, windows=60), "--executor", "ray"])
    killer.join()
    assert done.exit_code == 0, done.output
    assert {run.state for run in queue.list()} == {"done"}
    equal(specs, tmp_path / "home", monkeypatch)


def test_without_a_cluster_a_sentence_says_how_to_start_one(tiny_models, task, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    refused = CliRunner().invoke(app, ["sweep", *options(tiny_models, task, "fp16"), "--executor", "ray"])
    assert refused.exit_code == 2
    assert "ray start --head" in refused.output


def test_a_run_travels_whole(tiny_models, task, tmp_path):
    (spec,) = specs_of(tiny_models, task, "rtn-4-g16")
    path = execute(spec, Hooks())
    there = archive.unpack(archive.pack(path), spec.run_id, tmp_path / "there")
    assert archive.pack(there) == archive.pack(path)
