"""Paths and methods: what there is not is refused before anything is read."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.api.middleware.auth import OPEN_PATHS
from tests.serving import error_sentence, serving

ADMIN = {"Authorization": "Bearer admin"}


async def unread() -> AsyncIterator[bytes]:
    pytest.fail("the body was read")
    yield b""


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
async def test_405_on_open_paths_before_the_body_is_read(path: str, method: str):
    async with serving(api_keys="k") as server:
        response = await server.client.request(method, path, content=unread())
    assert "use GET, HEAD" in error_sentence(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD"


async def test_404_before_the_body_is_read():
    async with serving() as server:
        error_sentence(await server.client.post("/nowhere", content=unread()), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/predict", "GET", "POST"),
        ("/predict/batch", "DELETE", "POST"),
        ("/feedback", "PUT", "POST"),
        ("/info", "POST", "GET, HEAD"),
        ("/openapi.json", "POST", "GET, HEAD"),
        ("/docs", "POST", "GET, HEAD"),
        ("/adapters", "POST", "GET, HEAD"),
        ("/adapters/a", "GET", "PUT, DELETE"),
        ("/adapters/a", "HEAD", "PUT, DELETE"),
        ("/v2/models/a", "POST", "GET, HEAD"),
        ("/v2/models/a/infer", "GET", "POST"),
        ("/mcp", "GET", "POST"),  # a stream without end
        ("/mcp", "DELETE", "POST"),
    ],
)
async def test_allow_lists_what_is_allowed(path: str, method: str, allowed: str):
    async with serving() as server:
        response = await server.client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("path", [*sorted(OPEN_PATHS), "/info", "/docs", "/openapi.json", "/v2"])
async def test_head_is_get_without_the_body(path: str):
    async with serving() as server:
        got, headed = await server.client.get(path), await server.client.head(path)
    assert (headed.status_code, headed.content) == (got.status_code, b"") == (200, b"")
    assert headed.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("path", ["/predict/", "/info/", "/health/live/", "//predict", "/v2/"])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_no_path_leads_elsewhere(path: str, method: str):
    async with serving(allowed_hosts="*") as server:
        request: dict[str, Any] = {"headers": {"Host": "evil.example"}}
        response = await server.client.request(method, f"http://localhost{path}", **request)
    assert response.status_code == 404
    assert "location" not in response.headers
