"""System One: what is refused, and in which words."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakePredictor, FakeQuestions
from tests.questions import (
    ASK_POSITIVE,
    CHOICE,
    NOUL,
    POSITIVE,
    QUESTIONS,
    SCORE,
    STATE,
)
from tests.serving import JSON, serving
from tests.systemone import PATH, fault, post, refusal

NAME = "fake-adapter"


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"state": None}, ("state",), "must be a string, an object or an array"),
        ({"state": 3}, ("state",), "must be a string, an object or an array"),
        ({"questions": {}}, ("questions",), "at least 1 item"),
        ({"questions": []}, ("questions",), "valid dictionary"),
        ({"questions": {"": NOUL}}, ("questions", "", "[key]"), "at least 1 character"),
        ({"questions": {"q": {"instructions": "a"}}}, ("questions", "q"), "discriminator"),
        ({"questions": {"q": {**NOUL, "type": "box"}}}, ("questions", "q"), "'box'"),
        (
            {"questions": {"q": {**CHOICE, "criteria": {}}}},
            ("questions", "q", "choice", "criteria"),
            "at least 2 items",
        ),
        (
            {"questions": {"q": {**CHOICE, "criteria": {str(n): None for n in range(256)}}}},
            ("questions", "q", "choice", "criteria"),
            "at most 255 items",
        ),
        (
            {"questions": {"q": {**SCORE, "criteria": {"0": "a", "1": "b"}}}},
            ("questions", "q", "score", "criteria"),
            "valid list",
        ),
        (
            {"questions": {"q": {**SCORE, "criteria": ["a", "a"]}}},
            ("questions", "q", "score"),
            "two options are called 'a'",
        ),
        (
            {"questions": {"q": {**NOUL, "critera": {}}}},
            ("questions", "q", "noul", "critera"),
            "not permitted",
        ),
        ({"assets": {"a": {}}}, ("assets",), "text alone"),
    ],
)
async def test_what_does_not_fit_is_found(changes: Any, path: tuple[Any, ...], says: str):
    async with serving(FakeQuestions()) as server:
        response = await post(server, **changes)
        assert server.predictor.batches == []
        metrics = await server.metrics()
    assert says in fault(response, *path)
    assert metrics['dalorra_request_failures_total{error_type="invalid_input"}'] == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"state": ', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff", "UTF-8"),
        (b"[]", "must be a JSON object"),
        (b'{"state": "a", "state": "b"}', "'state' stands twice"),
        (b'{"questions": {"q": 1, "q": 2}}', "'q' stands twice"),
        (b'{"state": NaN}', "NaN is no finite number"),
        (b'{"state": [1e999]}', "1e999 is no finite number"),
        (b'{"state": "\\ud800"}', "half of a surrogate pair"),
        (b'{"state": ' + b"[" * 70 + b"]" * 70 + b"}", "64 deep"),
        (b'{"state": ' + b"1" * 5_000 + b"}", "goes too far"),
    ],
)
async def test_a_body_is_json_of_which_nothing_is_passed_over(content: bytes, says: str):
    async with serving(FakeQuestions()) as server:
        response = await server.client.post(PATH, content=content, headers=JSON)
    assert says in fault(response)


async def test_the_header_that_is_missing_is_named():
    async with serving(FakeQuestions()) as server:
        response = await server.client.post(PATH, content=b"{}", headers={"Content-Type": "a/b"})
    assert "Content-Type: application/json" in fault(response)


async def test_too_many_and_too_long_are_told_apart():
    predictor = FakeQuestions()
    predictor.max_tokens = 100
    async with serving(predictor, max_questions=2) as server:
        many = await post(server, state="a")
        long = await post(server, {"q": NOUL}, state="a" * 100)
        fits = await post(server, {"q": NOUL}, state="a")
    assert "3 questions are more than the 2" in fault(many, "questions")
    refusal(long, 413, "input_too_long")
    assert fits.status_code == 200


async def test_a_labelled_adapter_does_not_cut_either():
    predictor = FakePredictor()
    predictor.registered = (POSITIVE,)
    async with serving(predictor) as server:
        response = await post(server, {"q": ASK_POSITIVE}, state="a" * 400)
        metrics = await server.metrics()
    assert "more than the 300 tokens" in refusal(response, 413, "input_too_long")
    assert sum(v for k, v in metrics.items() if k.startswith("dalorra_decisions_total")) == 0


async def test_keys_are_asked_for_in_the_protocols_words():
    async with serving(FakeQuestions(), api_keys="right") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            response = await server.client.post(PATH, json={}, headers=headers)
            refusal(response, 401, "authentication_error")
            refusal(
                await server.client.get("/v1/models", headers=headers), 401, "authentication_error"
            )
        headers = {"Authorization": "Bearer right"}
        assert (await server.client.get("/v1/models", headers=headers)).status_code == 200


async def test_rates_are_limited_like_those_of_predict():
    key = {"Authorization": "Bearer k"}
    body = {"state": STATE, "questions": QUESTIONS}
    async with serving(FakeQuestions(), api_keys="k", rate_limit=0.001, rate_burst=1) as server:
        first = await server.client.post(PATH, json=body, headers=key)
        second = await server.client.post(PATH, json=body, headers=key)
    assert first.status_code == 200
    refusal(second, 429, "rate_limited")
    assert int(second.headers["retry-after"]) > 1


async def test_busy_is_429_and_not_ready_503():
    async with serving(FakeQuestions(), max_queue_requests=2, max_batch_inputs=2) as server:
        server.predictor.gate.clear()
        running = asyncio.create_task(post(server, {"q": NOUL}))
        await server.until_running()
        waiting = asyncio.create_task(post(server, {"q": SCORE}))
        await server.until(lambda: server.lifecycle.engine.queue_requests == 1)
        full = await post(server, {"q": CHOICE, "r": {**NOUL, "instructions": "Another?"}})
        server.predictor.gate.set()
        assert {(await running).status_code, (await waiting).status_code} == {200}
    refusal(full, 429, "queue_full")
    assert int(full.headers["retry-after"]) >= 1
    broken = FakeQuestions()
    broken.broken = True
    async with serving(broken) as server:
        refusal(await post(server), 503, "unavailable")
        refusal(await server.client.get("/v1/models"), 503, "unavailable")


async def test_a_body_may_be_packed_by_zstd():
    zstd = pytest.importorskip("backports.zstd")
    body = json.dumps({"state": STATE * 50, "questions": QUESTIONS}).encode()
    packed = {**JSON, "Content-Encoding": "zstd"}

    async with serving(FakeQuestions(), max_body_bytes=10_000) as server:

        async def send(content: bytes, headers: dict[str, str] = packed) -> httpx.Response:
            return await server.client.post(PATH, content=content, headers=headers)

        fits = await send(zstd.compress(body))
        bomb = await send(zstd.compress(b" " * 1_000_000))
        broken = await send(b"no zstd")
        other = await send(body, {**JSON, "Content-Encoding": "br"})
    assert fits.status_code == 200, fits.text
    assert "longer than 10000 bytes" in refusal(bomb, 413, "body_too_large")
    assert "not valid zstd" in fault(broken)
    assert "packed by 'br'" in fault(other)


# Anything at all

_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_QUESTION = st.fixed_dictionaries(
    {"type": st.sampled_from(["noul", "choice", "score", "predicate", "box"])},
    optional={
        "instructions": st.text(max_size=8) | _JSON,
        "criteria": _JSON
        | st.lists(st.text(max_size=4), max_size=12)
        | st.dictionaries(st.text(max_size=4), st.none() | st.text(max_size=4), max_size=4),
        "choices": _JSON,
        "levels": _JSON,
        "name": _JSON,
    },
)
_BODY = (
    st.fixed_dictionaries(
        {},
        optional={
            "model": st.sampled_from(["jev-latest", "gpt-6-luna", NAME, "?"]) | _JSON,
            "state": st.text(max_size=8) | _JSON,
            "input": st.text(max_size=8) | _JSON,
            "questions": st.dictionaries(st.text(max_size=4), _QUESTION, max_size=3)
            | st.lists(_QUESTION, max_size=3)
            | _JSON,
            "x_return_samples": _JSON,
            "x_target_error": _JSON,
        },
    )
    | _JSON
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Any]:
    """Posts to one server, from tests that are no coroutines."""
    with asyncio.Runner() as runner:
        context = serving(FakeQuestions(), mcp=False)  # which wants one task for all
        server = runner.run(context.__aenter__())

        def send(path: str, content: bytes) -> httpx.Response:
            return runner.run(server.client.post(path, content=content, headers=JSON))

        yield send
        runner.run(context.__aexit__(None, None, None))


@pytest.mark.parametrize("path", [PATH, "/v1/decisions"])
@settings(max_examples=150, deadline=None)
@given(body=_BODY)
def test_no_body_is_the_servers_fault(fuzzed: Any, path: str, body: Any):
    response = fuzzed(path, json.dumps(body).encode())
    assert response.status_code in (200, 400, 404, 413, 422)
    if response.status_code == 200:
        assert response.json()["answers"]
    else:
        assert set(response.json()) == ({"detail"} if path == PATH else {"error"})
