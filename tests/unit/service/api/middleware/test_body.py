"""Bodies: how long, how large, how many, and in which letters."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from dalorra.errors import ConfigError
from service.settings import load_settings
from tests.serving import JSON, error_sentence, serving


async def dripping(text: str, every: float) -> AsyncIterator[bytes]:
    for letter in text:
        yield letter.encode()
        await asyncio.sleep(every)


@pytest.mark.parametrize("path", ["/predict", "/feedback", "/mcp", "/v2/models/fake-adapter/infer"])
async def test_408_for_a_body_that_does_not_end(path: str):
    async with serving(body_seconds=0.1) as server:
        response = await server.client.post(path, content=dripping("x" * 500, 0.01), headers=JSON)

        assert "within 0.1 s" in error_sentence(response, 408, "request_timeout")
        assert response.headers["connection"] == "close"
        assert (await server.predict("another")).status_code == 200


async def test_a_slow_body_in_time_is_answered():
    async with serving(body_seconds=10) as server:
        content = dripping('{"input": "a"}', 0.002)
        response = await server.client.post("/predict", content=content, headers=JSON)
    assert response.status_code == 200


async def test_all_bodies_together_have_a_limit_and_give_their_place_back():
    mebibyte = 2**20
    async with serving(bodies_mib=1, max_body_bytes=mebibyte) as server:
        began, goes_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b'{"input": "' + b"x" * (mebibyte - 100)
            began.set()
            await goes_on.wait()
            yield b'"}'

        first = asyncio.create_task(server.client.post("/predict", content=slow(), headers=JSON))
        await began.wait()
        refused = await server.predict("y" * 100)
        live = await server.client.get("/health/live")
        goes_on.set()

        assert "in hand" in error_sentence(refused, 503, "busy")
        assert refused.headers["retry-after"] == "1"
        assert live.status_code == 200
        assert (await first).status_code == 200
        for _ in range(3):
            assert (await server.predict("z" * (mebibyte - 100))).status_code == 200


async def test_what_waits_for_its_answer_is_in_hand():
    async with serving(bodies_mib=1, max_body_bytes=2**20) as server:
        server.predictor.gate.clear()
        first = asyncio.create_task(server.predict("x" * (2**20 - 100)))
        await server.until_running()
        error_sentence(await server.predict("y" * 100), 503, "busy")
        server.predictor.gate.set()
        assert (await first).status_code == 200
        assert (await server.predict("y" * 100)).status_code == 200


def test_a_body_that_is_allowed_fits():
    with pytest.raises(ConfigError, match="above bodies_mib"):
        load_settings(max_body_bytes=2**21, bodies_mib=1)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("path", ["/predict", "/feedback", "/mcp", "/v2/models/fake-adapter/infer"])
async def test_400_for_what_is_not_utf_8(path: str, encoding: str):
    content = json.dumps({"input": "Zürich"}, ensure_ascii=False).encode(encoding)
    async with serving() as server:
        response = await server.client.post(path, content=content, headers=JSON)
        assert server.predictor.encoded == []
    assert "UTF-8" in error_sentence(response, 400, "malformed_json")


async def test_400_for_half_a_surrogate_pair_in_bytes():
    content = '{"input": "\ud800"}'.encode(errors="surrogatepass")
    async with serving() as server:
        response = await server.client.post("/predict", content=content, headers=JSON)
    assert "UTF-8" in error_sentence(response, 400, "malformed_json")
