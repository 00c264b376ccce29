"""How often a key may ask."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalorra.client import AsyncClient, BusyError, RateLimitedError, Retries
from service.limits import TokenBucket
from tests.serving import JSON, RunningServer, error_sentence, serving

LIMITED = {"api_keys": "first-key,second-key", "rate_limit": 0.5, "rate_burst": 2}
FIRST, SECOND = ({"Authorization": f"Bearer {name}-key"} for name in ("first", "second"))


@given(
    st.floats(0.01, 100),
    st.integers(1, 20),
    st.lists(st.floats(0, 10), min_size=1, max_size=80),
)
def test_no_span_of_time_has_more_than_the_burst_and_the_pace(
    per_second: float, burst: int, pauses: list[float]
):
    bucket = TokenBucket(per_second, burst, burst, 0.0)
    now, taken = 0.0, []
    for pause in pauses:
        now += pause
        if bucket.take(now) == 0:
            taken.append(now)
    for i, start in enumerate(taken):
        for j, end in enumerate(taken[i:], start=1):
            assert j <= burst + per_second * (end - start) + 1e-6


@given(st.floats(0.01, 100), st.integers(1, 5))
def test_who_waits_as_long_as_told_is_let_in(per_second: float, burst: int):
    bucket = TokenBucket(per_second, burst, burst, 0.0)
    assert [bucket.take(0.0) for _ in range(burst)] == [0.0] * burst
    wait = bucket.take(0.0)
    assert bucket.take(wait * 0.9) > 0
    assert bucket.take(wait * 1.001) == 0


async def test_a_key_that_asks_too_often_is_told_when_to_come_back():
    async with serving(**LIMITED) as server:
        answers = [await server.predict(f"text {n}", headers=FIRST) for n in range(4)]
        other = await server.predict("text", headers=SECOND)
        metrics = await server.metrics()

    assert [one.status_code for one in answers] == [200, 200, 429, 429]
    for refused in answers[2:]:
        assert "may make 0.5 requests per second" in error_sentence(refused, 429, "rate_limited")
        assert refused.headers["retry-after"] == "2"  # refusals do not push it further away
    assert other.status_code == 200
    assert metrics['dalorra_request_failures_total{error_type="rate_limited"}'] == 2
    assert metrics['dalorra_requests_total{outcome="rejected"}'] == 2


async def test_a_refused_body_is_not_read():
    async def body() -> Any:
        pytest.fail("the body was read")
        yield b""

    async with serving(**{**LIMITED, "rate_burst": 1}) as server:
        assert (await server.predict("a", headers=FIRST)).status_code == 200
        refused = await server.client.post("/predict", content=body(), headers=JSON | FIRST)
    error_sentence(refused, 429, "rate_limited")


async def test_only_what_needs_a_key_is_limited():
    async with serving(**LIMITED) as server:
        for _ in range(5):
            assert (await server.client.get("/health/ready", headers=FIRST)).status_code == 200
            assert (await server.predict("a", headers={})).status_code == 401
        assert (await server.client.get("/info", headers=FIRST)).status_code == 200
        assert (await server.client.get("/tool.json", headers=FIRST)).status_code == 200
        assert (await server.client.get("/info", headers=FIRST)).status_code == 429


async def test_the_client_waits_and_then_says_what_happened(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("asyncio.sleep", sleep)
    async with serving(**{**LIMITED, "rate_limit": 0.1, "rate_burst": 1}) as server:
        client = asking(server)
        await client.predict("a")
        with pytest.raises(RateLimitedError) as raised:
            await client.predict("b")

    assert isinstance(raised.value, BusyError)
    assert raised.value.retry_after == 10
    assert len(slept) == 1
    assert 10 <= slept[0] <= 12.5


def asking(server: RunningServer) -> AsyncClient:
    transport = httpx.ASGITransport(server.app)
    return AsyncClient(
        "http://127.0.0.1", transport=transport, api_key="first-key", retries=Retries(attempts=2)
    )
