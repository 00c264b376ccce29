"""Replicas of one service that count the requests of a key together, in Redis."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from service.limits import SharedBuckets
from tests.databases import RedisServer, redis_server
from tests.serving import RunningServer, serving

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ANN, BOB = ({"Authorization": f"Bearer the-key-of-{name}"} for name in ("ann", "bob"))


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def url(running: RedisServer) -> str:
    with redis.Redis.from_url(running.url) as client:
        client.flushall()
    return running.url


@asynccontextmanager
async def replicas(url: str, **settings: Any) -> AsyncIterator[tuple[RunningServer, RunningServer]]:
    keys = {"api_keys": "the-key-of-ann,the-key-of-bob", "limits_url": url}
    async with serving(**keys, **settings) as one, serving(**keys, **settings) as two:
        yield one, two


async def test_a_key_has_one_bucket_on_all_replicas(url: str):
    async with replicas(url, rate_limit=0.1, rate_burst=4) as servers:
        asked = [await servers[n % 2].predict(f"text {n}", headers=ANN) for n in range(6)]
        other = await servers[0].predict("a", headers=BOB)
    assert [response.status_code for response in asked] == [200] * 4 + [429] * 2
    assert 1 <= int(asked[-1].headers["retry-after"]) <= 10
    assert other.status_code == 200
    with redis.Redis.from_url(url) as client:
        names = [name.decode() for name in client.scan_iter()]
        assert all(0 < client.pttl(name) <= 41_000 for name in names), "nothing stays for ever"
    assert len(names) == 2
    assert not any("ann" in name for name in names)


async def test_tokens_come_back_at_their_pace_and_none_is_given_twice(url: str):
    buckets = [SharedBuckets(url, per_second=20.0, burst=5) for _ in range(3)]
    started = asyncio.get_running_loop().time()
    taken = 0
    while asyncio.get_running_loop().time() - started < 1.0:
        waits = await asyncio.gather(*(one.take(b"key") for one in buckets))
        taken += waits.count(0.0)
    seconds = asyncio.get_running_loop().time() - started
    for one in buckets:
        await one.close()
    assert 20 <= taken <= 5 + 20 * seconds + 1


async def test_who_waits_as_long_as_told_is_let_in(url: str):
    buckets = SharedBuckets(url, per_second=4.0, burst=1)
    assert await buckets.take(b"key") == 0
    wait = await buckets.take(b"key")
    assert 0.1 < wait <= 0.25
    await asyncio.sleep(wait + 0.01)
    assert await buckets.take(b"key") == 0
    await buckets.close()


async def test_while_redis_is_away_each_replica_counts_by_itself(running: RedisServer, url: str):
    with capture_logs() as logs:
        async with replicas(url, rate_limit=0.1, rate_burst=2) as servers:
            first = await servers[0].predict("a", headers=ANN)
            running.stop()
            try:
                alone = [
                    (await server.predict(f"text {n}", headers=ANN)).status_code
                    for server in servers
                    for n in range(3)
                ]
            finally:
                running.start()
            await asyncio.sleep(1.1)
            again = await servers[0].predict("b", headers=ANN)
    assert (first.status_code, again.status_code) == (200, 200)
    assert alone == [200, 200, 429] * 2
    events = [line["event"] for line in logs if line["event"].startswith("limits")]
    assert events == ["limits_not_shared", "limits_not_shared", "limits_shared_again"]
