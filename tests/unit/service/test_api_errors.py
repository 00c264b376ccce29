"""Every error: its status, its body, its headers, its count."""

import asyncio
from typing import Any

import httpx
import pytest

from service.api.problems import ERROR_TYPES
from tests.unit.service.conftest import Serving

JSON = {"Content-Type": "application/json"}


def check(response: httpx.Response, status: int, error_type: str) -> str:
    """Checks what all errors have in common; returns the sentence."""
    body = response.json()
    assert (response.status_code, body["error_type"]) == (status, error_type)
    assert set(body) == {"error", "error_type", "request_id"}
    assert body["request_id"] == response.headers["x-request-id"]
    assert error_type in ERROR_TYPES
    assert body["error"]
    assert "\n" not in body["error"]
    return str(body["error"])


@pytest.mark.parametrize(
    "content",
    [
        b'{"input": ',
        b"not json",
        b'{"input": "a"} trailing',
        b'\xff\xfe{"input": "a"}',
        b'{"input": "\xe4"}',
        b"[" * 100_000,
    ],
)
async def test_400_for_what_is_no_json(serving: Serving, content: bytes):
    async with serving() as server:
        response = await server.client.post("/predict", content=content, headers=JSON)

    assert "not valid JSON" in check(response, 400, "malformed_json")


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/predict", {}, "input: Field required"),
        ("/predict", [], "must be a JSON object"),
        ("/predict", "text", "must be a JSON object"),
        ("/predict", {"input": 3}, "input: must be a string or an object of strings"),
        ("/predict", {"input": None}, "input: must be a string or an object of strings"),
        ("/predict", {"input": ["a"]}, "input: must be a string or an object of strings"),
        ("/predict", {"input": {"sentence": 3}}, "input: must be a string or an object"),
        ("/predict", {"input": "a", "inputs": "b"}, "inputs: Extra inputs are not permitted"),
        (
            "/predict",
            {"input": "a", "samples": "some"},
            "samples: Input should be 'full' or 'auto'",
        ),
        ("/predict", {"input": ""}, "input is empty"),
        ("/predict", {"input": {"title": "a"}}, "wrong fields: send sentence"),
        ("/predict/batch", {"input": "a"}, "inputs: Field required"),
        ("/predict/batch", {"inputs": []}, "inputs: List should have at least 1 item"),
        ("/predict/batch", {"inputs": "a"}, "inputs: Input should be a valid list"),
        ("/predict/batch", {"inputs": ["a", 3]}, "inputs[1]: must be a string or an object"),
        ("/predict/batch", {"inputs": ["a", ""]}, "inputs[1]: input is empty"),
    ],
)
async def test_422_for_what_does_not_fit(serving: Serving, path: str, body: Any, says: str):
    async with serving() as server:
        response = await server.client.post(path, json=body)

        assert says in check(response, 422, "invalid_input")
        await server.until(lambda: not server.lifecycle.engine._in_flight)


async def test_422_never_repeats_the_text(serving: Serving):
    async with serving() as server:
        response = await server.client.post("/predict", json={"inpt": "secret", "x" * 5_000: "y"})

    sentence = check(response, 422, "invalid_input")
    assert "secret" not in sentence
    assert len(sentence) < 300


@pytest.mark.parametrize("content", [b"", b"null"])
async def test_422_for_nothing(serving: Serving, content: bytes):
    async with serving() as server:
        response = await server.client.post("/predict", content=content, headers=JSON)

    assert "must be a JSON object" in check(response, 422, "invalid_input")


async def test_422_names_the_header_that_is_missing(serving: Serving):
    async with serving() as server:
        response = await server.client.post(
            "/predict",
            content=b'{"input": "a"}',
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )

    assert "Content-Type: application/json" in check(response, 422, "invalid_input")


async def test_422_for_text_that_is_no_unicode(serving: Serving):
    async with serving() as server:
        response = await server.client.post(
            "/predict", content=rb'{"input": "\ud800"}', headers=JSON
        )

    assert check(response, 422, "invalid_input").startswith("input: is not Unicode")


async def test_404_and_405(serving: Serving):
    async with serving() as server:
        nowhere = await server.client.get("/nowhere")
        wrong = await server.client.get("/predict")

    assert "/nowhere" in check(nowhere, 404, "not_found")
    assert "use POST" in check(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_413_for_a_declared_length_before_the_body_is_read(serving: Serving):
    async with serving(max_body_bytes=100) as server:
        fits = await server.predict("x" * 80)
        response = await server.predict("x" * 100)

        assert fits.status_code == 200
        assert "100 bytes" in check(response, 413, "body_too_large")
        assert len(server.predictor.encoded) == 1


async def test_413_for_a_body_of_undeclared_length_as_soon_as_it_is_too_long(serving: Serving):
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 1_000:
            sent += 1
            yield b" " * 60

    async with serving(max_body_bytes=100) as server:
        response = await server.client.post("/predict", content=endless(), headers=JSON)

    check(response, 413, "body_too_large")
    assert sent == 2


async def test_413_for_a_batch_of_too_many(serving: Serving):
    async with serving(max_batch_inputs=2) as server:
        fits = await server.client.post("/predict/batch", json={"inputs": ["a", "b"]})
        response = await server.client.post("/predict/batch", json={"inputs": ["a", "b", "c"]})

    assert fits.status_code == 200
    assert "3 inputs are more than the 2" in check(response, 413, "batch_too_large")


async def test_429_says_when_to_come_back(serving: Serving):
    async with serving(max_queue_requests=2, max_batch_inputs=2) as server:
        server.predictor.gate.clear()
        running = asyncio.create_task(server.predict("running"))
        await server.until(lambda: len(server.predictor.batches) == 1)
        waiting = asyncio.create_task(server.predict("waiting"))
        await server.until(lambda: server.lifecycle.engine.queue_requests == 1)

        response = await server.client.post("/predict/batch", json={"inputs": ["a", "b"]})

        seconds = int(response.headers["retry-after"])
        assert seconds >= 1
        assert f"try again in {seconds} s" in check(response, 429, "queue_full")
        assert server.lifecycle.engine.queue_requests == 1
        server.predictor.gate.set()
        assert {(await running).status_code, (await waiting).status_code} == {200}
        metrics = await server.metrics()
        assert metrics['dalorra_requests_total{outcome="rejected"}'] == 1
        assert metrics['dalorra_request_failures_total{error_type="queue_full"}'] == 1


async def test_500_when_the_forward_fails(serving: Serving):
    async with serving() as server:
        response = await server.predict("☠")

        check(response, 500, "inference_failed")
        assert (await server.predict("fine")).status_code == 200


async def test_500_for_our_own_mistakes_without_their_details(serving: Serving):
    async with serving() as server:
        server.predictor.policy = None  # type: ignore[assignment]
        response = await server.predict("a")

        sentence = check(response, 500, "internal_error")
        assert "NoneType" not in sentence
        metrics = await server.metrics()
        assert metrics['dalorra_request_failures_total{error_type="internal_error"}'] == 1


async def test_504_after_the_deadline(serving: Serving):
    async with serving(request_timeout_seconds=0.05) as server:
        server.predictor.gate.clear()
        response = await server.predict("a")
        server.predictor.gate.set()

        assert "0.05 s" in check(response, 504, "deadline_exceeded")
        assert (await server.metrics())['dalorra_requests_total{outcome="failed"}'] == 1


KEYS = {"api_keys": "first-key,second-key"}


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer first-key,second-key",
        "Basic first-key",
        "first-key",
        "Bearer first-ke\u00ff",
    ],
)
async def test_401_without_a_known_key(serving: Serving, authorization: str | None):
    headers = {"Authorization": authorization.encode("latin-1")} if authorization else {}
    async with serving(**KEYS) as server:
        response = await server.predict("a", headers=headers)

        check(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        assert server.predictor.encoded == []
        metrics = await server.metrics()
        assert metrics['dalorra_request_failures_total{error_type="unauthorized"}'] == 1


@pytest.mark.parametrize("authorization", ["Bearer first-key", "bearer second-key"])
async def test_each_known_key_opens(serving: Serving, authorization: str):
    async with serving(**KEYS) as server:
        response = await server.predict("a", headers={"Authorization": authorization})

    assert response.status_code == 200


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"]
)
async def test_probes_and_scrapes_need_no_key(serving: Serving, path: str):
    async with serving(**KEYS) as server:
        assert (await server.client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/info", "/docs", "/openapi.json", "/predict/batch", "/nowhere", "/metrics/", "http://test//metrics",
     "/health", "/health/live/../../info", "/METRICS", "/v2", "/mcp", "/tool.json", "/page.html"],
)  # fmt: skip
async def test_everything_else_does(serving: Serving, path: str):
    async with serving(**KEYS) as server:
        check(await server.client.get(path), 401, "unauthorized")


async def test_an_unauthorised_body_is_not_read(serving: Serving):
    async def body() -> Any:
        pytest.fail("the body was read")
        yield b""

    async with serving(**KEYS) as server:
        response = await server.client.post("/predict", content=body(), headers=JSON)

    check(response, 401, "unauthorized")
