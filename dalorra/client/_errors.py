"""What can go wrong, as one tree.

ClientError
├── TransportError            no answer came
│   └── TimedOutError
├── RequestError              this request will never succeed
│   ├── InvalidInputError
│   │   └── AdapterRefusedError
│   ├── MalformedRequestError
│   ├── UnauthorizedError
│   │   └── ForbiddenError
│   ├── NotFoundError
│   │   └── UnknownAdapterError
│   ├── ConflictError
│   └── TooLargeError
├── BusyError                 the same request may succeed later
│   ├── QueueFullError
│   ├── RateLimitedError
│   └── NotReadyError
├── ServerError               the server's fault
│   ├── InferenceFailedError
│   └── DeadlineExceededError
└── UnexpectedAnswerError     not an answer of this server
"""

from dalorra.errors import DalorraError


class ClientError(DalorraError):
    """Base class of all of them.

    Attributes:
        error_type: the server's slug, e.g. `queue_full`; None when the server said nothing.
        status: HTTP status; None when there was no answer.
        request_id: names the request in the server's log; None when there was no answer.
        retry_after: seconds that the server asked to wait, when it did.
    """

    def __init__(
        self,
        message: str,
        *,
        error_type: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after


class TransportError(ClientError):
    """The server could not be reached, or the connection broke before the answer."""


class TimedOutError(TransportError):
    """Connecting, or waiting for the answer, took longer than the client's timeout."""


class RequestError(ClientError):
    """The request is at fault: the same one will never succeed. Any other status below 500."""


class InvalidInputError(RequestError):
    """The input does not fit the adapter's template, or is over-long."""


class AdapterRefusedError(InvalidInputError):
    """The adapter to be loaded is damaged, or does not fit the base model."""


class MalformedRequestError(RequestError):
    """The server could not read the request: the body is not JSON, or it is no valid HTTP."""


class WrongHostError(RequestError):
    """The server does not answer to the name in `base_url`: its `allowed_hosts` do not have it."""


class UnauthorizedError(RequestError):
    """The key is missing or unknown."""


class NotFoundError(RequestError):
    """There is nothing at this address, it takes another method, or no answer has that id."""


class ForbiddenError(UnauthorizedError):
    """The key is known but does not allow this, or the server's settings allow it to nobody."""


class UnknownAdapterError(NotFoundError):
    """No adapter of that name is loaded."""


class ConflictError(RequestError):
    """The server's state does not allow it: the default adapter is not unloaded, no more adapters
    than there may be are loaded, an answer is judged once and while its adapter is served.
    """


class TooLargeError(RequestError):
    """The body or the batch is larger than `Info.limits` allows, or a question is too long."""


class BusyError(ClientError):
    """The server takes no requests now; retrying, as far as it was allowed, did not help."""


class QueueFullError(BusyError):
    """Too many inputs wait for the model."""


class RateLimitedError(BusyError):
    """This key made more requests than it may; wait `retry_after` seconds."""


class NotReadyError(BusyError):
    """The server is loading, draining, broken, or has as much in hand as it takes."""


class ServerError(ClientError):
    """The server is at fault. Any other status from 500."""


class InferenceFailedError(ServerError):
    """The forward pass failed on this input, or the server made a mistake."""


class SlowRequestError(TransportError):
    """The request was too long in coming for the server's limit: the connection is too slow."""


class DeadlineExceededError(ServerError):
    """The answer was not ready within the server's own limit."""


class UnexpectedAnswerError(ClientError):
    """The answer is not one of this server's: something else listens there, or sits between."""


BY_ERROR_TYPE: dict[str, type[ClientError]] = {
    "invalid_input": InvalidInputError,
    "malformed_json": MalformedRequestError,
    "bad_request": MalformedRequestError,
    "request_timeout": SlowRequestError,
    "unknown_host": WrongHostError,
    "busy": NotReadyError,
    "unauthorized": UnauthorizedError,
    "forbidden": ForbiddenError,
    "not_found": NotFoundError,
    "unknown_adapter": UnknownAdapterError,
    "default_adapter": ConflictError,
    "too_many_adapters": ConflictError,
    "adapter_refused": AdapterRefusedError,
    "method_not_allowed": NotFoundError,
    "feedback_off": NotFoundError,
    "unknown_answer": NotFoundError,
    "already_judged": ConflictError,
    "other_adapter": ConflictError,
    "unknown_label": InvalidInputError,
    "feedback_store": NotReadyError,
    "body_too_large": TooLargeError,
    "batch_too_large": TooLargeError,
    "input_too_long": TooLargeError,
    "queue_full": QueueFullError,
    "rate_limited": RateLimitedError,
    "loading": NotReadyError,
    "draining": NotReadyError,
    "unavailable": NotReadyError,
    "inference_failed": InferenceFailedError,
    "internal_error": InferenceFailedError,
    "deadline_exceeded": DeadlineExceededError,
}

BY_STATUS: dict[int, type[ClientError]] = {
    400: MalformedRequestError,
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    405: NotFoundError,
    409: ConflictError,
    408: SlowRequestError,
    413: TooLargeError,
    421: WrongHostError,
    422: InvalidInputError,
    429: BusyError,
    503: NotReadyError,
    504: DeadlineExceededError,
}
"""For answers without a slug: those of a proxy in between."""


def class_for(error_type: str | None, status: int) -> type[ClientError]:
    """The most specific class for an answer; a slug that is not known goes by its status."""
    if error_type in BY_ERROR_TYPE:
        return BY_ERROR_TYPE[error_type]
    if status in BY_STATUS:
        return BY_STATUS[status]
    if status >= 500:
        return ServerError
    return RequestError if status >= 400 else UnexpectedAnswerError
