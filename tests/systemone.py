"""Asking `/v1/systemone`, and the forms of its errors."""

from typing import Any

import httpx

from tests.questions import QUESTIONS, STATE
from tests.serving import RunningServer

PATH = "/v1/systemone"


async def post(server: RunningServer, questions: Any = QUESTIONS, **body: Any) -> httpx.Response:
    asked = {"model": "jev-latest", "state": STATE, "questions": questions, **body}
    return await server.client.post(PATH, json=asked)


async def answers(server: RunningServer, questions: Any = QUESTIONS, **body: Any) -> dict[str, Any]:
    response = await post(server, questions, **body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["answers"]
    return found


def fault(response: httpx.Response, *path: Any) -> str:
    """Checks the form of a fault of the body; what the one at `path` says."""
    assert response.status_code == 422, response.text
    detail = response.json()["detail"]
    assert all(set(one) == {"loc", "msg", "type"} for one in detail)
    [said] = [one["msg"] for one in detail if one["loc"] == ["body", *path]]
    return str(said)


def refusal(response: httpx.Response, status: int, error_type: str) -> str:
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert set(detail) == {"error_type", "message"}
    assert detail["error_type"] == error_type
    return str(detail["message"])
