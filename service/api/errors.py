"""The one place that turns an exception into a response."""

from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from dalorra.errors import InputError, fault_in_words
from service import errors
from service.api.error_forms import Failure, form_of
from service.api.problems import (
    BY_STATUS,
    INTERNAL,
    INVALID,
    MALFORMED,
    PROBLEMS,
    Problem,
    problem_of,
)

_log = structlog.get_logger("dalorra.api")

OF_EVERY_PATH = (
    "Beside what is listed with it, any path may answer 400 `bad_request` (no valid HTTP), 404 "
    "`not_found`, 405 `method_not_allowed`, 408 `request_timeout` (the request was too long in "
    "coming), 421 `unknown_host` (`Host` is not among `allowed_hosts`) and 503 `busy`, in the form "
    "of every other error."
)
"""For the OpenAPI document."""


def error_response(error: Exception, scope: Scope) -> JSONResponse:
    """The answer to a request that raised `error`, in the form of its path's protocol.

    Leaves the `Problem` in the request's state, where the access middleware counts and logs it.
    """
    problem, sentence = _explain(error, scope)
    state = scope.setdefault("state", {})
    state["problem"] = problem
    faults = error.faults if isinstance(error, errors.InvalidBodyError) else ()
    failure = Failure(problem, sentence, state.get("request_id", ""), faults)
    status, body = form_of(scope["path"])(failure)
    return JSONResponse(body, status, _headers(error))


def install(app: FastAPI) -> None:
    """Sends every exception of the routes through `error_response`."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return error_response(error, request.scope)

    for kind in (*PROBLEMS, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle)


def _explain(error: Exception, scope: Scope) -> tuple[Problem, str]:
    if isinstance(error, RequestValidationError):
        return _explain_validation(error, scope)
    if isinstance(error, HTTPException) and error.status_code in BY_STATUS:
        problem = BY_STATUS[error.status_code]
        return problem, {
            400: "the body is not valid JSON in UTF-8",
            404: f"there is nothing at {scope['path'][: errors.LONGEST_ECHO]}",
            405: f"{scope['method']} is not allowed here: use {_allowed(error)}",
        }[error.status_code]
    if (problem := problem_of(error)) is not INTERNAL:
        place = error.place if isinstance(error, InputError) else None
        return problem, str(error) if place is None else f"inputs[{place}]: {error}"
    _log.error("unhandled", exc_info=error)
    return INTERNAL, "the server made a mistake: its log has the details under this request_id"


def _explain_validation(error: RequestValidationError, scope: Scope) -> tuple[Problem, str]:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return MALFORMED, f"the body is not valid JSON: {first['ctx']['error']}"
    path = [str(part) for part in first["loc"][1:]]
    if not path:
        content_type = dict(scope["headers"]).get(b"content-type", b"")
        if b"json" not in content_type:
            return INVALID, "send a JSON object with the header Content-Type: application/json"
        return INVALID, "the body must be a JSON object"
    return INVALID, f"{_readable(path)}: {_message(error.errors())}"


def _readable(path: list[str]) -> str:
    """`["inputs", "3", "str"]` as `inputs[3]`; the member of a union says nothing to a client."""
    name = path[0][: errors.LONGEST_ECHO]
    for part in path[1:2]:
        name += f"[{part}]" if part.isdigit() else ""
    return name


def _message(problems: Sequence[Any]) -> str:
    """What is wrong with the first place that has something wrong."""
    first = problems[0]
    if first["loc"][-1] == "str" or "dict[str,str]" in first["loc"]:
        return "must be a string or an object of strings"
    return fault_in_words(first["type"], first["msg"])


def _allowed(error: HTTPException) -> str:
    return (error.headers or {}).get("Allow", "another method")


def _headers(error: Exception) -> dict[str, str]:
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
    if isinstance(error, errors.UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.ServiceError) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return headers
