"""What the proxy of Ray Serve says where no replica answers; Ray itself is not needed."""

from collections.abc import Awaitable, Callable

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dalorra.cli.ray_proxy import middlewares
from tests.serving import error_sentence

App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def answer_of(app: App, path: str = "/predict", **headers: str) -> httpx.Response:
    behind: ASGIApp = app
    for middleware in middlewares():
        behind = middleware.cls(behind, *middleware.args, **middleware.kwargs)
    transport = httpx.ASGITransport(behind)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.post(path, headers=headers)


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """As Ray's own is where a replica dies with the request."""


async def torn(scope: Scope, receive: Receive, send: Send) -> None:
    """Where it dies with the answer half said."""
    headers = [(b"content-length", b"9"), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


@pytest.mark.parametrize(
    "app",
    [
        silent,
        torn,
        PlainTextResponse("Request 1 timed out after 60.0s.", 408),
        PlainTextResponse("Deployment is unavailable.", 503),
    ],
)
async def test_without_a_replica_it_is_a_503_that_may_be_sent_again(app: App):
    answer = await answer_of(app, **{"X-Request-Id": "mine"})
    assert "try again" in error_sentence(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["request_id"] == "mine"
    assert error_sentence(await answer_of(app), 503, "unavailable")


async def test_typed_questions_get_it_in_the_form_of_their_protocol():
    answer = await answer_of(silent, "/v1/systemone")
    assert (answer.status_code, answer.json()["detail"]["error_type"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/predict", JSONResponse({"label": "positive"})),
        ("/predict", JSONResponse({"error_type": "draining"}, 503)),
        ("/predict", JSONResponse({"error_type": "request_timeout"}, 408)),
        ("/metrics", PlainTextResponse("dalorra_ready 1.0")),
        ("/-/healthz", PlainTextResponse("unhealthy", 503)),
    ],
)
async def test_what_a_replica_says_or_ray_of_itself_is_passed_on(path: str, given: Response):
    answer = await answer_of(given, path)
    assert (answer.status_code, answer.content) == (given.status_code, given.body)
    assert "x-request-id" not in answer.headers


async def test_a_stream_is_passed_on_piece_by_piece():
    async def pieces(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"a", b"b", b""):
            body = {"type": "http.response.body", "body": piece, "more_body": piece != b""}
            await send(body)

    assert (await answer_of(pieces)).content == b"ab"


async def test_the_id_of_a_request_is_said_once():
    async def twice(scope: Scope, receive: Receive, send: Send) -> None:
        response = JSONResponse({})
        response.headers.append("X-Request-Id", "the replica's")
        response.headers.append("X-Request-Id", "Ray's")
        await response(scope, receive, send)

    answer = await answer_of(twice)
    assert answer.headers.get_list("x-request-id") == ["the replica's"]
