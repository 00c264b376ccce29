"""Answers and their truth in one SQLite file. Synchronous: whoever opened a store uses it alone.

What feedback adds to an answer and to the watch of its promise is written together or not at all.
Other processes of the same machine may use the same file, one transaction at a time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dalorra.decision.metrics import ECE_BINS
from dalorra.errors import ConfigError
from service.feedback.live import Group
from service.feedback.records import AnswerRecord, KeptAnswer, Source

_APPLICATION = 0x44414C46  # "DALF": no other program's file is taken for a store
VERSION = 4
"""Of the file's tables; the first had no `cut_at`, the second no `called`, the third no `owner`."""
_ADDED = {1: "cut_at INTEGER", 2: "called TEXT", 3: "owner TEXT NOT NULL DEFAULT ''"}
"""What each version lacks of the next."""
LOCK_SECONDS = 10.0
"""What a transaction waits at most for another process's."""

_SOURCES = """
CREATE TABLE sources (
    id INTEGER PRIMARY KEY,
    adapter_digest TEXT NOT NULL,
    bank TEXT NOT NULL,
    policy TEXT NOT NULL,
    novelty_digest TEXT,
    watch TEXT
)
"""
_ANSWERS = """
CREATE TABLE answers (
    request_id TEXT NOT NULL,
    answered_at REAL NOT NULL,
    label TEXT NOT NULL,
    probability REAL NOT NULL,
    variance REAL NOT NULL,
    novelty REAL,
    cut_at INTEGER,
    samples INTEGER NOT NULL,
    decision TEXT NOT NULL,
    accepted INTEGER NOT NULL,
    input TEXT,
    called TEXT,
    source INTEGER NOT NULL REFERENCES sources (id),
    true_label TEXT,
    labelled_at REAL,
    owner TEXT NOT NULL,
    PRIMARY KEY (request_id, owner)
);
CREATE INDEX answers_by_worth ON answers (true_label IS NOT NULL, answered_at);
CREATE INDEX answers_by_age ON answers (answered_at);
CREATE INDEX answers_with_truth ON answers (source) WHERE true_label IS NOT NULL;
"""
# The last time that was believed: of a table of its own, which earlier software passes over.
_CLOCK = """
CREATE TABLE IF NOT EXISTS clock (id INTEGER PRIMARY KEY CHECK (id = 1), seconds REAL NOT NULL)
"""
# An owner's repeated id means the later answer, unless the earlier one has been judged already.
_ADD = """
INSERT INTO answers (request_id, answered_at, label, probability, variance, novelty, cut_at,
                     samples, decision, accepted, input, called, owner, source)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (request_id, owner) DO UPDATE SET
    answered_at = excluded.answered_at, label = excluded.label,
    probability = excluded.probability, variance = excluded.variance, novelty = excluded.novelty,
    cut_at = excluded.cut_at,
    samples = excluded.samples, decision = excluded.decision, accepted = excluded.accepted,
    input = excluded.input, called = excluded.called, source = excluded.source
WHERE true_label IS NULL
"""
# Confidence bins (lo, hi] as in `dalorra.decision.metrics.reliability_bins`: ceil(15 p) − 1.
_COUNT = f"""
WITH judged AS (
    SELECT accepted, true_label = label AS correct, probability, probability * {ECE_BINS} AS place
    FROM answers WHERE source = ? AND true_label IS NOT NULL
)
SELECT accepted, correct, max(CAST(place AS INTEGER) - (place = CAST(place AS INTEGER)), 0),
       count(*), sum(probability)
FROM judged GROUP BY 1, 2, 3
"""  # noqa: S608 - a number of ours
# Judged answers are worth most: they are deleted last.
_EVICT = """
DELETE FROM answers WHERE rowid IN (
    SELECT rowid FROM answers ORDER BY true_label IS NOT NULL, answered_at LIMIT ?
)
"""


class FeedbackStore:
    """One open file.

    Args:
        path: the file; if it is missing, it is made, readable for its owner alone.

    Raises:
        ConfigError: the file cannot be opened, or is no feedback store.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = sqlite3.connect(
                path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            with ExitStack() as failed:
                failed.callback(self._database.close)
                self._prepare()
                failed.pop_all()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"feedback_store {path} cannot be opened: {error}") from error

    def _prepare(self) -> None:
        # Deleted answers cannot be read back from the file.
        self._database.execute("PRAGMA secure_delete = ON")
        with self.transaction():
            if self._value("SELECT count(*) FROM sqlite_master") == 0:
                self._database.execute(_SOURCES)
                self._make_answers()
                self._database.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._database.execute(f"PRAGMA user_version = {VERSION}")
            if (version := check_kind(self._database, self._path)) < VERSION:
                self._bring_up_to_date(version)
            self._database.execute(f"PRAGMA user_version = {VERSION}")
            self._database.execute(_CLOCK)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")

    def _make_answers(self) -> None:
        for statement in _ANSWERS.strip().split(";\n"):
            self._database.execute(statement)

    def _bring_up_to_date(self, version: int) -> None:
        """Answers from before they had owners are those of whoever asks without a key."""
        for earlier in range(version, VERSION):
            self._database.execute(f"ALTER TABLE answers ADD COLUMN {_ADDED[earlier]}")
        self._database.execute("ALTER TABLE answers RENAME TO earlier")
        for index in ("answers_by_worth", "answers_by_age", "answers_with_truth"):
            self._database.execute(f"DROP INDEX IF EXISTS {index}")
        self._make_answers()
        columns = ", ".join(
            name for _, name, *_ in self._database.execute("PRAGMA table_info(answers)")
        )
        self._database.execute(
            f"INSERT INTO answers ({columns}) SELECT {columns} FROM earlier"  # noqa: S608 - ours
        )
        self._database.execute("DROP TABLE earlier")

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside is written at its end, or nothing of it."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @property
    def time(self) -> float | None:
        """What `set_time` was told last; None in a new store."""
        found = self._database.execute("SELECT seconds FROM clock").fetchone()
        return None if found is None else float(found[0])

    def set_time(self, now: float) -> None:
        """Keeps the time, for the next process."""
        self._database.execute("INSERT OR REPLACE INTO clock VALUES (1, ?)", (now,))

    @property
    def changes_of_others(self) -> int:
        """A number that changes whenever another process writes."""
        return int(self._value("PRAGMA data_version"))

    def source_id(self, source: Source) -> int:
        """The number of a source, which is given one if it is new."""
        found = self._database.execute(
            "SELECT id FROM sources WHERE (adapter_digest, bank, policy) = (?, ?, ?) "
            "AND novelty_digest IS ?",
            source,
        ).fetchone()
        if found is not None:
            return int(found[0])
        inserted = self._database.execute(
            "INSERT INTO sources (adapter_digest, bank, policy, novelty_digest) "
            "VALUES (?, ?, ?, ?)",
            source,
        )
        return int(inserted.lastrowid or 0)

    def source(self, number: int) -> tuple[Source, str | None]:
        """A source and the state of its promise's watch."""
        *fields, watch = self._database.execute(
            "SELECT adapter_digest, bank, policy, novelty_digest, watch FROM sources WHERE id = ?",
            (number,),
        ).fetchone()
        return Source(*fields), watch

    def set_watch(self, number: int, watch: str) -> None:
        """Keeps the state of a promise's watch."""
        self._database.execute("UPDATE sources SET watch = ? WHERE id = ?", (watch, number))

    def add(self, source: int, answers: Sequence[KeptAnswer]) -> None:
        """Keeps answers of one source."""
        self._database.executemany(_ADD, [(*answer, source) for answer in answers])

    def owners(self, request_id: str) -> list[str]:
        """Who has an answer of that id."""
        found = self._database.execute(
            "SELECT owner FROM answers WHERE request_id = ?", (request_id,)
        )
        return [owner for (owner,) in found]

    def find(self, request_id: str, owner: str) -> AnswerRecord | None:
        """What is kept under an id of an owner's."""
        record = self._database.execute(
            "SELECT source, label, decision, accepted, true_label, called FROM answers "
            "WHERE (request_id, owner) = (?, ?)",
            (request_id, owner),
        ).fetchone()
        return None if record is None else AnswerRecord(*record)

    def judge(self, request_id: str, owner: str, true_label: str, now: float) -> None:
        """Keeps the truth about an answer."""
        self._database.execute(
            "UPDATE answers SET true_label = ?, labelled_at = ? WHERE (request_id, owner) = (?, ?)",
            (true_label, now, request_id, owner),
        )

    def groups(self, source: int) -> list[Group]:
        """Adds up the judged answers of a source."""
        return [Group(*sums) for sums in self._database.execute(_COUNT, (source,))]

    def prune(self, oldest: float, most: int) -> int:
        """Deletes answers from before `oldest`, and those above `most`; says how many."""
        expired = self._database.execute("DELETE FROM answers WHERE answered_at < ?", (oldest,))
        above = max(int(self._value("SELECT count(*) FROM answers")) - most, 0)
        if above:
            self._database.execute(_EVICT, (above,))
        return expired.rowcount + above

    def _value(self, query: str) -> Any:
        return self._database.execute(query).fetchone()[0]


def check_kind(database: sqlite3.Connection, path: Path) -> int:
    """The version of a store.

    Raises:
        ConfigError: the file is no store, or one of a later version.
    """
    application, version = (
        int(database.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("application_id", "user_version")
    )
    if application != _APPLICATION:
        raise ConfigError(f"{path} is a database of another program: name another file")
    if not 1 <= version <= VERSION:
        raise ConfigError(
            f"{path} is a feedback store of version {version}, but this software reads versions up "
            f"to {VERSION}: name another file"
        )
    return version
