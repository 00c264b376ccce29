"""What a client may be told: every status, slug and metric's label, and whose exception it is."""

from dataclasses import dataclass, replace
from typing import Any

from dalorra.errors import AdapterError, InputError, TooLongError
from service import errors
from service.api.schemas import ErrorBody
from service.telemetry import Outcome


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told about an exception.

    Attributes:
        status: HTTP status.
        error_type: stable slug that programs can compare.
        summary: what the OpenAPI document says about it.
        example: a sentence that the body may hold.
    """

    status: int
    error_type: str
    summary: str
    example: str

    @property
    def outcome(self) -> Outcome:
        """How a request that ended so is counted."""
        if self.status in (429, 503):
            return Outcome.REJECTED
        if self.status == CLIENT_GONE:
            return Outcome.CANCELLED
        return Outcome.FAILED if self.status >= 500 else Outcome.INVALID

    def alike(self, error_type: str, example: str) -> "Problem":
        """Another one of this status; the OpenAPI document says the same about both."""
        return replace(self, error_type=error_type, example=example)


CLIENT_GONE = 499
"""Never sent, as nobody listens; nginx's number for the log."""

MALFORMED = Problem(
    400, "malformed_json", "The body is not JSON.", "the body is not valid JSON: Expecting value"
)
BAD_REQUEST = MALFORMED.alike("bad_request", "send Content-Length or Transfer-Encoding, not both")
TOO_SLOW = Problem(
    408,
    "request_timeout",
    "The request was too long in coming.",
    "the body was not here within 30 s",
)
UNKNOWN_HOST = Problem(
    421,
    "unknown_host",
    "The request is for another server.",
    "this server is not 'example.org': ask for 127.0.0.1, localhost",
)
UNAUTHORIZED = Problem(
    401,
    "unauthorized",
    "The key is missing or unknown.",
    "send a known key in the header Authorization: Bearer …",
)
NOT_FOUND = Problem(404, "not_found", "No such path.", "there is nothing at /nowhere")
UNKNOWN_ADAPTER = Problem(
    404,
    "unknown_adapter",
    "No such path, or no adapter of that name.",
    "no adapter of that name is served: ask for 'sentiment'",
)
FORBIDDEN = Problem(
    403,
    "forbidden",
    "The key is not one that may do this, or the place is not one where it may be done.",
    "adapters are loaded and unloaded with a key of admin_keys: this is none",
)
DEFAULT_ADAPTER = Problem(
    409,
    "default_adapter",
    "The adapters that are loaded do not allow it.",
    "'sentiment' is the default adapter: it can be replaced, but not unloaded",
)
TOO_MANY_ADAPTERS = DEFAULT_ADAPTER.alike(
    "too_many_adapters",
    "16 adapters are loaded, as many as max_adapters allows: unload one first",
)
ADAPTER_REFUSED = Problem(
    422,
    "adapter_refused",
    "The adapter is damaged, or does not fit the base model.",
    "/adapters/topic has no dalorra.json: it is not a complete DALorRA adapter",
)
METHOD_NOT_ALLOWED = Problem(
    405, "method_not_allowed", "Wrong method.", "GET is not allowed here: use POST"
)
BODY_TOO_LARGE = Problem(
    413,
    "body_too_large",
    "The body or the batch is too large.",
    "the body is longer than 2000000 bytes",
)
BATCH_TOO_LARGE = BODY_TOO_LARGE.alike(
    "batch_too_large",
    "129 inputs are more than the 128 of one request: send several",
)
INVALID = Problem(
    422,
    "invalid_input",
    "The input does not fit the schema or the adapter's template, or is over-long.",
    "input lacks the field 'claim': send claim, evidence",
)
TOO_LONG = BODY_TOO_LARGE.alike(
    "input_too_long",
    "state and question take 2100 tokens, 2050 of them the state, and the limit is 2048: shorten "
    "them",
)
QUEUE_FULL = Problem(
    429,
    "queue_full",
    "The queue is full, or the key asks too often; `Retry-After` says when to come back.",
    "the queue is full (512 inputs, 38912 rows wait): try again in 3 s",
)
RATE_LIMITED = QUEUE_FULL.alike(
    "rate_limited",
    "this key may make 5 requests per second: try again in 1 s",
)
INFERENCE_FAILED = Problem(
    500,
    "inference_failed",
    "The forward pass failed.",
    "the forward pass failed on this input",
)
INTERNAL = INFERENCE_FAILED.alike(
    "internal_error",
    "the server made a mistake",
)
LOADING = Problem(
    503,
    "loading",
    "The server is loading, busy, draining or broken.",
    "the model is still loading: try again in a moment",
)
BUSY = LOADING.alike(
    "busy",
    "the server has as many connections as it takes: try again in a moment",
)
DRAINING = LOADING.alike(
    "draining",
    "the server is shutting down: try again",
)
UNAVAILABLE = LOADING.alike(
    "unavailable",
    "the model no longer works: restart the server",
)
DEADLINE = Problem(
    504, "deadline_exceeded", "Not ready in time.", "the answer was not ready within 30 s"
)
FEEDBACK_OFF = Problem(
    404,
    "feedback_off",
    "The server keeps no answers, or not this one.",
    "feedback is off: the server keeps answers once feedback_store is set",
)
UNKNOWN_ANSWER = FEEDBACK_OFF.alike(
    "unknown_answer",
    "no answer is kept under request_id 'abc': it was given by another server, to another "
    "key, longer ago than answers are kept, or never",
)
ALREADY_JUDGED = Problem(
    409,
    "already_judged",
    "The answer was judged before, or its adapter is served no more.",
    "the answer 'abc' was judged before, as 'negative': the first judgement stays",
)
OTHER_ADAPTER = ALREADY_JUDGED.alike(
    "other_adapter",
    "the answer 'abc' is of adapter 1b91f694f7b5…, which is not served any more",
)
UNKNOWN_LABEL = INVALID.alike(
    "unknown_label",
    "label 'good' is unknown to adapter 'sentiment': send one of negative, positive",
)
FEEDBACK_STORE = Problem(
    503,
    "feedback_store",
    "The feedback could not be written.",
    "the feedback store cannot be written",
)
GONE = Problem(CLIENT_GONE, "client_gone", "The client left.", "the client closed the connection")

PROBLEMS: dict[type[Exception], Problem] = {
    InputError: INVALID,
    TooLongError: TOO_LONG,
    errors.BadRequestError: BAD_REQUEST,
    errors.TooSlowError: TOO_SLOW,
    errors.UnknownHostError: UNKNOWN_HOST,
    errors.BusyError: BUSY,
    errors.UnauthorizedError: UNAUTHORIZED,
    AdapterError: ADAPTER_REFUSED,
    errors.ForbiddenError: FORBIDDEN,
    errors.UnknownAdapterError: UNKNOWN_ADAPTER,
    errors.DefaultAdapterError: DEFAULT_ADAPTER,
    errors.TooManyAdaptersError: TOO_MANY_ADAPTERS,
    errors.MalformedBodyError: MALFORMED,
    errors.InvalidBodyError: INVALID,
    errors.BodyTooLargeError: BODY_TOO_LARGE,
    errors.BatchTooLargeError: BATCH_TOO_LARGE,
    errors.QueueFullError: QUEUE_FULL,
    errors.RateLimitedError: RATE_LIMITED,
    errors.InferenceError: INFERENCE_FAILED,
    errors.LoadingError: LOADING,
    errors.DrainingError: DRAINING,
    errors.UnavailableError: UNAVAILABLE,
    errors.DeadlineError: DEADLINE,
    errors.FeedbackOffError: FEEDBACK_OFF,
    errors.UnknownAnswerError: UNKNOWN_ANSWER,
    errors.AlreadyJudgedError: ALREADY_JUDGED,
    errors.OtherAdapterError: OTHER_ADAPTER,
    errors.UnknownLabelError: UNKNOWN_LABEL,
    errors.FeedbackStoreError: FEEDBACK_STORE,
    errors.ClientGoneError: GONE,
}
BY_STATUS = {400: MALFORMED, 404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}
"""What the web framework itself finds wrong."""

ERROR_TYPES = sorted(
    {problem.error_type for problem in (*PROBLEMS.values(), *BY_STATUS.values(), INTERNAL)}
)
"""Every slug that a body can carry."""


def problem_of(error: Exception) -> Problem:
    """What a client is told about an exception; `INTERNAL` for one that is not listed."""
    known = (PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)
    return next(known, INTERNAL)


def documented(*problems: Problem) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for errors; those of one status share an entry."""
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in problems:
        entry = responses.setdefault(
            problem.status,
            {
                "model": ErrorBody,
                "description": problem.summary,
                "content": {"application/json": {"examples": {}}},
            },
        )
        entry["content"]["application/json"]["examples"][problem.error_type] = {
            "value": {
                "error": problem.example,
                "error_type": problem.error_type,
                "request_id": "5f2b6c1e0d9a4b7f8c3e2a1d0b9c8f7e",
            }
        }
        entry.update(headers_of(problem))
    return responses


def headers_of(problem: Problem) -> dict[str, Any]:
    """What OpenAPI says about the headers of an error."""
    if problem.status != QUEUE_FULL.status:
        return {}
    seconds = {
        "description": "Whole seconds to wait.",
        "schema": {"type": "integer", "minimum": 1},
    }
    return {"headers": {"Retry-After": seconds}}
