"""Every error: its status, its body, its headers, its count."""

import asyncio
from typing import Any

import pytest

from tests.serving import JSON, error_sentence, serving


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
async def test_400_for_what_is_no_json(content: bytes):
    async with serving() as server:
        response = await server.client.post("/predict", content=content, headers=JSON)

    assert "not valid JSON" in error_sentence(response, 400, "malformed_json")


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
        ("/predict", {"input": "a", "inputs": "b"}, "inputs: there is no such field"),
        (
            "/predict",
            {"input": "a", "samples": 5},
            "samples: there is no such field",
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
async def test_422_for_what_does_not_fit(path: str, body: Any, says: str):
    async with serving() as server:
        response = await server.client.post(path, json=body)

        assert says in error_sentence(response, 422, "invalid_input")
        await server.until(lambda: server.lifecycle.engine.in_flight == 0)


async def test_422_never_repeats_the_text():
    async with serving() as server:
        response = await server.client.post("/predict", json={"inpt": "secret", "x" * 5_000: "y"})

    sentence = error_sentence(response, 422, "invalid_input")
    assert "secret" not in sentence
    assert len(sentence) < 300


@pytest.mark.parametrize("content", [b"", b"null"])
async def test_422_for_nothing(content: bytes):
    async with serving() as server:
        response = await server.client.post("/predict", content=content, headers=JSON)

    assert "must be a JSON object" in error_sentence(response, 422, "invalid_input")


async def test_422_names_the_header_that_is_missing():
    async with serving() as server:
        response = await server.client.post(
            "/predict",
            content=b'{"input": "a"}',
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )

    assert "Content-Type: application/json" in error_sentence(response, 422, "invalid_input")


async def test_422_for_text_that_is_no_unicode():
    async with serving() as server:
        response = await server.client.post(
            "/predict", content=rb'{"input": "\ud800"}', headers=JSON
        )

    assert error_sentence(response, 422, "invalid_input").startswith("input: is not Unicode")


async def test_404_and_405():
    async with serving() as server:
        nowhere = await server.client.get("/nowhere")
        wrong = await server.client.get("/predict")

    assert "/nowhere" in error_sentence(nowhere, 404, "not_found")
    assert "use POST" in error_sentence(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_413_for_a_declared_length_before_the_body_is_read():
    async with serving(max_body_bytes=100) as server:
        fits = await server.predict("x" * 80)
        response = await server.predict("x" * 100)

        assert fits.status_code == 200
        assert "100 bytes" in error_sentence(response, 413, "body_too_large")
        assert len(server.predictor.encoded) == 1


async def test_413_for_a_body_of_undeclared_length_as_soon_as_it_is_too_long():
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 1_000:
            sent += 1
            yield b" " * 60

    async with serving(max_body_bytes=100) as server:
        response = await server.client.post("/predict", content=endless(), headers=JSON)

    error_sentence(response, 413, "body_too_large")
    assert sent == 2


async def test_413_for_a_batch_of_too_many():
    async with serving(max_batch_inputs=2) as server:
        fits = await server.client.post("/predict/batch", json={"inputs": ["a", "b"]})
        response = await server.client.post("/predict/batch", json={"inputs": ["a", "b", "c"]})

    assert fits.status_code == 200
    assert "3 inputs are more than the 2" in error_sentence(response, 413, "batch_too_large")


async def test_429_says_when_to_come_back():
    async with serving(max_queue_requests=2, max_batch_inputs=2) as server:
        server.predictor.gate.clear()
        running = asyncio.create_task(server.predict("running"))
        await server.until_running()
        waiting = asyncio.create_task(server.predict("waiting"))
        await server.until(lambda: server.lifecycle.engine.queue_requests == 1)

        response = await server.client.post("/predict/batch", json={"inputs": ["a", "b"]})

        seconds = int(response.headers["retry-after"])
        assert seconds >= 1
        assert f"try again in {seconds} s" in error_sentence(response, 429, "queue_full")
        assert server.lifecycle.engine.queue_requests == 1
        server.predictor.gate.set()
        assert {(await running).status_code, (await waiting).status_code} == {200}
        metrics = await server.metrics()
        assert metrics['dalorra_requests_total{outcome="rejected"}'] == 1
        assert metrics['dalorra_request_failures_total{error_type="queue_full"}'] == 1


async def test_500_when_the_forward_fails():
    async with serving() as server:
        response = await server.predict("☠")

        error_sentence(response, 500, "inference_failed")
        assert (await server.predict("fine")).status_code == 200


async def test_500_for_our_own_mistakes_without_their_details():
    async with serving() as server:
        server.predictor.policy = None  # type: ignore[assignment]
        response = await server.predict("a")

        sentence = error_sentence(response, 500, "internal_error")
        assert "NoneType" not in sentence
        metrics = await server.metrics()
        assert metrics['dalorra_request_failures_total{error_type="internal_error"}'] == 1


async def test_504_after_the_deadline():
    async with serving(request_timeout_seconds=0.05) as server:
        server.predictor.gate.clear()
        response = await server.predict("a")
        server.predictor.gate.set()

        assert "0.05 s" in error_sentence(response, 504, "deadline_exceeded")
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
async def test_401_without_a_known_key(authorization: str | None):
    headers = {"Authorization": authorization.encode("latin-1")} if authorization else {}
    async with serving(**KEYS) as server:
        response = await server.predict("a", headers=headers)

        error_sentence(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        assert server.predictor.encoded == []
        metrics = await server.metrics()
        assert metrics['dalorra_request_failures_total{error_type="unauthorized"}'] == 1


@pytest.mark.parametrize("authorization", ["Bearer first-key", "bearer second-key"])
async def test_each_known_key_opens(authorization: str):
    async with serving(**KEYS) as server:
        response = await server.predict("a", headers={"Authorization": authorization})

    assert response.status_code == 200


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"]
)
async def test_probes_and_scrapes_need_no_key(path: str):
    async with serving(**KEYS) as server:
        assert (await server.client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/info", "/docs", "/openapi.json", "/predict/batch", "/nowhere", "/metrics/", "http://localhost//metrics",
     "/health", "/health/live/../../info", "/METRICS", "/v2", "/mcp", "/tool.json", "/page.html"],
)  # fmt: skip
async def test_everything_else_does(path: str):
    async with serving(**KEYS) as server:
        error_sentence(await server.client.get(path), 401, "unauthorized")


async def test_an_unauthorised_body_is_not_read():
    async def body() -> Any:
        pytest.fail("the body was read")
        yield b""

    async with serving(**KEYS) as server:
        response = await server.client.post("/predict", content=body(), headers=JSON)

    error_sentence(response, 401, "unauthorized")
