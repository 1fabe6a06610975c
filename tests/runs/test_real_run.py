"""The real engine in a real worker process, on the demo language model."""

import os
import signal
import time

import pytest

from quant_engine import folders
from quant_engine.runs import folder
from quant_engine.runs.queue import Queue
from quant_engine.runs.resolve import resolve
from quant_engine.runs.supervisor import Supervisor
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec

pytestmark = pytest.mark.demo


@pytest.fixture
def queue(lab):
    queue = Queue(folders.queue())
    supervisor = Supervisor(queue)
    supervisor.start()
    yield queue
    supervisor.stop()


def wait_for(queue, run_id, condition, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run = queue.get(run_id)
        if condition(run):
            return run
        assert run.state in ("queued", "running"), f"{run.error}\n{queue.log_tail(run_id)}"
        time.sleep(0.1)
    raise AssertionError(f"{run} after {seconds} s:\n{queue.log_tail(run_id)}")


def test_a_killed_run_resumes_after_its_last_finished_block_and_its_results_are_on_disk(queue):
    setting = QuantSetting(method="rtn", w_bits=4, group_size=64)
    spec = resolve(
        RunSpec(weights=WeightSpec(model="demo-llm", setting=setting), tasks=("perplexity",), limit=1, window=128)
    ).spec
    run_id = queue.submit(spec)
    run = wait_for(queue, run_id, lambda run: run.progress.stage == "quantizing" and (run.progress.block or 0) >= 3)
    os.kill(int(run.owner.rpartition(":")[2]), signal.SIGKILL)
    with pytest.raises(AssertionError, match="signal 9"):
        wait_for(queue, run_id, lambda run: run.state == "done")

    queue.resume(run_id)
    first = wait_for(queue, run_id, lambda run: run.progress.stage == "quantizing" or run.state == "done").progress
    assert first.stage == "finished" or first.block >= 3
    wait_for(queue, run_id, lambda run: run.state == "done")
    results = folder.read(folder.run_path(run_id)).results
    assert [result.task for result in results] == list(spec.tasks)
    assert 5 < results[0].value < 200
