"""The run queue: one SQLite file that the page, the command line and the worker processes share.

A process claims a run with a lease of a few seconds and renews it while it works. A run whose lease ran out, or whose
process is gone, returns to the queue and is taken up again where its last finished block was written. Every public
call is one short transaction on a connection of its own, so calls may come from any thread of any process.

Of the runs that wait, those of the highest priority go first; among them, those of whoever waited longest for a turn;
then the oldest. So nobody's hundred runs keep another's one waiting for more than the run in work.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from quant_engine.progress import Progress
from quant_engine.runs import folder
from quant_engine.runs.queue_file import transaction
from quant_engine.spec import RunSpec, UserError, clean_text, digest

logger = logging.getLogger(__name__)

LEASE_S = 15.0
MAX_ATTEMPTS = 3
MOST_WAITING = 2000
MOST_OF_ONE = 500
"""The most runs that may wait, in total and of one submitter."""
PRIORITIES = {"low": -1, "normal": 0, "high": 1}
LONGEST_NOTE = 2000

State = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
Standing = Literal["mine", "cancel", "pause", "lost"]
RESUMABLE: tuple[State, ...] = ("failed", "cancelled", "paused")
ENDED: tuple[State, ...] = ("done", *RESUMABLE)
_STANDINGS: tuple[Standing, ...] = ("mine", "cancel", "pause")
"""What the column `cancelling` says: nothing is asked, stop for good, stop for now."""
_TURN = """ORDER BY priority DESC, (SELECT max(claimed) FROM runs AS others WHERE others.submitter = runs.submitter),
    created, run_id LIMIT 1"""
_STOPPED = "CASE cancelling WHEN 1 THEN 'cancelled' WHEN 2 THEN 'paused' ELSE 'queued' END"


class QueuedRun(BaseModel):
    """One run as the queue knows it. Times are seconds since 1970.

    `attempts` counts how often a process took it up since somebody last asked for it. `cancelling` and `pausing` are
    set from the moment that it is asked for until the process has stopped. `owner` is the process that has it now,
    `submitter` the user who asked for it first; empty on one's own machine.
    """

    model_config = ConfigDict(extra="forbid")

    run_id: str
    spec: RunSpec
    state: State
    progress: Progress
    error: str | None
    attempts: int
    created: float
    started: float | None
    ended: float | None
    cancelling: bool
    owner: str | None
    pausing: bool = False
    submitter: str = ""
    priority: int = 0
    note: str = ""


class QueuedSweep(BaseModel):
    """The runs of a sweep, by their ids in the order that was asked for; and why settings were left out."""

    sweep_id: str
    created: float
    runs: tuple[str, ...]
    left_out: tuple[str, ...]


def owner_name(pid: int | None = None) -> str:
    """How a process signs its claims: host and process id."""
    return f"{socket.gethostname()}:{pid or os.getpid()}"


class Queue:
    """The queue in the SQLite file at `path`, made when it is first written to."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    # --- asking -------------------------------------------------------------------------------------------------

    def submit(self, spec: RunSpec, submitter: str = "", priority: int = 0) -> str:
        """Put a run in the queue and return its id.

        A run that waits already or runs is found, not repeated, and one whose results are on disk is done; one that
        failed, was cancelled or paused, or whose results are no longer on disk, is queued again. `spec` must be
        resolved, because its id is the run's id. Raises UserError where too many wait already.
        """
        with self._transaction() as db:
            self._recover(db)
            self._add(db, spec, submitter, priority)
            self._check_room(db, submitter)
        return spec.run_id

    def submit_sweep(
        self, specs: Sequence[RunSpec], left_out: Sequence[str] = (), submitter: str = "", priority: int = 0
    ) -> QueuedSweep:
        """Put all runs of a sweep in the queue, each as `submit` does, or none of them."""
        runs = [spec.run_id for spec in specs]
        sweep = QueuedSweep(sweep_id=digest(runs), created=time.time(), runs=runs, left_out=left_out)
        with self._transaction() as db:
            self._recover(db)
            for spec in specs:
                self._add(db, spec, submitter, priority)
            self._check_room(db, submitter)
            db.execute(
                "INSERT OR REPLACE INTO sweeps (sweep_id, created, runs, left_out) VALUES (?, ?, ?, ?)",
                (sweep.sweep_id, sweep.created, json.dumps(sweep.runs), json.dumps(sweep.left_out)),
            )
        return sweep

    def resume(self, run_id: str) -> QueuedRun:
        """Queue a failed, cancelled or paused run again; what it finished before is kept. Any other stays as it is."""
        with self._transaction() as db:
            self._recover(db)
            self._queue_again(db, run_id, RESUMABLE)
        return self.get(run_id)

    def cancel(self, run_id: str) -> QueuedRun:
        """Cancel a waiting or paused run at once; ask a running one to stop. A run that has ended stays as it is."""
        with self._transaction() as db:
            self._recover(db)
            db.execute(
                "UPDATE runs SET state = 'cancelled', ended = ? WHERE run_id = ? AND state IN ('queued', 'paused')",
                (time.time(), run_id),
            )
            db.execute("UPDATE runs SET cancelling = 1 WHERE run_id = ? AND state = 'running'", (run_id,))
        return self.get(run_id)

    def pause(self, run_id: str) -> QueuedRun:
        """Hold a waiting run back; ask a running one to stop for now, until `resume`. An ended one stays as it is."""
        with self._transaction() as db:
            self._recover(db)
            db.execute(
                "UPDATE runs SET state = 'paused', ended = ? WHERE run_id = ? AND state = 'queued'",
                (time.time(), run_id),
            )
            db.execute(
                "UPDATE runs SET cancelling = 2 WHERE run_id = ? AND state = 'running' AND cancelling = 0", (run_id,)
            )
        return self.get(run_id)

    def prioritize(self, run_id: str, priority: int) -> QueuedRun:
        """Let a run go before those of lower priority, once it waits."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET priority = ? WHERE run_id = ?", (priority, run_id))
        return self.get(run_id)

    def annotate(self, run_id: str, note: str) -> QueuedRun:
        """Keep somebody's words with a run. Raises UserError for more than a page of them."""
        note = clean_text(note).strip()
        if len(note) > LONGEST_NOTE:
            raise UserError(f"A note has at most {LONGEST_NOTE} characters, not {len(note)}.")
        with self._transaction() as db:
            db.execute("UPDATE runs SET note = ? WHERE run_id = ?", (note, run_id))
        return self.get(run_id)

    def delete(self, run_id: str) -> None:
        """Remove a run that has ended, its results on this machine and its log. Raises UserError for one that waits or
        runs. Quantized weights stay: other runs share them."""
        with self._transaction() as db:
            self._recover(db)
            row = db.execute("SELECT state FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            if row is not None and row["state"] not in ENDED:
                raise UserError(f"Run {run_id} is {row['state']}: cancel it before you delete it.")
            folder.remove(run_id)
            db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))
        self.log_path(run_id).unlink(missing_ok=True)

    # --- looking ------------------------------------------------------------------------------------------------

    def list(self, limit: int = 50) -> list[QueuedRun]:
        """The newest runs, newest first."""
        if not self.path.exists():
            return []
        with self._transaction(write=False) as db:
            rows = db.execute("SELECT * FROM runs ORDER BY created DESC, run_id LIMIT ?", (limit,)).fetchall()
        return self._readable(rows)

    def _readable(self, rows: Iterable[sqlite3.Row]) -> list[QueuedRun]:
        runs = []
        for row in rows:
            try:
                runs.append(_queued_run(row))
            except ValidationError:
                logger.warning("Run %s in %s was queued by another version and is not shown.", row["run_id"], self.path)
        return runs

    def get(self, run_id: str) -> QueuedRun:
        """One run. Raises UserError when the queue has no such run."""
        with self._transaction(write=False) as db:
            row = db.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise UserError(f"There is no run {run_id!r} in the queue: choose one from the list of runs.")
        try:
            return _queued_run(row)
        except ValidationError as error:
            raise UserError(f"Run {run_id} was queued by another version of the lab: start it again.") from error

    def several(self, run_ids: Iterable[str]) -> dict[str, QueuedRun]:
        """Those of the runs that the queue has, by id."""
        if not self.path.exists():
            return {}
        found: dict[str, QueuedRun] = {}
        with self._transaction(write=False) as db:
            for run_id in run_ids:
                row = db.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
                if row is not None:
                    found |= {run.run_id: run for run in self._readable([row])}
        return found

    def sweeps(self, limit: int = 20) -> list[QueuedSweep]:
        """The newest sweeps, newest first."""
        if not self.path.exists():
            return []
        with self._transaction(write=False) as db:
            rows = db.execute("SELECT * FROM sweeps ORDER BY created DESC, sweep_id LIMIT ?", (limit,)).fetchall()
        return [
            QueuedSweep(**dict(row) | {name: json.loads(row[name]) for name in ("runs", "left_out")}) for row in rows
        ]

    def next_to_start(self, at_once: int = 1) -> str | None:
        """The run to start next, or None when none waits or `at_once` are running, here or in other processes."""
        if not self.path.exists():
            return None
        with self._transaction() as db:
            self._recover(db)
            if db.execute("SELECT count(*) FROM runs WHERE state = 'running'").fetchone()[0] >= at_once:
                return None
            row = db.execute(f"SELECT run_id FROM runs WHERE state = 'queued' {_TURN}").fetchone()
        return row["run_id"] if row else None

    def log_path(self, run_id: str) -> Path:
        """The run's log file; it exists from the first line on. Refuses anything that is not a run id."""
        if not folder.RUN_ID.fullmatch(run_id):
            raise UserError(f"{run_id!r} is not a run id: a run id has 16 hexadecimal digits.")
        return self.path.parent / "logs" / f"{run_id}.txt"

    def log_tail(self, run_id: str, lines: int = 200) -> str:
        """The last lines of a run's log; empty before the run has written any."""
        path = self.log_path(run_id)
        if not path.exists():
            return ""
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 400 * lines))
            return "\n".join(file.read().decode("utf-8", errors="replace").splitlines()[-lines:])

    # --- working ------------------------------------------------------------------------------------------------

    def claim(self, run_id: str | None = None, owner: str | None = None) -> QueuedRun | None:
        """Take a waiting run (whose turn it is, when none is named) and own it for `LEASE_S` seconds.

        Returns None when there is nothing to take: another process has it, or it has ended. Renew with `report`.
        """
        owner = owner or owner_name()
        with self._transaction() as db:
            self._recover(db)
            row = db.execute(
                f"SELECT * FROM runs WHERE state = 'queued' AND run_id = coalesce(?, run_id) {_TURN}",
                (run_id,),
            ).fetchone()
            if row is None:
                return None
            now = time.time()
            try:
                _queued_run(row)
            except ValidationError:
                sentence = "This run was queued by another version whose settings can't be read: start it again."
                db.execute(
                    "UPDATE runs SET state = 'failed', error = ?, ended = ? WHERE run_id = ?",
                    (sentence, now, row["run_id"]),
                )
                return None
            claimed = db.execute(
                "UPDATE runs SET state = 'running', owner = ?, lease_ends = ?, attempts = attempts + 1,"
                " started = coalesce(started, ?), claimed = ?, ended = NULL, error = NULL, cancelling = 0"
                " WHERE run_id = ? RETURNING *",
                (owner, now + LEASE_S, now, now, row["run_id"]),
            ).fetchone()
        return _queued_run(claimed)

    def report(self, run_id: str, owner: str, progress: Progress | None = None) -> Standing:
        """Renew the lease, store the progress, and learn whether to go on: "mine", "cancel", "pause" or
        "lost"."""
        with self._transaction() as db:
            row = db.execute(
                "UPDATE runs SET lease_ends = ?, progress = coalesce(?, progress)"
                " WHERE run_id = ? AND owner = ? AND state = 'running' RETURNING cancelling",
                (time.time() + LEASE_S, progress and progress.model_dump_json(), run_id, owner),
            ).fetchone()
        if row is None:
            return "lost"
        return _STANDINGS[row["cancelling"]]

    def finish(self, run_id: str, owner: str) -> bool:
        """End a run whose results are on disk. This and the other ways to end return False when it wasn't `owner`'s."""
        return self._end(run_id, owner, "done", None, Progress(stage="finished", fraction=1.0))

    def fail(self, run_id: str, owner: str, sentence: str) -> bool:
        """End a run that failed; `sentence` names what to change."""
        return self._end(run_id, owner, "failed", clean_text(sentence))

    def confirm_stop(self, run_id: str, owner: str) -> bool:
        """End a run that stopped because somebody asked for it: as paused if that was asked, else as cancelled."""
        paused = self.get(run_id).pausing
        return self._end(run_id, owner, "paused" if paused else "cancelled", None)

    def release(self, run_id: str, owner: str) -> bool:
        """Hand an unfinished run back, because the process must end; the attempt does not count against the run."""
        with self._transaction() as db:
            row = db.execute(
                f"UPDATE runs SET state = {_STOPPED}, attempts = attempts - 1,"
                " ended = iif(cancelling, ?, NULL), cancelling = 0, owner = NULL, lease_ends = NULL"
                " WHERE run_id = ? AND owner = ? AND state = 'running' RETURNING run_id",
                (time.time(), run_id, owner),
            ).fetchone()
        return row is not None

    # --- inside -------------------------------------------------------------------------------------------------

    def _end(self, run_id: str, owner: str, state: State, error: str | None, progress: Progress | None = None) -> bool:
        with self._transaction() as db:
            row = db.execute(
                "UPDATE runs SET state = ?, error = ?, ended = ?, progress = coalesce(?, progress), cancelling = 0,"
                " owner = NULL, lease_ends = NULL"
                " WHERE run_id = ? AND owner = ? AND state = 'running' RETURNING run_id",
                (state, error, time.time(), progress and progress.model_dump_json(), run_id, owner),
            ).fetchone()
        return row is not None

    @staticmethod
    def _add(db: sqlite3.Connection, spec: RunSpec, submitter: str, priority: int) -> None:
        there, now = folder.exists(spec.run_id), time.time()
        state: State = "done" if there else "queued"
        progress = Progress(stage="finished", fraction=1.0) if there else Progress()
        added = db.execute(
            "INSERT OR IGNORE INTO runs (run_id, spec, state, progress, created, started, ended, submitter, priority)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(spec.run_id, spec.model_dump_json(), state, progress.model_dump_json(), now),
                *((now, now) if there else (None, None)),
                *(clean_text(submitter), priority),
            ),
        )
        if not added.rowcount:
            Queue._queue_again(db, spec.run_id, RESUMABLE if there else ENDED)

    @staticmethod
    def _check_room(db: sqlite3.Connection, submitter: str) -> None:
        """Raises UserError, which takes back what was added, where too many wait."""
        waiting = "SELECT count(*) FROM runs WHERE state = 'queued'"
        if db.execute(waiting).fetchone()[0] > MOST_WAITING:
            raise UserError(f"At most {MOST_WAITING} runs may wait: start this when some of them are done.")
        if db.execute(f"{waiting} AND submitter = ?", (clean_text(submitter),)).fetchone()[0] > MOST_OF_ONE:
            raise UserError(f"At most {MOST_OF_ONE} of your runs may wait: start this when some of them are done.")

    @staticmethod
    def _queue_again(db: sqlite3.Connection, run_id: str, repeatable: tuple[State, ...]) -> None:
        """Queue a run that ended as one of `repeatable`. It starts with all its attempts, as a waiting one does too."""
        db.execute("UPDATE runs SET attempts = 0 WHERE run_id = ? AND state = 'queued'", (run_id,))
        db.execute(
            "UPDATE runs SET state = 'queued', error = NULL, attempts = 0, started = NULL, ended = NULL, progress = ?"
            f" WHERE run_id = ? AND state IN ({', '.join('?' * len(repeatable))})",
            (Progress().model_dump_json(), run_id, *repeatable),
        )

    @staticmethod
    def _recover(db: sqlite3.Connection) -> None:
        """Take runs back from processes that are gone.

        The lease decides. A process of this host that no longer exists need not be waited for, so that a command
        which was killed can be repeated at once; should its process id be in use again, the lease still decides.
        """
        now = time.time()
        for row in db.execute(
            "SELECT run_id, owner, attempts, lease_ends, cancelling FROM runs WHERE state = 'running'"
        ):
            if row["lease_ends"] >= now and not _is_gone(row["owner"]):
                continue
            if row["cancelling"]:
                state, error = ("cancelled", "paused")[row["cancelling"] - 1], None
            elif row["attempts"] >= MAX_ATTEMPTS:
                state = "failed"
                error = (
                    f"The run's process ended {row['attempts']} times without a word, most likely because memory ran"
                    " out: choose a smaller model or fewer samples, then retry it: finished blocks are kept."
                )
            else:
                state, error = "queued", None
            db.execute(
                "UPDATE runs SET state = ?, error = ?, ended = ?, cancelling = 0, owner = NULL, lease_ends = NULL"
                " WHERE run_id = ?",
                (state, error, None if state == "queued" else now, row["run_id"]),
            )

    @contextmanager
    def _transaction(self, write: bool = True) -> Iterator[sqlite3.Connection]:
        with transaction(self.path, write) as db:
            yield db


def _queued_run(row: sqlite3.Row) -> QueuedRun:
    values = {name: row[name] for name in row.keys() if name not in ("lease_ends", "claimed")}  # noqa: SIM118
    return QueuedRun(
        **values
        | {
            "spec": RunSpec.model_validate_json(row["spec"]),
            "progress": Progress.model_validate_json(row["progress"]),
            "cancelling": row["cancelling"] == 1,
            "pausing": row["cancelling"] == 2,
        }
    )


def _is_gone(owner: str) -> bool:
    """True when `owner` is a process of this host that no longer exists."""
    host, _, pid = owner.rpartition(":")
    return host == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid))
