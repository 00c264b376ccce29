"""One request and its answer, retries included, without any I/O.

An exchange is a generator: it yields a request to send or a number of seconds to sleep, is sent
the response, and returns the answer. `Client` and `AsyncClient` differ in who sends and sleeps.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from dalorra.client._answers import (
    Adapter,
    Adapters,
    Answers,
    Feedback,
    Health,
    Info,
    Input,
    Prediction,
    Predictions,
    Question,
    State,
)
from dalorra.client._errors import (
    ClientError,
    TimedOutError,
    TransportError,
    UnexpectedAnswerError,
    class_for,
)
from dalorra.client._retries import Retries, parse_retry_after

T = TypeVar("T")
A = TypeVar("A", bound=BaseModel)

Exchange = Generator[httpx.Request | float, httpx.Response | None, T]

REQUEST_ID = "X-Request-Id"


class Exchanges:
    """The requests of the API.

    Args:
        http: builds requests: knows the base address, the headers and the timeout.
        retries: when one is sent again.
    """

    def __init__(self, http: httpx.Client | httpx.AsyncClient, retries: Retries) -> None:
        self._http = http
        self._retries = retries

    def predict(
        self,
        value: Input,
        adapter: str | None,
        return_samples: bool,
        target_error: float | None,
        request_id: str | None,
    ) -> Exchange[Prediction]:
        """POST /predict."""
        options = _options(adapter, return_samples, target_error)
        body = {"input": _plain(value), **options}
        return (yield from self._ask("POST", "predict", Prediction, body, request_id))

    def predict_batch(
        self,
        inputs: Sequence[Input],
        adapter: str | None,
        return_samples: bool,
        target_error: float | None,
        request_id: str | None,
    ) -> Exchange[list[Prediction]]:
        """POST /predict/batch."""
        if not inputs:
            return []
        options = _options(adapter, return_samples, target_error)
        body = {"inputs": [_plain(value) for value in inputs], **options}
        answer = yield from self._ask("POST", "predict/batch", Predictions, body, request_id)
        if len(answer.predictions) != len(inputs):
            raise UnexpectedAnswerError(
                f"{len(inputs)} inputs were answered by {len(answer.predictions)} predictions"
            )
        return answer.predictions

    def ask(
        self,
        state: State,
        questions: Mapping[str, Question],
        model: str | None,
        return_samples: bool,
        target_error: float | None,
        request_id: str | None,
    ) -> Exchange[Answers]:
        """POST /v1/systemone."""
        given: dict[str, Any] = {
            "model": model,
            "x_return_samples": return_samples or None,
            "x_target_error": target_error,
        }
        body = {
            "state": state,
            "questions": {name: dict(question) for name, question in questions.items()},
            **{name: value for name, value in given.items() if value is not None},
        }
        return (yield from self._ask("POST", "v1/systemone", Answers, body, request_id))

    def feedback(self, request_id: str, label: str) -> Exchange[Feedback]:
        """POST /feedback."""
        body = {"request_id": request_id, "label": label}
        return (yield from self._ask("POST", "feedback", Feedback, body))

    def info(self, adapter: str | None) -> Exchange[Info]:
        """GET /info."""
        path = "info" if adapter is None else f"info?adapter={_escaped(adapter)}"
        return (yield from self._ask("GET", path, Info))

    def adapters(self) -> Exchange[list[Adapter]]:
        """GET /adapters."""
        return (yield from self._ask("GET", "adapters", Adapters)).adapters

    def load_adapter(self, name: str, path: str) -> Exchange[Adapter]:
        """PUT /adapters/{name}."""
        address = f"adapters/{_escaped(name)}"
        return (yield from self._ask("PUT", address, Adapter, {"path": path}))

    def unload_adapter(self, name: str) -> Exchange[list[Adapter]]:
        """DELETE /adapters/{name}."""
        address = f"adapters/{_escaped(name)}"
        return (yield from self._ask("DELETE", address, Adapters)).adapters

    def health(self) -> Exchange[Health]:
        """GET /health/ready: one attempt, as "no" is an answer."""
        response = yield self._http.build_request("GET", "health/ready")
        if response is None or response.status_code not in (200, 503):
            raise _error(response)
        if response.status_code == 200:
            return Health(ready=True)
        error = _error(response)
        return Health(ready=False, error_type=error.error_type, reason=str(error))

    def _ask(
        self,
        method: str,
        path: str,
        kind: type[A],
        body: dict[str, Any] | None = None,
        request_id: str | None = None,
    ) -> Exchange[A]:
        # Escaped to ASCII, so that half of a surrogate pair reaches the server, which refuses it.
        content = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        if request_id:
            headers[REQUEST_ID] = request_id
        attempt = 0
        while True:
            attempt += 1
            response = yield self._http.build_request(
                method, path, content=content, headers=headers
            )
            if response is not None and response.status_code == 200:
                return _parse(response, kind)
            error = _error(response)
            wait = self._retries.wait(attempt, error.status or 0, error.retry_after)
            if wait is None:
                raise error
            yield wait


def transport_error(error: httpx.RequestError) -> ClientError:
    """A failure of httpx as one of ours."""
    url = error.request.url
    if isinstance(error, httpx.TimeoutException):
        return TimedOutError(f"{url} did not answer within the timeout of the client")
    return TransportError(f"{url} could not be reached: {error or type(error).__name__}")


def _plain(value: Input) -> str | dict[str, str]:
    return value if isinstance(value, str) else dict(value)


def _options(
    adapter: str | None, return_samples: bool, target_error: float | None
) -> dict[str, Any]:
    """What differs from the server's defaults."""
    given: dict[str, Any] = {
        "adapter": adapter,
        "return_samples": return_samples or None,
        "target_error": target_error,
    }
    return {name: value for name, value in given.items() if value is not None}


def _escaped(name: str) -> str:
    return quote(name, safe="")


def _parse(response: httpx.Response, kind: type[A]) -> A:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UnexpectedAnswerError(
            f"{response.request.url} did not answer as this server does: "
            f"{where + ': ' if where else ''}{first['msg']}",
            status=response.status_code,
            request_id=response.headers.get(REQUEST_ID),
        ) from None


def _error(response: httpx.Response | None) -> ClientError:
    if response is None:
        raise RuntimeError("an exchange was not sent the response")
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    body = _flat(body if isinstance(body, dict) else {})
    slug = body.get("error_type")
    error_type = slug if isinstance(slug, str) else None
    kind = class_for(error_type, response.status_code)
    sentence = body.get("error") or f"{response.request.url} answered {response.status_code}"
    return kind(
        str(sentence),
        error_type=error_type,
        status=response.status_code,
        request_id=body.get("request_id") or response.headers.get(REQUEST_ID),
        retry_after=parse_retry_after(response.headers.get("Retry-After")),
    )


def _flat(body: dict[str, Any]) -> dict[str, Any]:
    """An error's body; of typed questions, whose protocol has another form, as of all others."""
    match body.get("detail"):
        case {"error_type": slug, "message": sentence}:
            return {"error_type": slug, "error": sentence}
        case [{"loc": ["body", *path], "msg": sentence}, *_]:
            where = ".".join(map(str, path))
            return {"error": f"{where}: {sentence}" if where else sentence}
    return body
