"""Which database keeps the answers: a file, or one that replicas share."""

from __future__ import annotations

from pathlib import Path

from dalorra.errors import ConfigError
from service.feedback.store import FeedbackStore
from service.feedback.tables import AnswerTables

SCHEMES = ("postgresql://", "postgres://")


def open_store(place: Path | str) -> AnswerTables:
    """A store to write to.

    Args:
        place: a file, or the address of a PostgreSQL database.

    Raises:
        ConfigError: it cannot be opened, or what it needs is not installed.
    """
    return _shared(place) if isinstance(place, str) else FeedbackStore(place)


def open_to_read(place: Path | str) -> AnswerTables:
    """The same, for whoever only reads beside a server."""
    return (
        _shared(place, reads_only=True)
        if isinstance(place, str)
        else FeedbackStore(place, reads_only=True)
    )


def _shared(url: str, *, reads_only: bool = False) -> AnswerTables:
    try:
        from service.feedback.postgres import SharedStore
    except ImportError as error:
        raise ConfigError(
            "a feedback store in PostgreSQL needs psycopg: pip install 'dalorra-service[shared]'"
        ) from error
    return SharedStore(url, reads_only=reads_only)
