"""The SQLite file of the run queue: its tables, its journal, and one short transaction at a time."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from quant_engine.failures import database_failure
from quant_engine.spec import UserError

logger = logging.getLogger(__name__)

_BUSY_TIMEOUT_S = 10.0
_RUNS = """
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
    lease_ends REAL,
    submitter  TEXT NOT NULL DEFAULT '',
    priority   INTEGER NOT NULL DEFAULT 0,
    note       TEXT NOT NULL DEFAULT '',
    claimed    REAL
) WITHOUT ROWID
"""
_SWEEPS = """
CREATE TABLE IF NOT EXISTS sweeps (
    sweep_id TEXT PRIMARY KEY,
    created  REAL NOT NULL,
    runs     TEXT NOT NULL,
    left_out TEXT NOT NULL
) WITHOUT ROWID
"""
_LATER = {
    "submitter": "TEXT NOT NULL DEFAULT ''",
    "priority": "INTEGER NOT NULL DEFAULT 0",
    "note": "TEXT NOT NULL DEFAULT ''",
    "claimed": "REAL",
}
"""The columns that a file of an earlier version lacks."""


@contextmanager
def transaction(path: Path, write: bool = True) -> Iterator[sqlite3.Connection]:
    """One connection to the queue's file and one transaction. What the system refuses becomes a UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(_connect(path)) as db:
            _set_journal(db, path)
            _make_tables(db)
            db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield db
            except BaseException:
                if db.in_transaction:  # a full disk has already rolled back
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
    except (OSError, sqlite3.Error) as error:
        raise UserError(database_failure(f"The run queue {path}", error)) from error


def _make_tables(db: sqlite3.Connection) -> None:
    db.execute(_RUNS)
    db.execute(_SWEEPS)
    if not _missing(db):
        return
    db.execute("BEGIN IMMEDIATE")  # another process may add them at this moment
    for name in _missing(db):
        db.execute(f"ALTER TABLE runs ADD COLUMN {name} {_LATER[name]}")
    db.execute("COMMIT")


def _missing(db: sqlite3.Connection) -> list[str]:
    there = {row["name"] for row in db.execute("PRAGMA table_info(runs)")}
    return [name for name in _LATER if name not in there]


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
            reader.execute(_RUNS)
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
