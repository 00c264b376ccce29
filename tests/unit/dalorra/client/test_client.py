"""The clients: against scripted answers, and against the application without a socket."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from dalorra import client as package
from dalorra.client import (
    AsyncClient,
    BusyError,
    Client,
    ClientError,
    ConflictError,
    DeadlineExceededError,
    InferenceFailedError,
    InvalidInputError,
    MalformedRequestError,
    NotFoundError,
    NotReadyError,
    QueueFullError,
    RateLimitedError,
    RequestError,
    Retries,
    ServerError,
    TimedOutError,
    TooLargeError,
    TransportError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from dalorra.client._errors import BY_ERROR_TYPE, BY_STATUS
from dalorra.client._retries import parse_retry_after
from tests.client_script import ANSWER, Script, answering, error
from tests.fakes import FakeQuestions, expected_prediction
from tests.questions import QUESTIONS, STATE
from tests.serving import RunningServer, serving

ROOT = Path(__file__).parents[4]
Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`ask(script, "predict", "text")`: one call of either client, which behave alike."""

    def sync_call(
        script: Script, method: str, *args: Any, options: Any = None, **named: Any
    ) -> Any:
        with Client(transport=httpx.MockTransport(script), **(options or {})) as client:
            return getattr(client, method)(*args, **named)

    def async_call(
        script: Script, method: str, *args: Any, options: Any = None, **named: Any
    ) -> Any:
        async def call() -> Any:
            transport = httpx.MockTransport(script)
            async with AsyncClient(transport=transport, **(options or {})) as client:
                return await getattr(client, method)(*args, **named)

        return asyncio.run(call())

    return sync_call if request.param == "sync" else async_call


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a client slept, without sleeping them."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("asyncio.sleep", sleep)
    return slept


def test_a_prediction_is_typed_and_keeps_what_it_does_not_know(ask: Ask):
    script = answering(ANSWER | {"novelty": 0.25})

    prediction = ask(script, "predict", "hello", request_id="mine", options={"api_key": "secret"})

    assert (prediction.label, prediction.decision) == ("positive", "accept")
    assert prediction.sample_probabilities is None
    assert prediction.model_dump(exclude_unset=True) == ANSWER | {"novelty": 0.25}
    [request] = script.requests
    assert request.url == "http://127.0.0.1:8000/predict"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["x-request-id"] == "mine"
    assert script.bodies == [{"input": "hello"}]


def test_no_key_no_header(ask: Ask):
    script = answering()
    ask(script, "predict", {"claim": "a", "evidence": "b"}, return_samples=True)
    assert "authorization" not in script.requests[0].headers
    assert script.bodies == [{"input": {"claim": "a", "evidence": "b"}, "return_samples": True}]


def test_a_stricter_target_is_sent_with_one_input_or_several(ask: Ask):
    script = Script(
        httpx.Response(200, json=ANSWER), httpx.Response(200, json={"predictions": [ANSWER]})
    )
    ask(script, "predict", "a", target_error=0.02)
    ask(script, "predict_batch", ["a"], target_error=0.02)
    assert script.bodies == [
        {"input": "a", "target_error": 0.02},
        {"inputs": ["a"], "target_error": 0.02},
    ]


def test_feedback_names_the_answer_and_its_true_label(ask: Ask):
    recorded = {
        "request_id": "r-0",
        "label": "negative",
        "predicted": "positive",
        "decision": "accept",
        "correct": False,
    }
    script = answering(recorded)
    feedback = ask(script, "feedback", "r-0", "negative")
    assert feedback.model_dump() == recorded
    assert script.requests[0].url.path == "/feedback"
    assert script.bodies == [{"request_id": "r-0", "label": "negative"}]


def test_the_address_may_have_a_path(ask: Ask):
    script = answering()
    ask(script, "predict", "a", options={"base_url": "https://example.org/dalorra"})
    assert script.requests[0].url == "https://example.org/dalorra/predict"


def test_a_batch_keeps_its_order_and_an_empty_one_asks_nobody(ask: Ask):
    second = ANSWER | {"label": "negative"}
    script = answering({"predictions": [ANSWER, second]})
    labels = [one.label for one in ask(script, "predict_batch", ["a", "b"])]
    assert labels == ["positive", "negative"]
    assert script.bodies == [{"inputs": ["a", "b"]}]
    assert ask(script, "predict_batch", []) == []
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("status", "error_type", "kind", "family"),
    [
        (400, "malformed_json", MalformedRequestError, RequestError),
        (401, "unauthorized", UnauthorizedError, RequestError),
        (404, "not_found", NotFoundError, RequestError),
        (404, "unknown_answer", NotFoundError, RequestError),
        (409, "already_judged", ConflictError, RequestError),
        (405, "method_not_allowed", NotFoundError, RequestError),
        (413, "body_too_large", TooLargeError, RequestError),
        (413, "batch_too_large", TooLargeError, RequestError),
        (422, "invalid_input", InvalidInputError, RequestError),
        (500, "inference_failed", InferenceFailedError, ServerError),
        (500, "internal_error", InferenceFailedError, ServerError),
        (504, "deadline_exceeded", DeadlineExceededError, ServerError),
        (418, "new_in_a_later_version", RequestError, ClientError),
        (507, "new_in_a_later_version", ServerError, ClientError),
    ],
)
def test_an_error_has_its_class_and_is_not_retried(
    ask: Ask,
    waits: list[float],
    status: int,
    error_type: str,
    kind: type[ClientError],
    family: type[ClientError],
):
    script = Script(error(status, error_type))

    with pytest.raises(kind) as raised:
        ask(script, "predict", "a")

    assert type(raised.value) is kind
    assert isinstance(raised.value, family)
    assert str(raised.value) == f"this is {error_type}"
    assert (raised.value.error_type, raised.value.status) == (error_type, status)
    assert raised.value.request_id == "r1"
    assert (len(script.requests), waits) == (1, [])


@pytest.mark.parametrize(
    ("status", "error_type", "kind"),
    [
        (429, "queue_full", QueueFullError),
        (429, "rate_limited", RateLimitedError),
        (503, "loading", NotReadyError),
        (503, "draining", NotReadyError),
        (503, "unavailable", NotReadyError),
    ],
)
def test_a_busy_server_is_asked_again_after_as_long_as_it_said(
    ask: Ask, waits: list[float], status: int, error_type: str, kind: type[ClientError]
):
    refused = error(status, error_type, **{"Retry-After": "4"})
    script = Script(refused, refused, httpx.Response(200, json=ANSWER))

    assert ask(script, "predict", "a").label == "positive"

    assert len(script.requests) == 3
    assert script.bodies[0] == script.bodies[2]
    assert all(4 <= wait <= 5 for wait in waits)
    assert waits[0] != waits[1]  # jitter

    script = Script(refused)
    with pytest.raises(kind) as raised:
        ask(script, "predict", "a", options={"retries": Retries(attempts=2)})
    assert len(script.requests) == 2
    assert isinstance(raised.value, BusyError)
    assert raised.value.retry_after == 4


def test_without_a_retry_after_the_waits_grow_at_random():
    retries = Retries(attempts=9, longest_wait=3.0, backoff=0.5)
    longest = [retries.wait(n, 503, None, uniform=lambda _, high: high) for n in range(1, 6)]
    assert longest == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert retries.wait(3, 503, None, uniform=lambda low, _: low) == 0
    assert retries.wait(9, 503, None) is None


def test_a_wait_longer_than_allowed_is_not_waited(ask: Ask, waits: list[float]):
    script = Script(error(429, "queue_full", **{"Retry-After": "31"}))
    with pytest.raises(QueueFullError) as raised:
        ask(script, "predict", "a")
    assert raised.value.retry_after == 31
    assert (len(script.requests), waits) == (1, [])


def test_a_retry_after_may_be_a_date():
    soon = datetime.now(UTC) + timedelta(seconds=20)
    assert parse_retry_after(format_datetime(soon, usegmt=True)) == pytest.approx(20, abs=1.5)
    assert parse_retry_after(format_datetime(soon - timedelta(days=1), usegmt=True)) == 0
    assert [parse_retry_after(value) for value in (None, "soon", "nan", "inf")] == [None] * 4
    assert [parse_retry_after(value) for value in ("0", "-3", "2")] == [0, 0, 2]


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"longest_wait": -1}, {"backoff": -1}])
def test_impossible_retries_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="attempts"):
        Retries(**wrong)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ConnectError("refused"), TransportError),
        (httpx.RemoteProtocolError("cut off"), TransportError),
        (httpx.DecodingError("not gzip"), TransportError),
        (httpx.ConnectTimeout("slow"), TimedOutError),
        (httpx.ReadTimeout("slow"), TimedOutError),
    ],
)
def test_no_answer_is_one_error_and_no_retry(
    ask: Ask, waits: list[float], failure: Exception, kind: type[ClientError]
):
    script = Script(failure)
    with pytest.raises(kind, match=r"127\.0\.0\.1:8000/predict") as raised:
        ask(script, "predict", "a")
    assert type(raised.value) is kind
    assert (raised.value.status, raised.value.error_type, len(script.requests)) == (None, None, 1)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(200, text="<html>"), UnexpectedAnswerError),
        (httpx.Response(200, json={"label": "positive"}), UnexpectedAnswerError),
        (httpx.Response(200, json=ANSWER | {"decision": "maybe"}), UnexpectedAnswerError),
        (httpx.Response(307, headers={"Location": "/elsewhere"}), UnexpectedAnswerError),
        (httpx.Response(502, text="Bad Gateway"), ServerError),
        (httpx.Response(504, text="Gateway Time-out"), DeadlineExceededError),
        (httpx.Response(403, json={"detail": "no"}), UnauthorizedError),
        (httpx.Response(413, json=["too large"]), TooLargeError),
        (httpx.Response(400, json={"error_type": ["odd"]}), MalformedRequestError),
    ],
)
def test_what_something_else_answers_is_an_error_too(
    ask: Ask, answer: httpx.Response, kind: type[ClientError]
):
    with pytest.raises(kind) as raised:
        ask(Script(answer), "predict", "a")
    assert type(raised.value) is kind


def test_a_batch_with_too_few_answers_is_refused(ask: Ask):
    script = answering({"predictions": [ANSWER]})
    with pytest.raises(UnexpectedAnswerError, match="2 inputs were answered by 1"):
        ask(script, "predict_batch", ["a", "b"])


def test_health_is_an_answer_even_when_it_is_no(ask: Ask, waits: list[float]):
    assert ask(answering({"status": "ready"}), "health").ready
    refused = Script(error(503, "loading", **{"Retry-After": "5"}))
    health = ask(refused, "health")
    assert (health.ready, health.error_type, health.reason) == (False, "loading", "this is loading")
    assert (len(refused.requests), waits) == (1, [])
    with pytest.raises(NotFoundError):
        ask(Script(httpx.Response(404, text="nginx")), "health")


def test_every_error_can_be_caught_by_name():
    raised = {*BY_ERROR_TYPE.values(), *BY_STATUS.values()}
    families = {kind for one in raised for kind in one.__mro__ if issubclass(kind, ClientError)}
    assert {kind.__name__ for kind in families} <= set(package.__all__)


def asking(server: RunningServer, **options: Any) -> AsyncClient:
    return AsyncClient("http://127.0.0.1", transport=httpx.ASGITransport(server.app), **options)


async def test_against_the_application():
    async with serving(api_keys="k") as server:
        client = asking(server, api_key="k")
        expected = expected_prediction(server.predictor.encode("hello"))
        prediction = await client.predict("hello", return_samples=True)
        assert prediction.probability == expected.probability
        assert prediction.sample_probabilities == expected.sample_probabilities
        assert (await client.predict("hello")).sample_probabilities is None
        first, second = await client.predict_batch(["hello", {"sentence": "x"}])
        assert first.probability == expected.probability
        assert second.probability != first.probability
        info = await client.info()
        assert (info.labels, info.fields) == (("negative", "positive"), ("sentence",))
        assert info.policy.min_probability == 0.8
        assert (await client.health()).ready
        with pytest.raises(InvalidInputError, match="empty"):
            await client.predict("")
        with pytest.raises(InvalidInputError, match="surrogate"):
            await client.predict("\ud800")
        with pytest.raises(UnauthorizedError):
            await asking(server).predict("hello")


async def test_a_full_queue_says_how_long_to_wait():
    async with serving(max_queue_requests=1, max_batch_inputs=1) as server:
        server.predictor.gate.clear()
        others = [asyncio.create_task(server.predict("running"))]
        await server.until_running()
        others.append(asyncio.create_task(server.predict("queued")))
        await server.until(lambda: server.lifecycle.engine.queue_requests == 1)
        with pytest.raises(QueueFullError) as raised:
            await asking(server, retries=Retries(attempts=1)).predict("refused")
        assert raised.value.retry_after
        server.predictor.gate.set()
        await asyncio.gather(*others)


def test_the_import_is_light():
    """Without click, which a bare install lacks; on the CPU's clock, as the machine may be busy."""
    code = """
import sys, time
sys.modules["click"] = None
started = time.process_time()
import dalorra.client
print(time.process_time() - started)
print(sorted({"torch", "transformers", "numpy", "fastapi", "starlette"} & set(sys.modules)))
"""
    seconds = 1.0
    for _ in range(8):
        run = [sys.executable, "-c", code]
        output = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        taken, heavy = output.splitlines()
        assert heavy == "[]"
        seconds = min(seconds, float(taken))
        if seconds < 0.3:
            break
    assert seconds < 0.3


TYPED = {
    "x_decision": "accept", "x_reason": "because", "x_variance": 0.01, "x_standard_error": 0.003,
    "x_novelty": None, "x_promise": {"target_error": 0.05, "confidence": 0.95}, "x_samples": 10,
    "x_adapter": "ask", "x_request_id": "r-0",
}  # fmt: skip


def test_typed_questions_are_asked_and_answered(ask: Ask):
    body = {
        "model": "ask",
        "answers": {
            "a": {"type": "noul", "noul": 0.9, **TYPED},
            "b": {
                "type": "score", "score": 0.2, "legend": {"0": "calm", "1": {"so": "angry"}},
                "probabilities": {"0": 0.8, "1": 0.2}, "confidence": 0.6, **TYPED, "x_new": 1,
            },
        },
        "usage": {"input_tokens": 9, "output_tokens": 0},
    }  # fmt: skip
    script = answering(body)
    questions = {"a": {"type": "noul", "instructions": "Is it so?"}}
    answers = ask(script, "ask", {"b": [1]}, questions, request_id="mine")
    ask(script, "ask", "c", questions, model="ask", return_samples=True, target_error=0.02)

    noul, score = answers["a"], answers["b"]
    assert (noul.noul, noul.decision, noul.promise.target_error) == (0.9, "accept", 0.05)
    assert (score.legend, score.probabilities) == (
        {0: "calm", 1: {"so": "angry"}}, {0: 0.8, 1: 0.2},
    )  # fmt: skip
    assert score.model_dump()["x_new"] == 1
    assert answers.usage.input_tokens == 9
    assert script.requests[0].url.path == "/v1/systemone"
    assert script.requests[0].headers["x-request-id"] == "mine"
    assert script.bodies == [
        {"state": {"b": [1]}, "questions": questions},
        {
            "state": "c", "questions": questions, "model": "ask", "x_return_samples": True,
            "x_target_error": 0.02,
        },
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "detail", "kind", "says"),
    [
        (422, [{"loc": ["body", "state"], "msg": "Field required", "type": "missing"}],
         InvalidInputError, "state: Field required"),
        (422, [{"loc": ["body"], "msg": "no JSON", "type": "t"}], InvalidInputError, "no JSON"),
        (413, {"error_type": "input_too_long", "message": "shorten"}, TooLargeError, "shorten"),
        (401, {"error_type": "authentication_error", "message": "key"}, UnauthorizedError, "key"),
    ],
)  # fmt: skip
def test_errors_about_typed_questions_have_a_form_of_their_own(
    ask: Ask, status: int, detail: Any, kind: type[ClientError], says: str
):
    script = Script(httpx.Response(status, json={"detail": detail}, headers={"X-Request-Id": "r"}))
    with pytest.raises(kind) as caught:
        ask(script, "ask", "a", {})
    assert str(caught.value) == says
    assert caught.value.request_id == "r"


async def test_typed_questions_reach_the_application():
    async with serving(FakeQuestions()) as server:
        client = asking(server)
        answers = await client.ask(STATE, QUESTIONS, return_samples=True)
        with pytest.raises(InvalidInputError, match="questions: Dictionary should have at least"):
            await client.ask(STATE, {})
    assert list(answers.answers) == list(QUESTIONS)
    for one in answers.answers.values():
        assert one.adapter == "fake-adapter"
        assert len(one.sample_probabilities or ()) == one.samples
        assert not one.model_extra
