"""Answers and their truth in a PostgreSQL database, for the replicas of one service.

In a schema of its own. A lock of each transaction lets one replica write at a time, as a file does.
A connection that breaks is made anew for the next transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from dalorra.errors import ConfigError
from service.feedback.store import LOCK_SECONDS
from service.feedback.tables import ANSWERS, CLOCK, SOURCES, AnswerTables

VERSION = 1
"""Of the tables."""
SCHEMA = "dalorra_feedback"

_LOCK = 0x44414C46  # "DALF": one of the database's advisory locks
_TYPES = {
    "number": "INTEGER GENERATED ALWAYS AS IDENTITY",
    "real": "DOUBLE PRECISION",
    "truth": "BOOLEAN",
}
# `revision` counts what figures are made of: judgements, and deletions.
_ABOUT = "CREATE TABLE about (version INTEGER NOT NULL, revision BIGINT NOT NULL)"
_ALIVE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


class SharedStore(AnswerTables):
    """One open connection.

    Args:
        url: `postgresql://…` of a database in which its user may make a schema.
        reads_only: whether the tables must be there and stay as they are.

    Raises:
        ConfigError: the database cannot be had, or the store in it is of another version.
    """

    bin_of_place = "greatest(ceil(place)::integer - 1, 0)"

    def __init__(self, url: str, *, reads_only: bool = False) -> None:
        self._url = url
        self._revisions = 0  # that were made here
        try:
            where = conninfo_to_dict(url)
            self._name = f"{where.get('host', '')}/{where.get('dbname', '')}"
            self._connection = self._connect()
            if reads_only:
                self.run("SET default_transaction_read_only = on")
            else:
                self._prepare()
            self._check_version()
        except psycopg.Error as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(f"the feedback store cannot be opened: {reason}") from None

    def _connect(self) -> psycopg.Connection[Any]:
        given = conninfo_to_dict(self._url)
        options = {name: value for name, value in _ALIVE.items() if name not in given}
        connection = psycopg.connect(self._url, autocommit=True, **options)  # type: ignore[arg-type]
        connection.execute(f"SET search_path TO {SCHEMA}")
        connection.execute(f"SET lock_timeout = '{LOCK_SECONDS:g}s'")
        connection.execute(f"SET statement_timeout = '{3 * LOCK_SECONDS:g}s'")
        return connection

    def _prepare(self) -> None:
        with self.transaction():
            found = self.run("SELECT to_regclass(?)", (f"{SCHEMA}.about",)).fetchone()
            if found == (None,):
                self.run(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                for statement in (_ABOUT, SOURCES, *ANSWERS.strip().split(";\n"), CLOCK):
                    self.run(statement.format(**_TYPES))
                self.run("INSERT INTO about VALUES (?, 0)", (VERSION,))

    def _check_version(self) -> None:
        [(version,)] = self.run("SELECT version FROM about").fetchall()
        if version != VERSION:
            raise ConfigError(
                f"the feedback store in {self._name} is of version {version}, but this software "
                f"reads version {VERSION}: name another database"
            )

    def run(self, statement: str, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        """See `AnswerTables`."""
        if self._connection.closed:
            self._connection = self._connect()
        return self._connection.execute(_marked(statement), _storable(values))

    def run_for_each(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        """See `AnswerTables`."""
        with self._connection.cursor() as cursor:
            cursor.executemany(_marked(statement), [_storable(one) for one in values])

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See `AnswerTables`."""
        try:
            self._begin()
        except psycopg.OperationalError:
            if not self._connection.closed:
                raise
            self._begin()  # on a new connection: nothing has been written yet
        try:
            yield
        except BaseException:
            with suppress(psycopg.Error):
                self.run("ROLLBACK")
            raise
        self.run("COMMIT")

    def _begin(self) -> None:
        self.run("BEGIN")
        self.run("SELECT pg_advisory_xact_lock(?)", (_LOCK,))

    @property
    def changes_of_others(self) -> int:
        """See `AnswerTables`."""
        [(revision,)] = self.run("SELECT revision FROM about").fetchall()
        return int(revision) - self._revisions

    def judge(self, request_id: str, owner: str, true_label: str, now: float) -> None:
        """See `AnswerTables`."""
        super().judge(request_id, owner, true_label, now)
        self._revise()

    def prune(self, oldest: float, most: int) -> int:
        """See `AnswerTables`."""
        if removed := super().prune(oldest, most):
            self._revise()
        return removed

    def _revise(self) -> None:
        self.run("UPDATE about SET revision = revision + 1")
        self._revisions += 1


def _marked(statement: str) -> bytes:
    return statement.replace("?", "%s").encode()


def _storable(values: Sequence[Any]) -> list[Any]:
    """The same without what no text in PostgreSQL may hold."""
    return [
        one.replace("\0", "\N{SYMBOL FOR NULL}") if isinstance(one, str) else one for one in values
    ]
