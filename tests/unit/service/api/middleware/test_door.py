"""What the head of a request gives reason to refuse, on every route."""

from typing import Any

import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from service.app import create_app
from service.settings import Settings
from tests.fakes import FakePredictor
from tests.listening import head, listening
from tests.serving import error_sentence, serving

PATHS = ["/predict", "/info", "/metrics", "/", "/health/live", "/mcp", "/nowhere", "/docs", "/v2"]


def application(**settings: Any) -> FastAPI:
    return create_app(Settings(**settings), lambda _: FakePredictor())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("keys", [{}, {"api_keys": "k"}])
async def test_a_local_server_answers_to_its_own_names_alone(path: str, keys: dict[str, str]):
    """DNS rebinding: a web page has its own name point to 127.0.0.1."""
    async with serving(**keys) as server:
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "[::2]"):
            response = await server.client.get(path, headers={"Host": host})
            assert "allowed_hosts" in error_sentence(response, 421, "unknown_host")
            assert response.headers["connection"] == "close"
        for host in ("localhost", "LocalHost:8000", "127.0.0.1:1", "[::1]", "[::1]:8000"):
            response = await server.client.get(path, headers={"Host": host})
            assert response.status_code != 421


@pytest.mark.parametrize(
    ("settings", "hosts"),
    [
        ({"host": "0.0.0.0"}, {"evil.example": True}),  # noqa: S104
        ({"allowed_hosts": "*"}, {"evil.example": True}),
        (
            {"host": "0.0.0.0", "allowed_hosts": "api.example, [fd00::1]"},  # noqa: S104
            {"API.example:443": True, "[FD00::1]:8000": True, "evil.example": False,
             "localhost": False},
        ),
        ({"allowed_hosts": "api.example"}, {"api.example": True, "localhost": False}),
    ],
)  # fmt: skip
async def test_which_names_are_known_can_be_said(settings: dict[str, Any], hosts: dict[str, bool]):
    async with serving(**settings) as server:
        for host, known in hosts.items():
            for path in ("/info", "/mcp"):
                response = await server.client.get(path, headers={"Host": host})
                assert (response.status_code != 421) is known, (host, path)


async def test_both_lengths_are_refused_and_leave_no_second_request_behind():
    app = application()
    second = head("GET", "/info")
    for lines in (["Content-Length: 4"], [f"Content-Length: {5 + len(second)}"]):
        said = head("POST", "/metrics", *lines, "Transfer-Encoding: chunked") + b"0\r\n\r\n"
        async with listening(app) as server, await server.connect(said + second) as caller:
            answer = await caller.rest()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"bad_request" in answer
        assert answer.count(b"HTTP/1.1") == 1


async def test_where_there_is_no_room_probes_are_answered_and_others_told_so():
    app = application()
    async with app.router.lifespan_context(app), listening(app, room=1) as server:
        await app.state.lifecycle.loading
        app.state.lifecycle.adapters.served[0].gate.clear()
        body = b'{"input": "waits for its answer"}'
        lines = [f"Content-Length: {len(body)}", "Content-Type: application/json"]
        async with await server.connect(head("POST", "/predict", *lines) + body) as waiting:
            while not app.state.lifecycle.engine.in_flight:
                await server.ask("/health/live")
            with capture_logs() as logs:
                refused = await server.ask("/info")
            for path in ("/health/live", "/health/ready", "/metrics", "/v2/health/live"):
                assert b"200 OK" in await server.ask(path), path
            app.state.lifecycle.adapters.served[0].gate.set()
            assert b"200 OK" in await waiting.one()
        assert b"200 OK" in await server.ask("/info")
    assert b"503 Service" in refused
    assert b'"busy"' in refused
    assert b"retry-after: 1" in refused.lower()
    assert logs[0]["error_type"] == "busy"
