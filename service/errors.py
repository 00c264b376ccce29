"""What can go wrong with one request, apart from the request itself (`dalorra.errors.InputError`).

Each class is raised where it happens; `service.api.problems` alone knows its HTTP status.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dalorra.errors import DalorraError

LONGEST_ECHO = 100
"""Characters of a client's own words in a sentence that is sent back."""


class ServiceError(DalorraError):
    """Base class of all of them.

    Attributes:
        retry_after: seconds after which the same request may succeed, when that is known.
    """

    retry_after: int | None = None

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after or self.retry_after


class QueueFullError(ServiceError):
    """The queue has no place left; there will be one in about `retry_after` seconds."""


class RateLimitedError(ServiceError):
    """The key asks more often than it may; wait about `retry_after` seconds."""


class BatchTooLargeError(ServiceError):
    """One request carries more inputs than the server takes."""


class BodyTooLargeError(ServiceError):
    """The body is longer than the server reads."""


class Fault(NamedTuple):
    """One thing that is wrong with a body.

    Attributes:
        path: names and numbers that lead to it.
        message: what is wrong.
        kind: a slug, as pydantic has them.
    """

    path: tuple[str | int, ...]
    message: str
    kind: str


class MalformedBodyError(ServiceError):
    """The body is not JSON."""


class InvalidBodyError(ServiceError):
    """The body is JSON, but not what is asked for.

    Attributes:
        faults: what is wrong with it, at least one thing.
    """

    def __init__(self, *faults: Fault) -> None:
        first = faults[0]
        where = dotted(first.path)
        super().__init__(f"{where}: {first.message}" if where else first.message)
        self.faults = faults


class BadRequestError(ServiceError):
    """The request breaks the rules of HTTP."""


class TooSlowError(ServiceError):
    """The client takes too long to send what it began."""


class UnknownHostError(ServiceError):
    """The request is for a name that is not the server's."""


class BusyError(ServiceError):
    """The server has as many connections or requests in hand as it takes."""

    retry_after = 1


class UnauthorizedError(ServiceError):
    """The request carries no key, or one that is not known."""


class UnknownAdapterError(ServiceError):
    """No adapter of that name is loaded."""


class DefaultAdapterError(ServiceError):
    """The adapter that answers when none is named cannot be unloaded."""


class TooManyAdaptersError(ServiceError):
    """As many adapters are loaded as `max_adapters` allows."""


class ForbiddenError(ServiceError):
    """The key is known but does not allow this, or the settings allow it to nobody."""


class DeadlineError(ServiceError):
    """The answer was not ready in time."""


class InferenceError(ServiceError):
    """The forward pass failed on this input."""


class LoadingError(ServiceError):
    """The model is not ready yet."""

    retry_after = 5


class DrainingError(ServiceError):
    """The server is shutting down; another replica can answer at once."""

    retry_after = 1


class UnavailableError(ServiceError):
    """The model could not be loaded, its device no longer works, or its process is gone."""


class ClientGoneError(ServiceError):
    """The client closed the connection before its answer was ready."""


class FeedbackOffError(ServiceError):
    """The server keeps no answers."""


class UnknownAnswerError(ServiceError):
    """No answer is kept under that id, or it has been deleted."""


class AlreadyJudgedError(ServiceError):
    """The truth about that answer was given before."""


class OtherAdapterError(ServiceError):
    """The answer is of an adapter that is not served any more."""


class UnknownLabelError(ServiceError):
    """The adapter of the answer has no such label."""


class FeedbackStoreError(ServiceError):
    """The feedback could not be written."""

    retry_after = 5


def dotted(path: Sequence[str | int]) -> str:
    """`("questions", 3, "choices")` as `questions[3].choices`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")
