"""A server that answers by a script, for tests of the clients."""

import json
from typing import Any

import httpx

ANSWER = {
    "label": "positive",
    "probability": 0.9,
    "variance": 0.001,
    "decision": "accept",
    "reason": "because",
    "probabilities": {"negative": 0.1, "positive": 0.9},
    "entropy": 0.3,
    "mutual_information": 0.01,
    "samples": 10,
    "truncated": False,
    "model": "m",
    "adapter": "a",
    "request_id": "r",
}


class Script:
    """Answers in turn with what it was given; the last one again and again."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        # A copy: a response is read once, and by one of the two clients.
        content = answer.content
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


def answering(body: Any = ANSWER) -> Script:
    """Always the same."""
    return Script(httpx.Response(200, json=body))


def error(status: int, error_type: str, **headers: str) -> httpx.Response:
    body = {"error": f"this is {error_type}", "error_type": error_type, "request_id": "r1"}
    return httpx.Response(status, json=body, headers=headers)
