"""Reads the judged answers out of a store, beside a server that writes to it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from dalorra.decision.policy import Policy
from dalorra.errors import ConfigError
from service.feedback.places import open_to_read
from service.feedback.records import LabelledAnswer


def read_labelled(
    place: Path | str,
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
        place: the store, see `open_to_read`.
        adapter_digest: of the adapter that answered.
        temperature: that its label logits were divided by.
        samples: M.
        novelty_digest: of the novelty features; None: any.

    Raises:
        ConfigError: the store cannot be read, or holds no such answers.
    """
    with closing(open_to_read(place)) as store:
        sources = store.sources()
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
                for record in store.judged(number, samples)
            ),
            key=_arrival,
        )
    found = [LabelledAnswer(*rest) for _, *rest in records if rest[-1] == records[-1][-1]]
    if not found:
        shown = place if isinstance(place, Path) else "in PostgreSQL"
        others = {source.adapter_digest[:12] for _, source in sources} - {adapter_digest[:12]}
        known = f"; it has those of {', '.join(sorted(others))}…" if others else ""
        raise ConfigError(
            f"the feedback store {shown} has no judged answers of adapter {adapter_digest[:12]}… "
            f"as it is now, with all {samples} samples{known}"
        )
    return found


def _arrival(record: tuple[Any, ...]) -> tuple[Any, ...]:
    """When the truth about an answer came."""
    return record[:2]
