"""A real server process over real HTTP: around the default model, and around a fake one."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server_process import (
    HEADERS,
    KEY,
    SENTENCES,
    START_SECONDS,
    TOLERANCE,
    ServerProcess,
    start,
)

pytestmark = pytest.mark.integration

T = TypeVar("T")


@pytest.fixture(scope="module", params=["fake", "model"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with start(
        request.param,
        predictor={"seconds": 0.05},
        max_body_bytes=50_000,
        max_batch_inputs=32,
        max_queue_requests=64,
        batch_rows=512,
        request_timeout_seconds=120,
    ) as process:
        yield process.until_ready()


@pytest.fixture
async def client(server: ServerProcess) -> Any:
    async with httpx.AsyncClient(base_url=server.url, headers=HEADERS, timeout=60) as client:
        yield client


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return {sample.name: sample.value for family in families for sample in family.samples}


async def until(probe: Callable[[], Awaitable[T | None]], *, within: float = 20) -> T:
    """What `probe` gives once it gives anything; the other process cannot wake us."""
    async with asyncio.timeout(within):
        while (found := await probe()) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return found


async def test_one_input_is_answered_with_the_flat_object(client: httpx.AsyncClient):
    response = await client.post("/predict", json={"input": SENTENCES[0]})

    body = response.json()
    assert response.status_code == 200
    assert set(body) == {
        "label", "probability", "variance", "decision", "reason", "probabilities", "entropy",
        "mutual_information", "standard_error", "novelty", "samples", "truncated", "model",
        "adapter", "request_id",
    }  # fmt: skip
    assert body["label"] == "positive"
    assert body["probability"] == max(body["probabilities"].values())
    assert sum(body["probabilities"].values()) == pytest.approx(1)
    assert body["samples"] == 10


async def test_an_answer_does_not_depend_on_its_batch(client: httpx.AsyncClient):
    batch = await client.post("/predict/batch", json={"inputs": SENTENCES})
    assert batch.status_code == 200
    for text, together in list(zip(SENTENCES, batch.json()["predictions"], strict=True))[:8]:
        alone = (await client.post("/predict", json={"input": text})).json()
        assert alone["label"] == together["label"]
        assert alone["decision"] == together["decision"]
        for number in ("probability", "variance", "entropy", "mutual_information"):
            assert alone[number] == pytest.approx(together[number], abs=TOLERANCE), (text, number)


async def test_concurrent_requests_share_forwards(client: httpx.AsyncClient):
    before = await metrics(client)
    responses = await asyncio.gather(
        *(client.post("/predict", json={"input": text}) for text in SENTENCES)
    )
    after = await metrics(client)

    assert {response.status_code for response in responses} == {200}
    requests = after["dalorra_batch_requests_sum"] - before["dalorra_batch_requests_sum"]
    forwards = after["dalorra_batch_requests_count"] - before["dalorra_batch_requests_count"]
    assert requests == len(SENTENCES)
    assert forwards <= len(SENTENCES) / 2


async def test_every_error_that_a_client_can_cause(client: httpx.AsyncClient):
    json_type = {"Content-Type": "application/json"}
    calls: list[tuple[int, str, dict[str, Any]]] = [
        (400, "malformed_json", {"content": b"{", "headers": json_type}),
        (401, "unauthorized", {"json": {"input": "a"}, "headers": {"Authorization": "no"}}),
        (404, "not_found", {"url": "/nowhere"}),
        (405, "method_not_allowed", {"url": "/info"}),
        (413, "body_too_large", {"json": {"input": "x" * 50_000}}),
        (413, "batch_too_large", {"url": "/predict/batch", "json": {"inputs": ["a"] * 33}}),
        (422, "invalid_input", {"json": {"text": "a"}}),
        (422, "invalid_input", {"json": {"input": {"no such field": "a"}}}),
    ]
    for status, error_type, call in calls:
        response = await client.post(**{"url": "/predict", **call})
        body = response.json()
        assert (response.status_code, body["error_type"]) == (status, error_type)
        assert set(body) == {"error", "error_type", "request_id"}
        assert body["request_id"] == response.headers["x-request-id"]


async def test_a_full_queue_says_when_to_come_back(client: httpx.AsyncClient):
    async def queued() -> float | None:
        return (await metrics(client))["dalorra_queue_requests"] or None

    async def empty() -> bool | None:
        return (await metrics(client))["dalorra_queue_requests"] == 0 or None

    texts = [f"{text} Or so they say." for text in SENTENCES]  # more than one forward takes
    filling = asyncio.create_task(client.post("/predict/batch", json={"inputs": texts}))
    await until(queued)

    refused = await client.post("/predict/batch", json={"inputs": [f"{t} No?" for t in texts]})
    filling.cancel()  # hangs up, which gives the places back

    assert (refused.status_code, refused.json()["error_type"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    await until(empty)


async def test_info_and_documents(client: httpx.AsyncClient):
    body = (await client.get("/info")).json()
    assert body["limits"]["max_batch_inputs"] == 32
    assert {"negative", "positive"} == set(body["labels"])
    assert (await client.get("/openapi.json")).status_code == 200
    assert (await client.get("/docs")).status_code == 200


async def test_the_log_has_no_key_and_no_text(server: ServerProcess, client: httpx.AsyncClient):
    await client.post("/predict", json={"input": "unmistakable"}, headers={"X-Request-Id": "q"})

    async def logged() -> dict[str, Any] | None:
        return next((line for line in server.events() if line.get("request_id") == "q"), None)

    assert (await until(logged))["outcome"] == "ok"
    assert "unmistakable" not in "".join(server.lines)
    assert KEY not in "".join(server.lines)


@pytest.mark.parametrize("kind", ["fake", "model"])
async def test_sigterm_answers_what_was_accepted(kind: str):
    with start(kind, predictor={"seconds": 0.3, "load_seconds": 0.5}, batch_rows=64) as process:
        async with httpx.AsyncClient(base_url=process.url, headers=HEADERS, timeout=60) as client:
            early = await client.post("/predict", json={"input": "a"})
            assert (early.status_code, early.json()["error_type"]) == (503, "loading")
            assert (await client.get("/health/live")).status_code == 200
            process.until_ready()
            text = "a rather long sentence, so that a forward takes a while"
            accepted = [
                asyncio.create_task(client.post("/predict", json={"input": f"{n} {text}"}))
                for n in range(8)
            ]

            async def all_accepted() -> bool | None:
                return (await metrics(client))["dalorra_inflight_requests"] == 8 or None

            async def not_ready() -> httpx.Response | None:
                response = await client.get("/health/ready")
                return response if response.status_code != 200 else None

            await until(all_accepted)
            process.process.send_signal(signal.SIGTERM)
            ready = await until(not_ready, within=5)
            late = await client.post("/predict", json={"input": "late"})
            assert ready.json()["error_type"] == "draining"
            assert (late.status_code, late.json()["error_type"]) == (503, "draining")
            assert [(await task).status_code for task in accepted] == [200] * 8
        assert process.process.wait(20) == 0


def test_a_deadline_is_kept():
    with start("fake", predictor={"seconds": 0.5}, request_timeout_seconds=0.001) as process:
        process.until_ready()
        response = httpx.post(f"{process.url}/predict", json={"input": "a"}, headers=HEADERS)
        assert (response.status_code, response.json()["error_type"]) == (504, "deadline_exceeded")


def test_a_failing_forward_is_one_clients_500():
    with start("fake") as process:
        process.until_ready()
        poisoned = httpx.post(f"{process.url}/predict", json={"input": "☠"}, headers=HEADERS)
        fine = httpx.post(f"{process.url}/predict", json={"input": "a"}, headers=HEADERS)
        assert poisoned.json()["error_type"] == "inference_failed"
        assert (poisoned.status_code, fine.status_code) == (500, 200)


def test_a_client_that_hangs_up_frees_its_place():
    with start("fake", predictor={"seconds": 1.0}, batch_rows=1) as process:
        process.until_ready()
        with httpx.Client(base_url=process.url, headers=HEADERS) as client:
            for text in ("running", "waiting"):
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/predict", json={"input": text}, timeout=0.2)
            deadline = time.monotonic() + 5
            while "dalorra_queue_requests 0.0" not in client.get("/metrics").text:
                assert time.monotonic() < deadline
            assert time.monotonic() < deadline
        assert process.stop() == 0
        outcomes = [e["outcome"] for e in process.events() if e["event"] == "request"]
        assert outcomes == ["cancelled", "cancelled"]


def test_an_adapter_that_cannot_be_loaded_ends_the_server_with_a_sentence(tmp_path: Path):
    with start("model", adapter=tmp_path / "missing") as process:
        code = process.process.wait(START_SECONDS)

    assert code not in (0, None)
    assert "missing" in process.lines[-1]
    assert "Traceback" not in process.lines[-1]
