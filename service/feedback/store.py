"""Answers and their truth in one SQLite file.

Other processes of the same machine may use the same file, one transaction at a time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dalorra.errors import ConfigError
from service.feedback.tables import ANSWERS, CLOCK, SOURCES, AnswerTables

_APPLICATION = 0x44414C46  # "DALF": no other program's file is taken for a store
VERSION = 4
"""Of the file's tables; the first had no `cut_at`, the second no `called`, the third no `owner`."""
_ADDED = {1: "cut_at INTEGER", 2: "called TEXT", 3: "owner TEXT NOT NULL DEFAULT ''"}
"""What each version lacks of the next."""
LOCK_SECONDS = 10.0
"""What a transaction waits at most for another process's."""

_TYPES = {"number": "INTEGER", "real": "REAL", "truth": "INTEGER"}


class FeedbackStore(AnswerTables):
    """One open file.

    Args:
        path: the file; if it is missing, it is made, readable for its owner alone.
        reads_only: whether it must be there and stays as it is.

    Raises:
        ConfigError: the file cannot be opened, or is no feedback store; or it is only read, and of
            an earlier version.
    """

    bin_of_place = "max(CAST(place AS INTEGER) - (place = CAST(place AS INTEGER)), 0)"

    def __init__(self, path: Path, *, reads_only: bool = False) -> None:
        self._path = path
        try:
            if not reads_only:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={'ro' if reads_only else 'rw'}",
                uri=True,
                timeout=LOCK_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            with ExitStack() as failed:
                failed.callback(self._database.close)
                if reads_only:
                    self._check_up_to_date()
                else:
                    self._prepare()
                failed.pop_all()
        except (OSError, sqlite3.Error) as error:
            done = "read" if reads_only else "opened"
            raise ConfigError(f"feedback_store {path} cannot be {done}: {error}") from error

    def _prepare(self) -> None:
        # Deleted answers cannot be read back from the file.
        self.run("PRAGMA secure_delete = ON")
        with self.transaction():
            if self.run("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                self.run(SOURCES.format(**_TYPES))
                self._make_answers()
                self.run(f"PRAGMA application_id = {_APPLICATION}")
                self.run(f"PRAGMA user_version = {VERSION}")
            if (version := self._version()) < VERSION:
                self._bring_up_to_date(version)
            self.run(f"PRAGMA user_version = {VERSION}")
            self.run(CLOCK.format(**_TYPES))
        self.run("PRAGMA journal_mode = WAL")
        self.run("PRAGMA synchronous = NORMAL")

    def _make_answers(self) -> None:
        for statement in ANSWERS.format(**_TYPES).strip().split(";\n"):
            self.run(statement)

    def _bring_up_to_date(self, version: int) -> None:
        """Answers from before they had owners are those of whoever asks without a key."""
        for earlier in range(version, VERSION):
            self.run(f"ALTER TABLE answers ADD COLUMN {_ADDED[earlier]}")
        self.run("ALTER TABLE answers RENAME TO earlier")
        for index in ("answers_by_worth", "answers_by_age", "answers_with_truth"):
            self.run(f"DROP INDEX IF EXISTS {index}")
        self._make_answers()
        columns = ", ".join(name for _, name, *_ in self.run("PRAGMA table_info(answers)"))
        self.run(f"INSERT INTO answers ({columns}) SELECT {columns} FROM earlier")  # noqa: S608 - ours
        self.run("DROP TABLE earlier")

    def _check_up_to_date(self) -> None:
        if self._version() < VERSION:
            raise ConfigError(
                f"{self._path} is a feedback store of an earlier version: start the server with "
                "it, which brings it up to date"
            )

    def _version(self) -> int:
        """That of the file.

        Raises:
            ConfigError: it is no store, or one of a later version.
        """
        application, version = (
            int(self.run(f"PRAGMA {name}").fetchone()[0])
            for name in ("application_id", "user_version")
        )
        if application != _APPLICATION:
            raise ConfigError(f"{self._path} is a database of another program: name another file")
        if not 1 <= version <= VERSION:
            raise ConfigError(
                f"{self._path} is a feedback store of version {version}, but this software reads "
                f"versions up to {VERSION}: name another file"
            )
        return version

    def run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """See `AnswerTables`."""
        return self._database.execute(statement, values)

    def run_for_each(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        """See `AnswerTables`."""
        self._database.executemany(statement, values)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `AnswerTables`."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.run("ROLLBACK")
            raise
        self.run("COMMIT")

    @property
    def changes_of_others(self) -> int:
        """See `AnswerTables`."""
        return int(self.run("PRAGMA data_version").fetchone()[0])
