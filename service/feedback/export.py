"""Reads the judged answers out of a store, beside a server that writes to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from dalorra.decision.policy import Policy
from dalorra.errors import ConfigError
from service.feedback.records import LabelledAnswer, Source
from service.feedback.store import VERSION, check_kind

_SOURCES = "SELECT id, adapter_digest, bank, policy, novelty_digest FROM sources ORDER BY id"
_JUDGED = """
SELECT labelled_at, CASE owner WHEN '' THEN request_id ELSE owner || '/' || request_id END,
       label, probability, variance, novelty, cut_at, true_label
FROM answers WHERE source = ? AND true_label IS NOT NULL AND samples >= ?
"""


def read_labelled(
    path: Path,
    adapter_digest: str,
    *,
    temperature: float,
    samples: int,
    novelty_digest: str | None = None,
) -> list[LabelledAnswer]:
    """Answers with feedback that were made as those to come will be, in the order of the feedback.

    Those that were averaged over fewer than `samples` samples are left out, and those that were
    computed in another precision than the last one.

    Args:
        path: the store.
        adapter_digest: of the adapter that answered.
        temperature: that its label logits were divided by.
        samples: M.
        novelty_digest: of the novelty features; None: any.

    Raises:
        ConfigError: the file cannot be read, or holds no such answers.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            if check_kind(database, path) < VERSION:
                raise ConfigError(
                    f"{path} is a feedback store of an earlier version: start the server with it, "
                    "which brings it up to date"
                )
            sources = [(number, Source(*rest)) for number, *rest in database.execute(_SOURCES)]
            served = {number: Policy.model_validate_json(s.policy) for number, s in sources}
            alike = [
                number
                for number, source in sources
                if source.adapter_digest == adapter_digest
                and served[number].temperature == temperature
                and novelty_digest in (None, source.novelty_digest)
            ]
            records = sorted(
                (
                    (*record, " and ".join(served[number].precisions))
                    for number in alike
                    for record in database.execute(_JUDGED, (number, samples))
                ),
                key=_arrival,
            )
            found = [LabelledAnswer(*rest) for _, *rest in records if rest[-1] == records[-1][-1]]
    except sqlite3.Error as error:
        raise ConfigError(f"the feedback store {path} cannot be read: {error}") from error
    if not found:
        others = {source.adapter_digest[:12] for _, source in sources} - {adapter_digest[:12]}
        known = f"; it has those of {', '.join(sorted(others))}…" if others else ""
        raise ConfigError(
            f"the feedback store {path} has no judged answers of adapter {adapter_digest[:12]}… "
            f"as it is now, with all {samples} samples{known}"
        )
    return found


def _arrival(record: tuple[Any, ...]) -> tuple[Any, ...]:
    """When the truth about an answer came."""
    return record[:2]
