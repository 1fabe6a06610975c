"""The run queue: one owner per run, whatever the processes do."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from quant_engine.progress import Progress
from quant_engine.runs import queue as queue_module
from quant_engine.runs import queue_file
from quant_engine.runs.queue import MAX_ATTEMPTS, Queue, owner_name
from quant_engine.spec import RunSpec, UserError, WeightSpec


@pytest.fixture(autouse=True)
def _results(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "results"))


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue.sqlite")


def spec(model="m", **more):
    return RunSpec(weights=WeightSpec(model=model), tasks=("perplexity",), **more)


def write_results(tmp_path, run_id):
    (tmp_path / "results" / run_id).mkdir(parents=True)
    (tmp_path / "results" / run_id / "run.json").write_text("{}")


def dead_process() -> str:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return owner_name(process.pid)


def test_a_submitted_run_waits_with_its_spec_and_no_progress(queue):
    run = queue.get(queue.submit(spec(limit=3)))
    assert (run.state, run.spec, run.attempts, run.error) == ("queued", spec(limit=3), 0, None)
    assert run.progress == Progress()


def test_the_same_run_is_found_while_it_waits_runs_or_is_done(queue, tmp_path):
    run_id = queue.submit(spec())
    assert queue.submit(spec()) == run_id
    queue.claim(run_id, "a")
    queue.submit(spec())
    assert queue.get(run_id).state == "running"
    queue.finish(run_id, "a")
    write_results(tmp_path, run_id)
    queue.submit(spec())
    assert queue.get(run_id).state == "done"
    assert len(queue.list()) == 1


def test_a_done_run_is_queued_again_when_its_results_are_gone(queue):
    run_id = queue.submit(spec())
    queue.claim(run_id, "a")
    queue.finish(run_id, "a")
    queue.submit(spec())
    assert queue.get(run_id).state == "queued"


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_failed_or_cancelled_run_is_queued_again_by_submit_and_by_resume(queue, end):
    run_id = queue.submit(spec())
    for again in (lambda: queue.submit(spec()), lambda: queue.resume(run_id)):
        queue.claim(run_id, "a")
        queue.fail(run_id, "a", "Because.") if end == "failed" else queue.confirm_stop(run_id, "a")
        assert queue.get(run_id).state == end
        again()
        run = queue.get(run_id)
        assert (run.state, run.error, run.attempts, run.ended) == ("queued", None, 0, None)


def test_runs_are_claimed_oldest_first_and_listed_newest_first(queue):
    ids = [queue.submit(spec(f"m{i}")) for i in range(3)]
    assert [run.run_id for run in queue.list()] == ids[::-1]
    assert [run.run_id for run in queue.list(limit=1)] == ids[-1:]
    assert [queue.claim(owner="a").run_id for _ in ids] == ids
    assert queue.claim(owner="a") is None


def test_nothing_waits_for_a_start_while_a_run_is_running(queue):
    first, second = queue.submit(spec("m1")), queue.submit(spec("m2"))
    assert queue.next_to_start() == first
    queue.claim(first, "a")
    assert queue.next_to_start() is None
    queue.finish(first, "a")
    assert queue.next_to_start() == second


def test_many_processes_that_claim_at_once_get_each_run_exactly_once(queue):
    ids = {queue.submit(spec(f"m{i}")) for i in range(60)}
    code = (
        "import sys; from quant_engine.runs.queue import Queue\n"
        "queue = Queue(sys.argv[1])\n"
        "while run := queue.claim(): print(run.run_id); queue.finish(run.run_id, run.owner)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(queue.path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    taken = [line for process in processes for line in process.communicate()[0].split()]
    assert all(process.returncode == 0 for process in processes)
    assert sorted(taken) == sorted(ids)


def test_many_threads_may_make_the_queue_and_submit_to_it_at_once(queue):
    errors = []

    def submit(number):
        try:
            for i in range(10):
                queue.submit(spec(f"m{number}-{i}"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(queue.list(limit=100)) == 80


def test_a_report_renews_the_lease_and_a_run_whose_lease_ran_out_is_taken_up_by_another(queue, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(queue_module.time, "time", lambda: now[0])
    run_id = queue.submit(spec())
    queue.claim(run_id, "a")
    for _ in range(5):
        now[0] += 10
        assert queue.report(run_id, "a", Progress(stage="quantizing", block=2, blocks=6)) == "mine"
    assert queue.claim(run_id, "b") is None
    now[0] += 16
    taken = queue.claim(run_id, "b")
    assert (taken.owner, taken.attempts) == ("b", 2)
    assert taken.progress.block == 2
    assert queue.report(run_id, "a") == "lost"
    assert not queue.finish(run_id, "a")
    assert queue.get(run_id).owner == "b"


def test_a_run_whose_process_no_longer_exists_is_taken_up_without_waiting_for_the_lease(queue):
    run_id = queue.submit(spec())
    queue.claim(run_id, dead_process())
    assert queue.claim(run_id, "b").attempts == 2


def test_a_run_whose_processes_keep_dying_fails_with_a_sentence(queue):
    run_id = queue.submit(spec())
    dead = dead_process()
    for _ in range(MAX_ATTEMPTS):
        assert queue.claim(run_id, dead)
    assert queue.claim(run_id, dead) is None
    run = queue.get(run_id)
    assert run.state == "failed"
    assert run.error.startswith("The run's process ended 3 times")
    assert "retry it" in run.error


def test_asking_for_a_run_again_gives_it_all_its_attempts_back(queue):
    run_id = queue.submit(spec())
    dead = dead_process()
    for _ in range(2 * MAX_ATTEMPTS):
        assert queue.claim(run_id, dead)
        queue.submit(spec())


def test_a_waiting_run_is_cancelled_at_once_and_never_claimed(queue):
    run_id = queue.submit(spec())
    assert queue.cancel(run_id).state == "cancelled"
    assert queue.claim(run_id, "a") is None


def test_a_running_run_learns_of_a_cancel_with_its_next_report(queue):
    run_id = queue.submit(spec())
    queue.claim(run_id, "a")
    assert queue.cancel(run_id).cancelling
    assert queue.report(run_id, "a") == "cancel"
    assert queue.confirm_stop(run_id, "a")
    run = queue.get(run_id)
    assert (run.state, run.cancelling, run.owner) == ("cancelled", False, None)
    assert run.ended is not None


def test_cancelling_a_run_whose_process_died_needs_no_process(queue):
    run_id = queue.submit(spec())
    queue.claim(run_id, dead_process())
    assert queue.cancel(run_id).state == "cancelled"


def test_a_released_run_waits_again_and_the_attempt_does_not_count(queue):
    run_id = queue.submit(spec())
    queue.claim(run_id, "a")
    assert queue.release(run_id, "a")
    run = queue.get(run_id)
    assert (run.state, run.attempts, run.owner) == ("queued", 0, None)


def test_ended_runs_stay_as_they_are_when_cancelled_or_resumed(queue, tmp_path):
    run_id = queue.submit(spec())
    queue.claim(run_id, "a")
    queue.finish(run_id, "a")
    write_results(tmp_path, run_id)
    assert queue.cancel(run_id).state == "done"
    assert queue.resume(run_id).state == "done"
    assert queue.get(run_id).progress.fraction == 1.0


def test_the_log_tail_gives_the_last_lines_and_refuses_what_is_no_run_id(queue):
    run_id = queue.submit(spec())
    assert queue.log_tail(run_id) == ""
    queue.log_path(run_id).parent.mkdir()
    queue.log_path(run_id).write_text("".join(f"line {i} ü\n" for i in range(1000)))
    assert queue.log_tail(run_id, lines=2) == "line 998 ü\nline 999 ü"
    with pytest.raises(UserError, match="not a run id"):
        queue.log_tail("../../etc/passwd")


def test_an_unknown_run_is_a_sentence(queue):
    with pytest.raises(UserError, match="no run 'abc' in the queue"):
        queue.get("abc")


def test_a_queue_that_nobody_wrote_to_is_empty_and_makes_no_file(queue):
    assert queue.list() == []
    assert queue.next_to_start() is None
    assert not queue.path.exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="make its folder writable or set LOWBIT_HOME"):
        Queue(tmp_path / "file" / "queue.sqlite").submit(spec())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_queue_is_a_sentence(queue):
    queue.submit(spec())
    queue.path.chmod(0o444)
    queue.path.parent.chmod(0o555)
    with pytest.raises(UserError, match="make its folder writable"):
        queue.submit(spec("other"))
    queue.path.parent.chmod(0o755)


class NoSharedMemory(sqlite3.Connection):
    """SQLite on storage that takes a write-ahead log when asked for one, and fails when the log is first used."""

    exclusive = False

    def execute(self, statement, *values):
        self.exclusive |= "EXCLUSIVE" in statement
        has_log = self.path.exists() and self.path.read_bytes()[18:19] == b"\2"  # so says the file
        if has_log and not self.exclusive and statement != "PRAGMA journal_mode = WAL":
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(statement, *values)


def refuse_at_once(monkeypatch, path):
    """A way of locking that SQLite offers for odd storage, and with which it takes no write-ahead log."""
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **more: connect(f"file:{path}?vfs=unix-dotfile", uri=True, **more)
    )


def refuse_at_first_use(monkeypatch, path):
    connect = sqlite3.connect
    monkeypatch.setattr(NoSharedMemory, "path", path, raising=False)
    monkeypatch.setattr(sqlite3, "connect", lambda path, **more: connect(path, factory=NoSharedMemory, **more))


@pytest.mark.parametrize("refuse", [refuse_at_once, refuse_at_first_use])
def test_storage_without_a_write_ahead_log_gets_a_rollback_journal_and_the_log_says_so(
    queue, monkeypatch, caplog, refuse
):
    refuse(monkeypatch, queue.path)
    run_id = queue.submit(spec())
    assert queue.claim(run_id, "a").state == "running"
    assert queue.report(run_id, "a", Progress(block=1)) == "mine"
    assert queue.finish(run_id, "a")
    assert queue.list()[0].state == "done"
    assert [record.message for record in caplog.records] == [
        f"The run queue {queue.path} uses a rollback journal: its storage holds no write-ahead log."
    ]


def test_a_queue_that_was_left_with_a_write_ahead_log_is_read_where_none_works(queue, monkeypatch):
    run_id = queue.submit(spec())
    assert queue.path.read_bytes()[18:20] == b"\2\2"
    monkeypatch.setattr(queue_file, "_journals", {})  # a later process
    refuse_at_first_use(monkeypatch, queue.path)
    assert queue.claim(run_id, "a").state == "running"
    assert queue.path.read_bytes()[18:20] == b"\1\1"


def test_other_storage_gets_a_write_ahead_log_and_the_log_says_so_once(queue, caplog):
    caplog.set_level("INFO")
    queue.submit(spec())
    queue.list()
    with sqlite3.connect(queue.path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert [record.message for record in caplog.records] == [f"The run queue {queue.path} uses a write-ahead log."]


def test_a_busy_queue_is_no_reason_to_give_up_the_write_ahead_log(queue, monkeypatch):
    queue.submit(spec())
    monkeypatch.setattr(queue_file, "_journals", {})
    monkeypatch.setattr(queue_file, "_BUSY_TIMEOUT_S", 0.05)
    with closing(sqlite3.connect(queue.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="held by another process"):
            queue.list()
        other.execute("ROLLBACK")
    queue.list()
    assert queue.path.read_bytes()[18:20] == b"\2\2"


def test_a_damaged_queue_is_a_sentence(queue):
    queue.path.write_bytes(b"this is no database" * 100)
    with pytest.raises(UserError, match="is damaged: move the file away"):
        queue.list()


def test_a_full_disk_is_a_sentence_and_leaves_the_queue_as_it_was(queue, monkeypatch):
    run_id = queue.submit(spec())
    full = "PRAGMA max_page_count = 1"  # SQLite then refuses to grow, with the error of a full disk
    monkeypatch.setattr(queue_file, "_RUNS", full)
    with pytest.raises(UserError, match="the disk is full: free some space"):
        queue.submit(RunSpec(weights=WeightSpec(model="m"), tasks=tuple("t" * 300 + str(i) for i in range(100))))
    assert queue.get(run_id).state == "queued"


def test_a_run_that_another_version_queued_is_failed_with_a_sentence_and_left_out_of_the_list(queue):
    run_id = queue.submit(spec())
    with queue._transaction() as db:
        db.execute("UPDATE runs SET spec = '{\"unknown\": 1}'")
    assert queue.list() == []
    assert queue.claim(run_id, "a") is None
    with pytest.raises(UserError, match="another version"):
        queue.get(run_id)


def test_a_paused_run_waits_until_it_is_resumed(queue):
    first, second = queue.submit(spec("m1")), queue.submit(spec("m2"))
    assert queue.pause(second).state == "paused"
    queue.claim(first, "a")
    assert queue.pause(first).pausing
    assert queue.report(first, "a") == "pause"
    assert queue.confirm_stop(first, "a")
    assert queue.get(first).state == "paused"
    assert queue.next_to_start() is None
    assert queue.resume(second).state == "queued"
    assert queue.next_to_start() == second
    assert queue.cancel(first).state == "cancelled"


@pytest.mark.parametrize("end", ["release", "lease"])
def test_a_run_that_is_to_pause_pauses_however_its_process_ends(queue, end, monkeypatch):
    run_id = queue.submit(spec())
    queue.claim(run_id, "a")
    queue.pause(run_id)
    if end == "release":
        queue.release(run_id, "a")
    else:
        later = time.time() + 100
        monkeypatch.setattr(queue_module.time, "time", lambda: later)
    assert queue.next_to_start() is None
    assert (queue.get(run_id).state, queue.get(run_id).pausing) == ("paused", False)


def test_a_cancel_is_stronger_than_a_pause(queue):
    run_id = queue.submit(spec())
    queue.claim(run_id, "a")
    queue.pause(run_id)
    queue.cancel(run_id)
    assert not queue.pause(run_id).pausing
    assert queue.report(run_id, "a") == "cancel"


def test_users_take_turns_and_high_priority_goes_first(queue):
    many = [queue.submit(spec(f"a{i}"), submitter="anna") for i in range(4)]
    ben = [queue.submit(spec(f"b{i}"), submitter="ben") for i in range(2)]
    urgent = queue.submit(spec("c"), submitter="anna", priority=1)
    order = []
    while run := queue.claim(owner="w"):
        order.append(run.run_id)
        queue.finish(run.run_id, "w")
    assert order == [urgent, ben[0], many[0], ben[1], *many[1:]]


def test_a_waiting_run_can_be_let_before_others(queue):
    first, second = queue.submit(spec("m1")), queue.submit(spec("m2"))
    queue.prioritize(second, 1)
    assert queue.next_to_start() == second
    queue.prioritize(first, 2)
    assert queue.next_to_start() == first


def test_several_runs_may_be_in_work_where_that_is_wanted(queue):
    ids = [queue.submit(spec(f"m{i}")) for i in range(3)]
    queue.claim(ids[0], "a")
    assert queue.next_to_start() is None
    assert queue.next_to_start(2) == ids[1]
    queue.claim(ids[1], "b")
    assert queue.next_to_start(2) is None


def test_too_many_runs_are_refused_and_none_of_a_sweep_is_left_behind(queue, monkeypatch):
    monkeypatch.setattr(queue_module, "MOST_OF_ONE", 3)
    queue.submit_sweep([spec(f"a{i}") for i in range(3)], submitter="anna")
    with pytest.raises(UserError, match="At most 3 of your runs may wait"):
        queue.submit_sweep([spec("a0"), spec("a7")], submitter="anna")
    queue.submit(spec("b"), submitter="ben")
    assert len(queue.list()) == 4
    monkeypatch.setattr(queue_module, "MOST_WAITING", 4)
    with pytest.raises(UserError, match="At most 4 runs may wait"):
        queue.submit(spec("c"), submitter="carl")


def test_a_sweep_is_found_with_its_runs(queue):
    specs = [spec(f"m{i}") for i in range(3)]
    sweep = queue.submit_sweep(specs, ["awq has no 1 bit."])
    assert queue.submit_sweep(specs).sweep_id == sweep.sweep_id
    (found,) = queue.sweeps()
    assert found.runs == tuple(one.run_id for one in specs)
    assert list(queue.several([*found.runs, "0" * 16])) == list(found.runs)


def test_notes_stay_with_a_run_and_are_text(queue):
    run_id = queue.submit(spec())
    assert queue.annotate(run_id, " with\x00 <b>ours</b>\r\n").note == "with\ufffd <b>ours</b>"
    with pytest.raises(UserError, match="at most 2000 characters"):
        queue.annotate(run_id, "x" * 2001)


def test_only_a_run_that_has_ended_is_deleted_with_its_results_and_log(queue, tmp_path):
    run_id = queue.submit(spec())
    with pytest.raises(UserError, match="cancel it before"):
        queue.delete(run_id)
    queue.cancel(run_id)
    results = tmp_path / "results" / run_id
    results.mkdir(parents=True)
    log = queue.log_path(run_id)
    log.parent.mkdir(parents=True)
    log.write_text("words")
    queue.delete(run_id)
    assert not results.exists()
    assert not log.exists()
    assert list((tmp_path / "results").iterdir()) == []
    assert queue.list() == []


def test_a_run_whose_results_are_there_is_done_at_once(queue, tmp_path):
    folder = tmp_path / "results" / spec().run_id
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    assert queue.get(queue.submit(spec())).state == "done"


def test_a_queue_of_an_earlier_version_is_read_and_written(queue):
    with closing(sqlite3.connect(queue.path)) as db:
        db.execute(
            "CREATE TABLE runs (run_id TEXT PRIMARY KEY, spec TEXT NOT NULL, state TEXT NOT NULL, progress TEXT NOT"
            " NULL, error TEXT, attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, ended REAL,"
            " cancelling INTEGER NOT NULL DEFAULT 0, owner TEXT, lease_ends REAL) WITHOUT ROWID"
        )
        db.execute(
            "INSERT INTO runs (run_id, spec, state, progress, created) VALUES (?, ?, 'queued', '{}', 1)",
            (spec().run_id, spec().model_dump_json()),
        )
        db.commit()
    (run,) = queue.list()
    assert (run.submitter, run.priority, run.note) == ("", 0, "")
    assert queue.claim(owner="a").run_id == run.run_id
