"""Web pages from elsewhere: shut out, unless their origin is named."""

import pytest

from tests.serving import serving

ASKS = {
    "Origin": "https://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
OPENED = {"api_keys": "k", "cors_origins": "https://app.example, https://other.example:8443"}


def allowed(response: object) -> dict[str, str]:
    headers: dict[str, str] = dict(response.headers)  # type: ignore[attr-defined]
    return {name: value for name, value in headers.items() if name.startswith("access-control")}


async def test_by_default_no_page_may_ask_or_read():
    async with serving() as server:
        asked = await server.client.options("/predict", headers=ASKS)
        answer = await server.predict("a", headers={"Origin": "https://app.example"})
    assert asked.status_code == 405
    assert answer.status_code == 200
    assert allowed(asked) == allowed(answer) == {}


async def test_a_named_origin_may_ask_with_a_key_and_read_what_it_needs():
    key = {"Authorization": "Bearer k", "Origin": "https://app.example"}
    async with serving(**OPENED) as server:
        asked = await server.client.options("/predict", headers=ASKS)
        answer = await server.predict("a", headers=key)
        refused = await server.predict("a", headers={"Origin": "https://app.example"})
    assert asked.status_code == 200  # although a browser sends no key with this question
    assert asked.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in asked.headers
    for response, status in ((answer, 200), (refused, 401)):
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert "X-Request-Id" in response.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example", "https://app.example.evil.example"]
)
async def test_any_other_is_shut_out(origin: str):
    async with serving(**OPENED) as server:
        asked = await server.client.options("/predict", headers=ASKS | {"Origin": origin})
        answer = await server.predict("a", headers={"Authorization": "Bearer k", "Origin": origin})
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in asked.headers
    assert "access-control-allow-origin" not in answer.headers
