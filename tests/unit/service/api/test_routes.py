"""Predictions, info, health and the end, through the whole ASGI application."""

import asyncio
import re
import threading

import httpx
import pytest

from dalorra.decision.policy import Policy
from dalorra.decision.policy_digest import with_digest
from tests.fakes import FakePredictor, expected_prediction
from tests.questions import ASK_POSITIVE, POSITIVE
from tests.serving import error_sentence, serving

FLAT = {
    "label", "probability", "variance", "decision", "reason", "probabilities", "entropy",
    "mutual_information", "standard_error", "novelty", "samples", "truncated", "model", "adapter",
    "request_id",
}  # fmt: skip


async def test_a_prediction_is_one_flat_object():
    async with serving() as server:
        response = await server.predict("This movie was fantastic!")

        expected = expected_prediction(server.predictor.encode("This movie was fantastic!"))
        body = response.json()
        assert response.status_code == 200
        assert set(body) == FLAT
        assert body["probability"] == expected.probability
        assert body["variance"] == expected.variance
        assert body["novelty"] == expected.novelty
        assert body["standard_error"] == expected.standard_error
        assert body["probabilities"] == expected.probabilities
        assert (body["model"], body["adapter"]) == ("fake-model", "fake-adapter")
        assert body["truncated"] is False
        verdict = server.predictor.policy.decide(expected)
        assert (body["decision"], body["reason"]) == (verdict.decision, verdict.reason)
        assert body["request_id"] == response.headers["x-request-id"]


async def test_an_input_may_be_an_object_of_the_templates_fields():
    async with serving(FakePredictor(["claim", "evidence"])) as server:
        response = await server.predict({"claim": "a", "evidence": "b"})

        assert response.status_code == 200
        assert response.json()["probability"] == (
            expected_prediction(
                server.predictor.encode({"claim": "a", "evidence": "b"})
            ).probability
        )


async def test_a_batch_keeps_its_order():
    texts = ["one", "two", "one", "three"]
    async with serving() as server:
        response = await server.client.post("/predict/batch", json={"inputs": texts})
        singles = [(await server.predict(text)).json() for text in texts]

    predictions = response.json()["predictions"]
    assert response.status_code == 200
    request_id = response.headers["x-request-id"]
    assert [body.pop("request_id") for body in predictions] == [
        f"{request_id}-{place}" for place in range(4)
    ]
    for body in singles:
        del body["request_id"]
    assert predictions == singles


async def test_an_over_long_input_says_that_it_was_cut_and_is_never_accepted():
    loosest = with_digest(
        Policy(min_probability=0.0, max_variance=1.0, source="made up for a test")
    )
    async with serving(FakePredictor(policy=loosest)) as server:
        whole, cut = [(await server.predict("x" * n)).json() for n in (100, 1_000)]
    assert (whole["truncated"], whole["decision"]) == (False, "accept")
    assert (cut["truncated"], cut["decision"]) == (True, "escalate")
    assert cut["reason"] == "the input was cut at 300 tokens: what came after was not read"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("abc-1.2_3", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("with space", False),
        ("semi;colon", False),
        ("zeile\u00fc", False),
    ],
)
async def test_a_harmless_request_id_is_echoed_and_any_other_replaced(sent: str, kept: bool):
    async with serving() as server:
        headers = {"X-Request-Id": sent.encode()}
        response = await server.predict("a", headers=headers)  # type: ignore[arg-type]

    got = response.headers["x-request-id"]
    assert (got == sent) is kept
    assert kept or re.fullmatch("[0-9a-f]{32}", got)
    assert response.json()["request_id"] == got


async def test_the_stages_are_timed_in_a_standard_header():
    async with serving(FakePredictor(seconds=0.02)) as server:
        response = await server.predict("a")

    timings = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert set(timings) == {"tokenize", "queue", "inference"}
    assert float(timings["inference"]) >= 20


async def test_info_says_what_is_served():
    async with serving(max_body_bytes=1_234) as server:
        body = (await server.client.get("/info")).json()

    assert body["model"] == "fake-model"
    assert body["adapter_digest"] == "0123abcd"
    assert body["labels"] == ["negative", "positive"]
    assert body["fields"] == ["sentence"]
    assert body["policy"]["min_probability"] == 0.8
    assert body["limits"]["max_body_bytes"] == 1_234
    assert body["limits"]["max_tokens"] == 300


async def test_health_answers_while_the_model_loads():
    loaded = threading.Event()
    predictor = FakePredictor(on_warm_up=loaded.wait)
    async with serving(predictor, ready=False) as server:
        try:
            live = await server.client.get("/health/live")
            ready = await server.client.get("/health/ready")
            refused = await server.predict("a")
            gauge = (await server.metrics())["dalorra_ready"]
        finally:
            loaded.set()

        assert (live.status_code, live.json()) == (200, {"status": "live"})
        assert (ready.status_code, ready.json()["error_type"]) == (503, "loading")
        assert (refused.status_code, refused.json()["error_type"]) == (503, "loading")
        assert int(refused.headers["retry-after"]) > 0
        assert gauge == 0
        await server.lifecycle.loading
        ready = await server.client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
        assert (await server.metrics())["dalorra_ready"] == 1


async def test_identical_concurrent_requests_run_once():
    async with serving() as server:
        server.predictor.gate.clear()
        tasks = [asyncio.create_task(server.predict("same")) for _ in range(8)]
        await server.until_metric("dalorra_coalesced_inputs_total", 7)
        assert server.lifecycle.engine.in_flight == 1
        server.predictor.gate.set()
        responses = await asyncio.gather(*tasks)

        assert len(server.predictor.batches) == 1
        assert len({response.json()["probability"] for response in responses}) == 1
        assert len({response.json()["request_id"] for response in responses}) == 8
        metrics = await server.metrics()
        assert metrics["dalorra_coalesced_inputs_total"] == 7
        assert metrics['dalorra_labels_total{adapter="fake-adapter",label="positive"}'] == 8


async def test_concurrent_requests_share_forwards():
    # With time enough that a batch which waits here is no sign of a slow model.
    async with serving(request_timeout_seconds=3_600) as server:
        server.predictor.gate.clear()
        tasks = [asyncio.create_task(server.predict("first"))]
        await server.until_running()
        tasks += [asyncio.create_task(server.predict(f"text {n}")) for n in range(31)]
        await server.until(lambda: server.lifecycle.engine.waiting == 31)
        server.predictor.gate.set()
        responses = await asyncio.gather(*tasks)

        assert {response.status_code for response in responses} == {200}
        assert [len(batch) for batch in server.predictor.batches] == [1, 31]
        metrics = await server.metrics()
        assert metrics["dalorra_batch_requests_sum"] == 32
        assert metrics["dalorra_batch_requests_count"] == 2


async def test_a_client_that_leaves_frees_its_place():
    async with serving(max_queue_requests=1, max_batch_inputs=1) as server:
        server.predictor.gate.clear()
        running = asyncio.create_task(server.predict("running"))
        await server.until_running()
        gone = asyncio.Event()
        leaving = asyncio.create_task(post_and_leave(server.app, gone))
        await server.until(lambda: server.lifecycle.engine.queue_requests == 1)
        assert (await server.predict("no place")).status_code == 429

        gone.set()
        await server.until(lambda: server.lifecycle.engine.queue_requests == 0)
        await leaving

        server.predictor.gate.set()
        assert (await running).status_code == 200
        assert len(server.predictor.batches) == 1
        metrics = await server.metrics()
        assert metrics['dalorra_requests_total{outcome="cancelled"}'] == 1
        assert metrics["dalorra_inflight_requests"] == 0


DOORS = {
    "/predict": {"input": "c"},
    "/predict/batch": {"inputs": ["c"]},
    "/v2/models/fake-adapter/infer": {
        "inputs": [{"name": "sentence", "datatype": "BYTES", "shape": [1], "data": ["c"]}]
    },
    "/v1/systemone": {"state": "c", "questions": {"q": ASK_POSITIVE}},
    "/v1/decisions": {
        "model": "gpt-6-luna",
        "input": "c",
        "questions": [{"type": "predicate", "instructions": ASK_POSITIVE["instructions"]}],
    },
}


@pytest.mark.parametrize("door", DOORS)
async def test_no_key_takes_the_places_of_the_others_by_any_door(door: str):
    greedy, modest = ({"Authorization": f"Bearer {who}"} for who in ("greedy", "modest"))
    predictor = FakePredictor()
    predictor.registered = (POSITIVE,)
    async with serving(
        predictor, api_keys="greedy,modest", max_queue_requests=4, max_batch_inputs=2
    ) as server:
        server.predictor.gate.clear()
        asked = [asyncio.create_task(server.predict("running", headers=greedy))]
        await server.until_running()
        asked += [asyncio.create_task(server.predict(text, headers=greedy)) for text in "ab"]
        await server.until(lambda: server.lifecycle.engine.queue_requests == 2)

        refused = await server.client.post(door, json=DOORS[door], headers=greedy)
        asked.append(
            asyncio.create_task(server.client.post(door, json=DOORS[door], headers=modest))
        )
        await server.until(lambda: server.lifecycle.engine.queue_requests == 3)
        server.predictor.gate.set()

        assert refused.status_code == 429
        assert "this key holds its share" in refused.text
        assert [one.status_code for one in await asyncio.gather(*asked)] == [200] * 4


async def test_what_cannot_be_answered_in_time_is_refused_at_once():
    predictor = FakePredictor(row_seconds=0.01, examples=3)  # 50 rows: half a second
    async with serving(predictor, request_timeout_seconds=1.0) as server:
        texts = [f"{n:030d}" for n in range(4)]
        response = await server.client.post("/predict/batch", json={"inputs": texts})

        sentence = error_sentence(response, 413, "batch_too_large")
        assert "an answer may take 1 s" in sentence
        assert predictor.encoded == []
        assert (await server.predict(texts[0])).status_code == 200


async def post_and_leave(app: object, gone: asyncio.Event) -> None:
    """A request whose connection ends when `gone` is set, as the server tells an application."""
    messages = iter([{"type": "http.request", "body": b'{"input": "leaving"}'}])

    async def receive() -> dict[str, object]:
        for message in messages:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/predict",
        "raw_path": b"/predict",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
        "state": {},
    }
    await app(scope, receive, send)  # type: ignore[operator]


async def test_what_is_queued_is_answered_before_the_app_ends():
    async with serving(drain_seconds=10) as server:
        server.predictor.gate.clear()
        tasks = [asyncio.create_task(server.predict(text)) for text in ("a", "b")]
        await server.until(lambda: server.lifecycle.engine.in_flight == 2)
        draining = asyncio.create_task(server.lifecycle.drain())
        await asyncio.sleep(0)

        ready = await server.client.get("/health/ready")
        live = await server.client.get("/health/live")
        late = await server.predict("c")
        assert (ready.status_code, ready.json()["error_type"]) == (503, "draining")
        assert live.status_code == 200
        assert (late.status_code, late.json()["error_type"]) == (503, "draining")
        assert "retry-after" in late.headers
        server.predictor.gate.set()
        await draining
        assert [(await task).status_code for task in tasks] == [200, 200]


async def test_what_cannot_be_finished_in_time_is_refused():
    async with serving(drain_seconds=0) as server:
        server.predictor.gate.clear()
        task = asyncio.create_task(server.predict("a"))
        await server.until_running()
        await server.lifecycle.drain()
        response: httpx.Response = await task
        server.predictor.gate.set()

    assert (response.status_code, response.json()["error_type"]) == (503, "draining")


async def test_a_model_that_cannot_be_loaded_says_so():
    def broken() -> None:
        raise OSError("disk on fire")

    async with serving(FakePredictor(on_warm_up=broken)) as server:
        for path in ("/health/live", "/health/ready"):
            response = await server.client.get(path)
            assert response.status_code == 503
            assert response.json()["error_type"] == "unavailable"
            assert "disk on fire" in response.json()["error"]
        assert (await server.predict("a")).json()["error_type"] == "unavailable"


async def test_a_broken_device_flips_liveness():
    async with serving() as server:
        assert (await server.predict("a")).status_code == 200
        server.predictor.broken = True

        response = await server.predict("b")
        live = await server.client.get("/health/live")
        ready = await server.client.get("/health/ready")

        assert (response.status_code, response.json()["error_type"]) == (503, "unavailable")
        assert (live.status_code, live.json()["error_type"]) == (503, "unavailable")
        assert ready.status_code == 503
        assert (await server.metrics())["dalorra_ready"] == 0
