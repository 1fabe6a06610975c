"""Blind votes: which of two unnamed answers is the quantized one, in one SQLite file; and the rates that come of them.

A vote is about one question: model, picture, words and setting. Those who vote are known by a salted digest of what
their browser stores of the first vote's session, and count once for each question, with their first vote. Words are
stored where the voter says so, and pictures never. A rate is the share of votes that named the quantized answer. "Can't
tell" counts as half a right vote, which is what a tossed coin would be right on average; 50% is chance.

The file has a rollback journal, not a write-ahead log as the run queue's: votes are rare, and other storage holds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leaderboard.store import method_name, model_name, options_text
from quant_engine.evaluate.intervals import share_interval
from quant_engine.failures import database_failure
from quant_engine.spec import QuantSetting, Text, UserError, quoted

logger = logging.getLogger(__name__)

TASK = "told_apart"
"""The rate of a setting as a task of the leaderboard, in percent."""
SOURCE = "votes"
"""The source of rows that hold nothing but a rate."""
SETTLED_S = 1.0
"""A file that was written within this time is read again: its time may not tell the next write from this one."""
_WRITE_PATIENCE_S, _READ_PATIENCE_S = 10.0, 0.2
_SETTING = ["model", "method", "w_bits", "a_bits", "group_size"]

Verdict = Literal["right", "wrong", "unsure"]
SCORES: dict[Verdict, float] = {"right": 1.0, "wrong": 0.0, "unsure": 0.5}
"""How far a vote is right."""

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS votes (
    voter      TEXT NOT NULL,
    question   TEXT NOT NULL,
    model      TEXT NOT NULL,
    method     TEXT NOT NULL,
    w_bits     REAL NOT NULL,
    a_bits     INTEGER NOT NULL,
    group_size INTEGER,
    verdict    TEXT NOT NULL,
    created    REAL NOT NULL,
    words      TEXT,
    PRIMARY KEY (voter, question)
) WITHOUT ROWID
""",
    "CREATE TABLE IF NOT EXISTS salt (value BLOB NOT NULL)",
)


@dataclass(frozen=True)
class Ballot:
    """A vote on a question. `picture` is what identifies the picture, `voter` who votes; `keep_words` says
    that the question may be stored in words."""

    voter: str
    model: str
    picture: str
    question: str
    setting: QuantSetting
    verdict: Verdict
    keep_words: bool = False


class Rate(BaseModel):
    """The votes on a setting of a model, both by their ids; `right` counts "can't tell" as half."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Text
    method: Text
    w_bits: float = Field(ge=1, le=16)
    a_bits: int = Field(ge=1, le=16)
    group_size: int | None = Field(ge=1)
    votes: int = Field(ge=1)
    right: float = Field(ge=0)

    @property
    def share(self) -> float:
        """The share of votes that named the quantized answer."""
        return self.right / self.votes


@dataclass(frozen=True)
class Tally:
    """The rates of all settings that have votes; where they can't be read, the `problem` in one sentence."""

    rates: tuple[Rate, ...] = ()
    problem: str = ""


class Votes:
    """The votes in the SQLite file at `path`, made with the first vote. Every call is one short transaction on a
    connection of its own, so calls may come from any thread of any process."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._tally = Tally()

    def cast(self, ballot: Ballot) -> bool:
        """Store a vote, and whether it counts: the first one of a voter on a question does. Raises UserError."""
        if ballot.verdict not in SCORES:
            raise UserError(f"A vote is right, wrong or unsure, not {quoted(ballot.verdict)}.")
        setting = ballot.setting
        asked = (ballot.model, ballot.picture, ballot.question.strip(), setting.model_dump(mode="json"))
        with self._transaction() as db:
            db.execute("INSERT INTO salt SELECT ? WHERE NOT EXISTS (SELECT 1 FROM salt)", (secrets.token_bytes(16),))
            salt = db.execute("SELECT value FROM salt").fetchone()[0]
            added = db.execute(
                "INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    _digest(salt, ballot.voter),
                    _digest(salt, json.dumps(asked, sort_keys=True)),
                    ballot.model,
                    setting.method,
                    setting.w_bits,
                    setting.a_bits,
                    setting.group_size,
                    ballot.verdict,
                    time.time(),
                    ballot.question if ballot.keep_words else None,
                ),
            )
        return bool(added.rowcount)

    def tally(self) -> Tally:
        """The rates as they are now. The file is read when it has changed; one that another process holds for longer
        than a moment is read the next time."""
        with self._lock:
            stamp = self._file_stamp()
            if stamp != self._stamp or stamp is None:
                try:
                    self._tally = Tally(self._read() if stamp else ())
                except _Held:
                    return self._tally
                except UserError as problem:
                    logger.warning("%s", problem)
                    self._tally = Tally(problem=str(problem))
                settled = stamp is not None and time.time_ns() - stamp[0] > SETTLED_S * 1e9
                self._stamp = stamp if settled else None
            return self._tally

    def rate(self, model: str, setting: QuantSetting) -> Rate | None:
        """The rate of a setting; None while it has no votes."""
        fields = (model, setting.method, setting.w_bits, setting.a_bits, setting.group_size)
        return next((r for r in self.tally().rates if tuple(getattr(r, name) for name in _SETTING) == fields), None)

    def _file_stamp(self) -> tuple[int, ...] | None:
        """What changes when the file is written; None where there is none."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[Rate, ...]:
        scored = " ".join(f"WHEN '{verdict}' THEN {score}" for verdict, score in SCORES.items())
        with self._transaction(write=False) as db:
            rows = db.execute(
                "SELECT model, method, w_bits, a_bits, group_size, count(*) AS votes,"
                f' sum(CASE verdict {scored} END) AS "right" FROM votes'
                f" WHERE verdict IN {tuple(SCORES)} GROUP BY model, method, w_bits, a_bits, group_size"
            ).fetchall()
        rates = []
        for row in rows:
            try:
                rates.append(Rate(**dict(row)))
            except ValidationError:
                logger.warning("Votes in %s that another version stored are not counted.", self.path)
        return tuple(rates)

    @contextmanager
    def _transaction(self, write: bool = True) -> Iterator[sqlite3.Connection]:
        """One connection and one transaction; what the system refuses becomes one sentence."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            patience = _WRITE_PATIENCE_S if write else _READ_PATIENCE_S
            with closing(sqlite3.connect(self.path, timeout=patience, isolation_level=None)) as db:
                db.row_factory = sqlite3.Row
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    for table in _SCHEMA:
                        db.execute(table)
                    yield db
                except BaseException:
                    if db.in_transaction:  # a full disk has already rolled back
                        db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            sentence = database_failure(f"The file of blind votes {self.path}", error)
            raise (_Held if "locked" in str(error) else UserError)(sentence) from error


class _Held(UserError):
    """The file is in use."""


def _digest(salt: bytes, text: str) -> str:
    return hashlib.sha256(salt + text.encode(errors="surrogatepass")).hexdigest()[:32]


def beyond_chance(share: float, votes: float) -> bool:
    """Whether a rate's interval leaves out 50%."""
    low, high = share_interval(share, votes)
    return not low <= 0.5 <= high


def shades(percents: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """How far rates [rows] in percent are from chance, for the colour of a cell: -1 where all votes name the quantized
    answer, 1 where all take FP16's for it, 0 where the interval holds 50%, NaN where there are no votes."""
    different = [beyond_chance(percent / 100, count) for percent, count in zip(percents, votes, strict=True)]
    return np.where(np.isnan(percents), np.nan, np.where(different, 1 - percents / 50, 0.0))


def rate_text(percent: float, votes: float) -> str:
    """A rate as the table writes it: 71% of 24."""
    return f"{percent:.0f}% of {votes:g}"


def describe(percent: float, votes: float) -> str:
    """Where a rate comes from and how sure it is, in words that end a sentence or stand for themselves."""
    low, high = share_interval(percent / 100, votes)
    count = "1 blind vote" if votes == 1 else f"{votes:g} blind votes"
    chance = "" if beyond_chance(percent / 100, votes) else ", which holds 50%: this may be chance"
    return f"{count} on this machine; 95% interval {100 * low:.0f} to {100 * high:.0f}%{chance}"


def with_votes(results: pd.DataFrame, rates: Sequence[Rate]) -> pd.DataFrame:
    """Results with each setting's rate as a result of the task TASK, whose `items` are the votes.

    It stands in the rows of the runs that measured the setting with its method's default options; a setting that none
    did has a row of its own, of the source SOURCE.
    """
    if not rates:
        return results
    voted = pd.DataFrame(
        [
            (model_name(r.model), method_name(r.method), r.w_bits, r.a_bits, r.group_size, 100 * r.share, r.votes)
            for r in rates
        ],
        columns=[*_SETTING, "value", "items"],
    ).astype(dict.fromkeys(("w_bits", "a_bits", "group_size", "value", "items"), float))
    row = [*_SETTING, "track", "source", "run_id", "options"]
    runs = results.loc[(results["source"] == "measured") & results["model"].isin(voted["model"]), row]
    runs = runs.drop_duplicates(["run_id", "track"])
    plain = [not options_text(*pair) for pair in zip(runs["method"], runs["options"].fillna("{}"), strict=True)]
    found = voted.merge(runs[np.array(plain, dtype=bool)], on=_SETTING, how="left")
    alone = found["source"].isna()
    found.loc[alone, ["track", "source"]] = "mllm_ptq", SOURCE
    found = found.assign(task=TASK, metric=TASK, status="ok", conditions="")
    text = [name for name in results if not pd.api.types.is_float_dtype(results[name])]
    found = found.reindex(columns=results.columns).astype(dict.fromkeys(text, object))
    return pd.concat([results, found], ignore_index=True)
