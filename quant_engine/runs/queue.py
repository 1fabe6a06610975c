"""The run queue: one SQLite file that the page, the command line and the worker processes share.

A process claims a run with a lease of a few seconds and renews it while it works. A run whose lease ran out, or whose
process is gone, returns to the queue and is taken up again where its last finished block was written. Every public
call is one short transaction on a connection of its own, so calls may come from any thread of any process.
"""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from quant_engine.failures import database_failure
from quant_engine.progress import Progress
from quant_engine.runs import folder
from quant_engine.spec import RunSpec, UserError, clean_text

logger = logging.getLogger(__name__)

LEASE_S = 15.0
MAX_ATTEMPTS = 3
_BUSY_TIMEOUT_S = 10.0

State = Literal["queued", "running", "done", "failed", "cancelled"]
Standing = Literal["mine", "cancel", "lost"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run_id     TEXT PRIMARY KEY,
    spec       TEXT NOT NULL,
    state      TEXT NOT NULL,
    progress   TEXT NOT NULL,
    error      TEXT,
    attempts   INTEGER NOT NULL DEFAULT 0,
    created    REAL NOT NULL,
    started    REAL,
    ended      REAL,
    cancelling INTEGER NOT NULL DEFAULT 0,
    owner      TEXT,
    lease_ends REAL
) WITHOUT ROWID
"""


class QueuedRun(BaseModel):
    """One run as the queue knows it. Times are seconds since 1970.

    `attempts` counts how often a process took it up since somebody last asked for it. `cancelling` is set from the
    moment that a cancel is asked for until the process has stopped. `owner` is the process that has it now.
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


def owner_name(pid: int | None = None) -> str:
    """How a process signs its claims: host and process id."""
    return f"{socket.gethostname()}:{pid or os.getpid()}"


class Queue:
    """The queue in the SQLite file at `path`, made when it is first written to."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    # --- asking -------------------------------------------------------------------------------------------------

    def submit(self, spec: RunSpec) -> str:
        """Put a run in the queue and return its id.

        A run that waits already, runs or is done is found, not repeated; one that failed or was cancelled, or whose
        results are no longer on disk, is queued again. `spec` must be resolved, because its id is the run's id.
        """
        run_id = spec.run_id
        repeatable: tuple[State, ...] = ("failed", "cancelled")
        if not folder.exists(run_id):
            repeatable += ("done",)
        with self._transaction() as db:
            self._recover(db)
            added = db.execute(
                "INSERT OR IGNORE INTO runs (run_id, spec, state, progress, created) VALUES (?, ?, 'queued', ?, ?)",
                (run_id, spec.model_dump_json(), Progress().model_dump_json(), time.time()),
            )
            if not added.rowcount:
                self._queue_again(db, run_id, repeatable)
        return run_id

    def resume(self, run_id: str) -> QueuedRun:
        """Queue a failed or cancelled run again; what it finished before is kept. Any other run stays as it is."""
        with self._transaction() as db:
            self._recover(db)
            self._queue_again(db, run_id, ("failed", "cancelled"))
        return self.get(run_id)

    def cancel(self, run_id: str) -> QueuedRun:
        """Cancel a waiting run at once; ask a running one to stop. A run that has ended stays as it is."""
        with self._transaction() as db:
            self._recover(db)
            db.execute(
                "UPDATE runs SET state = 'cancelled', ended = ? WHERE run_id = ? AND state = 'queued'",
                (time.time(), run_id),
            )
            db.execute("UPDATE runs SET cancelling = 1 WHERE run_id = ? AND state = 'running'", (run_id,))
        return self.get(run_id)

    # --- looking ------------------------------------------------------------------------------------------------

    def list(self, limit: int = 50) -> list[QueuedRun]:
        """The newest runs, newest first."""
        if not self.path.exists():
            return []
        with self._transaction(write=False) as db:
            rows = db.execute("SELECT * FROM runs ORDER BY created DESC, run_id LIMIT ?", (limit,)).fetchall()
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

    def next_to_start(self) -> str | None:
        """The run to start next, or None when none waits or one is running, here or in any other process."""
        if not self.path.exists():
            return None
        with self._transaction() as db:
            self._recover(db)
            if db.execute("SELECT 1 FROM runs WHERE state = 'running' LIMIT 1").fetchone():
                return None
            row = db.execute("SELECT run_id FROM runs WHERE state = 'queued' ORDER BY created, run_id").fetchone()
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
        """Take a waiting run (the oldest, when none is named) and own it for `LEASE_S` seconds.

        Returns None when there is nothing to take: another process has it, or it has ended. Renew with `report`.
        """
        owner = owner or owner_name()
        with self._transaction() as db:
            self._recover(db)
            row = db.execute(
                "SELECT * FROM runs WHERE state = 'queued' AND run_id = coalesce(?, run_id) ORDER BY created, run_id",
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
                " started = coalesce(started, ?), ended = NULL, error = NULL, cancelling = 0"
                " WHERE run_id = ? RETURNING *",
                (owner, now + LEASE_S, now, row["run_id"]),
            ).fetchone()
        return _queued_run(claimed)

    def report(self, run_id: str, owner: str, progress: Progress | None = None) -> Standing:
        """Renew the lease, store the progress, and learn whether to go on: "mine", "cancel" or "lost"."""
        with self._transaction() as db:
            row = db.execute(
                "UPDATE runs SET lease_ends = ?, progress = coalesce(?, progress)"
                " WHERE run_id = ? AND owner = ? AND state = 'running' RETURNING cancelling",
                (time.time() + LEASE_S, progress and progress.model_dump_json(), run_id, owner),
            ).fetchone()
        if row is None:
            return "lost"
        return "cancel" if row["cancelling"] else "mine"

    def finish(self, run_id: str, owner: str) -> bool:
        """End a run whose results are on disk. This and the other ways to end return False when it wasn't `owner`'s."""
        return self._end(run_id, owner, "done", None, Progress(stage="finished", fraction=1.0))

    def fail(self, run_id: str, owner: str, sentence: str) -> bool:
        """End a run that failed; `sentence` names what to change."""
        return self._end(run_id, owner, "failed", clean_text(sentence))

    def confirm_cancel(self, run_id: str, owner: str) -> bool:
        """End a run that stopped because somebody asked for it."""
        return self._end(run_id, owner, "cancelled", None)

    def release(self, run_id: str, owner: str) -> bool:
        """Hand an unfinished run back, because the process must end; the attempt does not count against the run."""
        with self._transaction() as db:
            row = db.execute(
                "UPDATE runs SET state = iif(cancelling, 'cancelled', 'queued'), attempts = attempts - 1,"
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
                state, error = "cancelled", None
            elif row["attempts"] >= MAX_ATTEMPTS:
                state = "failed"
                error = (
                    f"The run's process ended {row['attempts']} times without a word, most likely because memory ran"
                    " out: choose a smaller model or fewer samples, then press Resume: finished blocks are kept."
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
        """One connection and one transaction; what the system refuses becomes one sentence."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(_connect(self.path)) as db:
                _set_journal(db, self.path)
                db.execute(_SCHEMA)
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield db
                except BaseException:
                    if db.in_transaction:  # a full disk has already rolled back
                        db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise UserError(database_failure(f"The run queue {self.path}", error)) from error


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    db.row_factory = sqlite3.Row
    return db


_journals: dict[Path, Literal["WAL", "DELETE"]] = {}
_deciding = threading.Lock()


def _set_journal(db: sqlite3.Connection, path: Path) -> None:
    """Choose a write-ahead log, so that the page reads while a worker writes; a rollback journal where that fails.

    What the storage can do is tried out once per file and process.
    """
    with _deciding:
        if path not in _journals:
            if _write_ahead_log_works(path):
                _journals[path] = "WAL"
                logger.info("The run queue %s uses a write-ahead log.", path)
            else:
                _end_write_ahead_log(path)
                _journals[path] = "DELETE"
                logger.warning("The run queue %s uses a rollback journal: its storage holds no write-ahead log.", path)
    db.execute(f"PRAGMA journal_mode = {_journals[path]}")
    if _journals[path] == "WAL":
        # Losing the last moment of progress to a power cut is harmless, so the disk need not be waited for.
        db.execute("PRAGMA synchronous = NORMAL")


def _write_ahead_log_works(path: Path) -> bool:
    """Whether one connection can write while another reads. Network storage may refuse, at once or at the first use."""
    with closing(_connect(path)) as reader, closing(_connect(path)) as writer:
        try:
            if reader.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                return False
            reader.execute(_SCHEMA)
            reader.execute("BEGIN")
            reader.execute("SELECT 1 FROM runs").fetchone()
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("PRAGMA user_version = 1")
            writer.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if any(word in str(error) for word in ("locked", "full", "readonly")):  # another journal would not help
                raise
            return False
    return True


def _end_write_ahead_log(path: Path) -> None:
    """Make a file that was left with a write-ahead log readable without one."""
    with closing(_connect(path)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # then SQLite needs no memory shared with other processes
        db.execute("PRAGMA journal_mode = DELETE")


def _queued_run(row: sqlite3.Row) -> QueuedRun:
    values = {name: row[name] for name in row.keys() if name != "lease_ends"}  # noqa: SIM118
    return QueuedRun(
        **values
        | {
            "spec": RunSpec.model_validate_json(row["spec"]),
            "progress": Progress.model_validate_json(row["progress"]),
            "cancelling": bool(row["cancelling"]),
        }
    )


def _is_gone(owner: str) -> bool:
    """True when `owner` is a process of this host that no longer exists."""
    host, _, pid = owner.rpartition(":")
    return host == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid))
