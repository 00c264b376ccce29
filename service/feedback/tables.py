"""What a store keeps and how it is asked, whichever database has its tables.

Synchronous: whoever opened a store uses it alone. What feedback adds to an answer and to the watch
of its promise is written together or not at all, and one transaction of all processes at a time: so
the watch of a promise is one, whoever hears of its answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from dalorra.decision.metrics import ECE_BINS
from service.feedback.live import Group
from service.feedback.records import AnswerRecord, KeptAnswer, Source

SOURCES = """
CREATE TABLE sources (
    id {number} PRIMARY KEY,
    adapter_digest TEXT NOT NULL,
    bank TEXT NOT NULL,
    policy TEXT NOT NULL,
    novelty_digest TEXT,
    watch TEXT
)
"""
ANSWERS = """
CREATE TABLE answers (
    request_id TEXT NOT NULL,
    answered_at {real} NOT NULL,
    label TEXT NOT NULL,
    probability {real} NOT NULL,
    variance {real} NOT NULL,
    novelty {real},
    cut_at INTEGER,
    samples INTEGER NOT NULL,
    decision TEXT NOT NULL,
    accepted {truth} NOT NULL,
    input TEXT,
    called TEXT,
    source INTEGER NOT NULL REFERENCES sources (id),
    true_label TEXT,
    labelled_at {real},
    owner TEXT NOT NULL,
    PRIMARY KEY (request_id, owner)
);
CREATE INDEX answers_by_worth ON answers ((true_label IS NOT NULL), answered_at);
CREATE INDEX answers_by_age ON answers (answered_at);
CREATE INDEX answers_with_truth ON answers (source) WHERE true_label IS NOT NULL;
"""
# The last time that was believed: of a table of its own, which earlier software passes over.
CLOCK = """
CREATE TABLE IF NOT EXISTS clock (id INTEGER PRIMARY KEY CHECK (id = 1), seconds {real} NOT NULL)
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
WHERE answers.true_label IS NULL
"""
_COUNT = f"""
WITH judged AS (
    SELECT accepted, true_label = label AS correct, probability, probability * {ECE_BINS} AS place
    FROM answers WHERE source = ? AND true_label IS NOT NULL
)
SELECT accepted, correct, {{bin}}, count(*), sum(probability)
FROM judged GROUP BY 1, 2, 3
"""  # noqa: S608 - a number of ours
# Judged answers are worth most: they are deleted last.
_EVICT = """
DELETE FROM answers WHERE (request_id, owner) IN (
    SELECT request_id, owner FROM answers ORDER BY (true_label IS NOT NULL), answered_at LIMIT ?
)
"""
_JUDGED = """
SELECT labelled_at, CASE owner WHEN '' THEN request_id ELSE owner || '/' || request_id END,
       label, probability, variance, novelty, cut_at, true_label
FROM answers WHERE source = ? AND true_label IS NOT NULL AND samples >= ?
"""


class AnswerTables(ABC):
    """One open store; a subclass knows its database."""

    bin_of_place: ClassVar[str]
    """Number of the confidence bin (lo, hi] that a `place` is in, as in
    `dalorra.decision.metrics.reliability_bins`: ⌈place⌉ − 1, at least 0."""

    @abstractmethod
    def run(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """The cursor of one statement, whose values stand for question marks."""

    @abstractmethod
    def run_for_each(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        """One statement for each of several lists of values."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """All that is written inside is written at its end, or nothing of it."""

    @property
    @abstractmethod
    def changes_of_others(self) -> int:
        """A number that changes whenever another process writes what figures are made of."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the database."""

    @property
    def time(self) -> float | None:
        """What `set_time` was told last; None in a new store."""
        found = self.run("SELECT seconds FROM clock").fetchone()
        return None if found is None else float(found[0])

    def set_time(self, now: float) -> None:
        """Keeps the time, for the next process."""
        self.run(
            "INSERT INTO clock VALUES (1, ?) "
            "ON CONFLICT (id) DO UPDATE SET seconds = excluded.seconds",
            (now,),
        )

    def source_id(self, source: Source) -> int:
        """The number of a source, which is given one if it is new."""
        found = self.run(
            "SELECT id FROM sources WHERE (adapter_digest, bank, policy) = (?, ?, ?) "
            "AND coalesce(novelty_digest, '') = ?",
            (*source[:3], source.novelty_digest or ""),
        ).fetchone()
        if found is None:
            [found] = self.run(
                "INSERT INTO sources (adapter_digest, bank, policy, novelty_digest) "
                "VALUES (?, ?, ?, ?) RETURNING id",
                source,
            ).fetchall()
        return int(found[0])

    def source(self, number: int) -> tuple[Source, str | None]:
        """A source and the state of its promise's watch."""
        *fields, watch = self.run(
            "SELECT adapter_digest, bank, policy, novelty_digest, watch FROM sources WHERE id = ?",
            (number,),
        ).fetchone()
        return Source(*fields), watch

    def sources(self) -> list[tuple[int, Source]]:
        """All of them, with their numbers."""
        found = self.run(
            "SELECT id, adapter_digest, bank, policy, novelty_digest FROM sources ORDER BY id"
        )
        return [(number, Source(*fields)) for number, *fields in found]

    def set_watch(self, number: int, watch: str) -> None:
        """Keeps the state of a promise's watch."""
        self.run("UPDATE sources SET watch = ? WHERE id = ?", (watch, number))

    def add(self, source: int, answers: Sequence[KeptAnswer]) -> None:
        """Keeps answers of one source."""
        self.run_for_each(_ADD, [(*answer, source) for answer in answers])

    def owners(self, request_id: str) -> list[str]:
        """Who has an answer of that id."""
        found = self.run(
            "SELECT owner FROM answers WHERE request_id = ? ORDER BY owner", (request_id,)
        )
        return [owner for (owner,) in found]

    def find(self, request_id: str, owner: str) -> AnswerRecord | None:
        """What is kept under an id of an owner's."""
        record = self.run(
            "SELECT source, label, decision, accepted, true_label, called FROM answers "
            "WHERE (request_id, owner) = (?, ?)",
            (request_id, owner),
        ).fetchone()
        return None if record is None else AnswerRecord(*record)

    def judge(self, request_id: str, owner: str, true_label: str, now: float) -> None:
        """Keeps the truth about an answer."""
        self.run(
            "UPDATE answers SET true_label = ?, labelled_at = ? WHERE (request_id, owner) = (?, ?)",
            (true_label, now, request_id, owner),
        )

    def groups(self, source: int) -> list[Group]:
        """Adds up the judged answers of a source."""
        counted = _COUNT.format(bin=self.bin_of_place)
        return [Group(*sums) for sums in self.run(counted, (source,))]

    def judged(self, source: int, samples: int) -> list[tuple[Any, ...]]:
        """Judged answers of a source with at least so many samples.

        Returns:
            Of each: when it was judged, then the fields of `LabelledAnswer` up to the truth.
        """
        return list(self.run(_JUDGED, (source, samples)))

    def prune(self, oldest: float, most: int) -> int:
        """Deletes answers from before `oldest`, and those above `most`; says how many."""
        expired = self.run("DELETE FROM answers WHERE answered_at < ?", (oldest,)).rowcount
        above = max(int(self.run("SELECT count(*) FROM answers").fetchone()[0]) - most, 0)
        if above:
            self.run(_EVICT, (above,))
        return int(expired) + above
