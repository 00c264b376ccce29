"""The body and status of an error, in the words of the protocol that was spoken.

Where a path is of a protocol of others, its clients parse errors, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.api import problems
from service.api.problems import Problem
from service.api.schemas import ErrorBody
from service.errors import Fault, dotted

SYSTEMONE, MODELS, DECISIONS = "/v1/systemone", "/v1/models", "/v1/decisions"


@dataclass(frozen=True, slots=True)
class Failure:
    """What there is to say about a request that failed.

    Attributes:
        problem: of which kind.
        sentence: what is wrong and what would be right.
        request_id: names the request.
        faults: of its body, where that is to blame.
    """

    problem: Problem
    sentence: str
    request_id: str
    faults: Sequence[Fault] = ()


Form = Callable[[Failure], tuple[int, dict[str, Any]]]


def own(failure: Failure) -> tuple[int, dict[str, Any]]:
    """A sentence, its slug, and the request's id."""
    body = ErrorBody(
        error=failure.sentence,
        error_type=failure.problem.error_type,
        request_id=failure.request_id,
    )
    return failure.problem.status, body.model_dump()


def systemone(failure: Failure) -> tuple[int, dict[str, Any]]:
    """A list of what is wrong with the body, or a type and a message."""
    problem = failure.problem
    if _is_the_bodys(problem):
        faults = failure.faults or [Fault((), failure.sentence, problem.error_type)]
        detail = [
            {"loc": ["body", *path], "msg": message, "type": kind} for path, message, kind in faults
        ]
        return problems.INVALID.status, {"detail": detail}
    slug = "authentication_error" if problem is problems.UNAUTHORIZED else problem.error_type
    return problem.status, {"detail": {"error_type": slug, "message": failure.sentence}}


def openai(failure: Failure) -> tuple[int, dict[str, Any]]:
    """A message with a type, the parameter that is wrong, and our slug as the code."""
    problem = failure.problem
    first = next(iter(failure.faults), None)
    error = {
        "message": failure.sentence,
        "type": _OPENAI_TYPES.get(
            problem.status, "server_error" if problem.status >= 500 else "invalid_request_error"
        ),
        "param": dotted(first.path) or None if first else None,
        "code": problem.error_type,
    }
    return 400 if _is_the_bodys(problem) else problem.status, {"error": error}


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_FORMS: Mapping[str, Form] = {SYSTEMONE: systemone, MODELS: systemone, DECISIONS: openai}


def form_of(path: str) -> Form:
    """How errors on a path are written."""
    return _FORMS.get(path, own)


def documented(form: Form, *listed: Problem) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for errors in a form; those of one status share an entry."""
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in listed:
        failure = Failure(problem, problem.example, "5f2b6c1e0d9a4b7f8c3e2a1d0b9c8f7e")
        status, body = form(failure)
        entry = responses.setdefault(
            status,
            {
                "description": problem.summary,
                "content": {"application/json": {"schema": {"type": "object"}, "examples": {}}},
                **problems.headers_of(problem),
            },
        )
        entry["content"]["application/json"]["examples"][problem.error_type] = {"value": body}
    return responses


def _is_the_bodys(problem: Problem) -> bool:
    """Whether the problem is what the body says, or that it says nothing."""
    return problem.status in (problems.MALFORMED.status, problems.INVALID.status)
