"""Runs in processes of their own: how they end, and what happens when the page ends first."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quant_engine.runs import supervisor as supervisor_module
from quant_engine.runs.queue import Queue
from quant_engine.runs.supervisor import Supervisor
from quant_engine.runs.worker import run_claimed
from quant_engine.spec import RunSpec, WeightSpec

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in.py")))


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("STAND_IN_MARKS", str(tmp_path / "marks"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return Queue(tmp_path / "queue.sqlite")


@pytest.fixture
def supervisor(queue):
    supervisor = Supervisor(queue, STAND_IN)
    supervisor.start()
    yield supervisor
    supervisor.stop()


def submit(queue, model):
    return queue.submit(RunSpec(weights=WeightSpec(model=model), tasks=("perplexity",)))


def wait_for(queue, run_id, *states, condition=lambda run: True, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run = queue.get(run_id)
        if run.state in states and condition(run):
            return run
        time.sleep(0.05)
    raise AssertionError(f"{run} after {seconds} s:\n{queue.log_tail(run_id)}")


def worker_pid(run):
    return int(run.owner.rpartition(":")[2])


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_runs_are_done_one_after_another_and_leave_a_log(queue, supervisor):
    first, second = submit(queue, "work=0.3"), submit(queue, "print")
    wait_for(queue, first, "done")
    run = wait_for(queue, second, "done")
    assert run.started >= queue.get(first).ended
    assert "the engine was asked to print" in queue.log_tail(second)
    assert "a library said something" in queue.log_tail(second)


def test_progress_shows_while_a_run_runs(queue, supervisor):
    run_id = submit(queue, "work=30")
    run = wait_for(queue, run_id, "running", condition=lambda run: run.progress.block == 3)
    assert (run.progress.stage, run.progress.linear, run.progress.fraction) == ("quantizing", "q_proj", 0.5)


def test_a_worker_steps_back_for_the_page_in_memory_and_processor(queue, supervisor):
    pid = worker_pid(wait_for(queue, submit(queue, "work=30"), "running"))
    own, its = (int(Path(f"/proc/{who}/oom_score_adj").read_text()) for who in ("self", pid))
    assert its == min(own + 500, 1000)
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("user-error", "The model has no pictures: choose another task."),
        ("memory", "Memory ran out: choose a smaller model"),
        ("disk", "The disk is full: free some space"),
        ("bug", "The run failed inside the engine (ZeroDivisionError): the log has the details."),
        ("die=9", "stopped by the system (signal 9), most likely because memory ran out; choose a smaller model"),
        ("die=11", "crashed (signal 11)"),
        ("exit=7", "ended unexpectedly (exit code 7)"),
    ],
)
def test_every_way_to_fail_is_one_sentence_and_the_next_run_goes_on(queue, supervisor, model, said):
    failing, next_one = submit(queue, model), submit(queue, "print")
    run = wait_for(queue, failing, "failed")
    assert said in run.error
    assert "\n" not in run.error
    if model == "bug":
        assert "Traceback" in queue.log_tail(failing)
    wait_for(queue, next_one, "done")


def test_a_worker_that_is_killed_fails_its_run_and_resume_takes_it_up_again(queue, supervisor):
    run_id = submit(queue, "work=1.5")
    os.kill(worker_pid(wait_for(queue, run_id, "running")), signal.SIGKILL)
    assert "signal 9" in wait_for(queue, run_id, "failed").error
    queue.resume(run_id)
    assert wait_for(queue, run_id, "done").error is None


def test_a_worker_that_cannot_even_start_fails_its_run_once(queue):
    supervisor = Supervisor(queue, (sys.executable, "-c", "raise SystemExit('no such module')"))
    supervisor.start()
    try:
        run = wait_for(queue, submit(queue, "print"), "failed")
    finally:
        supervisor.stop()
    assert "exit code 1" in run.error
    assert "no such module" in queue.log_tail(run.run_id)


def test_a_running_run_is_cancelled_soon_and_the_next_one_starts(queue, supervisor):
    run_id, next_one = submit(queue, "work=30"), submit(queue, "print")
    wait_for(queue, run_id, "running")
    asked = time.monotonic()
    queue.cancel(run_id)
    wait_for(queue, run_id, "cancelled")
    assert time.monotonic() - asked < 3
    wait_for(queue, next_one, "done")


def test_a_run_that_does_not_listen_is_killed_when_cancelled(queue, supervisor, monkeypatch):
    monkeypatch.setattr(supervisor_module, "GRACE_S", 0.5)
    run_id = submit(queue, "hang")
    pid = worker_pid(wait_for(queue, run_id, "running"))
    queue.cancel(run_id)
    wait_for(queue, run_id, "cancelled")
    assert not is_alive(pid)


def test_stopping_the_page_ends_the_worker_and_the_next_page_goes_on_with_the_run(queue, supervisor):
    run_id = submit(queue, "work=1.5")
    pid = worker_pid(wait_for(queue, run_id, "running"))
    supervisor.stop()
    assert not is_alive(pid)
    run = queue.get(run_id)
    assert (run.state, run.attempts) == ("queued", 0)
    supervisor.start()
    wait_for(queue, run_id, "done")


def test_a_page_that_is_killed_leaves_no_worker_and_its_run_goes_on_with_the_next_page(queue):
    code = (
        "import sys, time; from quant_engine.runs.queue import Queue\n"
        "from quant_engine.runs.supervisor import Supervisor\n"
        "Supervisor(Queue(sys.argv[1]), sys.argv[2:]).start(); time.sleep(60)"
    )
    page = subprocess.Popen([sys.executable, "-c", code, str(queue.path), *STAND_IN])
    run_id = submit(queue, "work=3")
    pid = worker_pid(wait_for(queue, run_id, "running"))
    page.kill()
    page.wait()
    wait_for(queue, run_id, "queued")
    end = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(pid)

    supervisor = Supervisor(queue, STAND_IN)
    supervisor.start()
    try:
        wait_for(queue, run_id, "done")
    finally:
        supervisor.stop()


def test_two_pages_on_one_queue_do_each_run_once(queue, supervisor, tmp_path):
    other = Supervisor(queue, STAND_IN)
    other.start()
    try:
        ids = [submit(queue, f"work=0.{number}") for number in range(1, 5)]
        for run_id in ids:
            wait_for(queue, run_id, "done")
    finally:
        other.stop()
    starts = [line.split()[0] for line in (tmp_path / "marks").read_text().splitlines()]
    assert sorted(starts) == sorted(ids)


def test_the_terminal_follows_a_run_that_the_page_already_does(queue, supervisor):
    run_id = submit(queue, "work=1.5")
    wait_for(queue, run_id, "running", condition=lambda run: run.progress.block == 3)
    seen = []
    assert run_claimed(queue, run_id, seen.append).state == "done"
    assert any(progress.block == 3 for progress in seen)


def test_the_page_side_imports_no_torch(queue):
    code = "import sys, quant_engine.runs.supervisor; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_running_run_pauses_and_goes_on_when_it_is_resumed(queue, supervisor):
    run_id = submit(queue, "work=2")
    wait_for(queue, run_id, "running")
    queue.pause(run_id)
    wait_for(queue, run_id, "paused")
    queue.resume(run_id)
    wait_for(queue, run_id, "done")


def test_two_runs_are_in_work_at_once_where_that_is_wanted(queue):
    supervisor = Supervisor(queue, STAND_IN, at_once=2)
    supervisor.start()
    try:
        first, second, third = (submit(queue, f"work={seconds}") for seconds in (3, 3.1, 0.1))
        for run_id in (first, second):
            wait_for(queue, run_id, "running")
        assert queue.get(first).state == "running"
        assert queue.get(third).state == "queued"
        for run_id in (first, second, third):
            wait_for(queue, run_id, "done")
    finally:
        supervisor.stop()


def test_an_executor_that_there_is_not_fails_the_run_with_a_sentence(queue, supervisor, monkeypatch):
    monkeypatch.setenv("LOWBIT_EXECUTOR", "moon")
    run = wait_for(queue, submit(queue, "print"), "failed")
    assert "choose local, ray, jobs" in run.error
