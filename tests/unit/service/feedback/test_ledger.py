"""The truth about earlier answers, through the whole ASGI application."""

import asyncio
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from dalorra.decision.intervals import binomial_interval
from dalorra.decision.metrics import expected_calibration_error
from dalorra.decision.policy import Policy
from dalorra.errors import ConfigError
from service.app import create_app
from service.errors import FeedbackStoreError
from service.feedback.store import FeedbackStore
from service.settings import Settings, load_settings
from tests.fakes import PROMISE, FakeBase, FakePredictor, expected_prediction
from tests.serving import RunningServer, serving

ADAPTER = '{adapter="fake-adapter"}'


def predictor(policy: Policy = PROMISE, digest: str = "d1") -> FakePredictor:
    return FakePredictor(policy=policy, digest=digest)


def texts(decision: str, count: int) -> list[str]:
    """Inputs that the promise's thresholds decide so."""
    fake = FakePredictor()
    found = (
        text
        for text in (f"text {n}" for n in range(10_000))
        if PROMISE.decide(expected_prediction(fake.encode(text))).decision == decision
    )
    return list(islice(found, count))


@pytest.fixture
def store(tmp_path: Path) -> dict[str, Any]:
    return {"feedback_store": tmp_path / "feedback.sqlite"}


async def judge(server: RunningServer, request_id: str, label: str) -> httpx.Response:
    body = {"request_id": request_id, "label": label}
    return await server.client.post("/feedback", json=body)


async def answer_and_judge(server: RunningServer, inputs: list[str], labels: list[str]) -> None:
    for body, label in zip(await server.predict_batch(inputs), labels, strict=True):
        response = await judge(server, body["request_id"], label)
        assert response.status_code == 200, response.text


def judged(correct: str, decision: str) -> str:
    series = f'adapter="fake-adapter",correct="{correct}",decision="{decision}"'
    return f"dalorra_feedback_total{{{series}}}"


async def metrics_of(server: RunningServer) -> dict[str, float]:
    """The metrics once everything that was judged is added up."""
    await server.ledger.caught_up()
    return await server.metrics()


async def test_one_answer_and_its_truth(store: dict[str, Any]):
    [text] = texts("accept", 1)
    async with serving(predictor(), **store) as server:
        body = (await server.predict(text)).json()
        right = await judge(server, body["request_id"], "positive")
        [other] = await server.predict_batch([text])
        wrong = await judge(server, other["request_id"], "negative")
        metrics = await metrics_of(server)

    assert right.json() == {
        "request_id": body["request_id"],
        "label": "positive",
        "predicted": "positive",
        "decision": "accept",
        "correct": True,
    }
    assert wrong.json()["correct"] is False
    assert metrics[judged("true", "accept")] == 1
    assert metrics[judged("false", "accept")] == 1
    assert metrics[judged("false", "clarify")] == 0
    assert metrics["dalorra_unkept_answers_total"] == 0


@pytest.mark.parametrize(
    ("request_id", "label", "status", "error_type", "sentence"),
    [
        ("mine", "positive", 409, "already_judged", "judged before, as 'negative': the first"),
        ("yours", "positive", 404, "unknown_answer", "kept under request_id 'yours': it was given"),
        ("batch", "positive", 404, "unknown_answer", "kept under request_id 'batch'"),
        ("batch-0", "good", 422, "unknown_label", "send one of negative, positive"),
        ("batch-0", "", 422, "unknown_label", "label '' is unknown to adapter 'fake-adapter'"),
        ("ba tch", "positive", 422, "invalid_input", "request_id: String should match pattern"),
        ("", "positive", 422, "invalid_input", "request_id: String should match pattern"),
        ("x" * 161, "positive", 422, "invalid_input", "request_id: String should match pattern"),
    ],
)
async def test_what_cannot_be_the_truth_is_refused_and_changes_nothing(
    store: dict[str, Any],
    request_id: str,
    label: str,
    status: int,
    error_type: str,
    sentence: str,
):
    async with serving(predictor(), **store) as server:
        await server.predict("a", headers={"X-Request-Id": "mine"})
        body = {"inputs": ["a", "b"]}
        await server.client.post("/predict/batch", json=body, headers={"X-Request-Id": "batch"})
        assert (await judge(server, "mine", "negative")).status_code == 200

        response = await judge(server, request_id, label)

        assert (response.status_code, response.json()["error_type"]) == (status, error_type)
        assert sentence in response.json()["error"]
        assert (await metrics_of(server))[f"dalorra_judged_answers{ADAPTER}"] == 1
        assert (await judge(server, "batch-0", "positive")).status_code == 200
        assert (await judge(server, "batch-1", "positive")).status_code == 200


async def test_an_answer_of_another_adapter_is_refused(store: dict[str, Any]):
    async with serving(predictor(), **store) as server:
        await server.predict("a", headers={"X-Request-Id": "old"})
    async with serving(predictor(digest="d2"), **store) as server:
        response = await judge(server, "old", "positive")
    assert (response.status_code, response.json()["error_type"]) == (409, "other_adapter")
    assert "is of adapter d1…, which is not served any more" in response.json()["error"]


async def test_it_is_off_unless_asked_for():
    async with serving() as server:
        await server.predict("a", headers={"X-Request-Id": "a"})
        response = await judge(server, "a", "positive")
        metrics = await metrics_of(server)
    assert (response.status_code, response.json()["error_type"]) == (404, "feedback_off")
    assert "once feedback_store is set" in response.json()["error"]
    assert metrics[f"dalorra_promise_broken{ADAPTER}"] == 0
    assert math.isnan(metrics[f"dalorra_live_error_ratio{ADAPTER}"])


async def test_it_needs_a_key_where_there_are_keys(store: dict[str, Any]):
    async with serving(api_keys="k", **store) as server:
        assert (await judge(server, "a", "positive")).status_code == 401


async def test_live_error_and_calibration_are_of_the_served_policy(store: dict[str, Any]):
    inputs = texts("accept", 30) + texts("clarify", 10)
    labels = ["negative" if n % 7 == 0 else "positive" for n in range(40)]
    async with serving(predictor(), **store) as server:
        await answer_and_judge(server, inputs, labels)
        metrics = await metrics_of(server)
    errors = sum(label == "negative" for label in labels[:30])
    low, high = binomial_interval(errors, 30)
    fake = FakePredictor()
    confidence = [expected_prediction(fake.encode(text)).probability for text in inputs]
    correct = [label == "positive" for label in labels]
    assert metrics[f"dalorra_judged_answers{ADAPTER}"] == 40
    assert metrics[f"dalorra_live_error_ratio{ADAPTER}"] == errors / 30
    assert metrics[f"dalorra_live_error_lower_ratio{ADAPTER}"] == pytest.approx(low)
    assert metrics[f"dalorra_live_error_upper_ratio{ADAPTER}"] == pytest.approx(high)
    assert metrics[f"dalorra_promised_error_ratio{ADAPTER}"] == 0.05
    assert metrics[f"dalorra_live_ece_ratio{ADAPTER}"] == pytest.approx(
        expected_calibration_error(confidence, correct)
    )


async def test_a_kept_promise_raises_no_alarm(store: dict[str, Any]):
    async with serving(predictor(), policy_action="strict", **store) as server:
        await answer_and_judge(server, texts("accept", 100), ["positive"] * 100)
        metrics = await metrics_of(server)
        body = (await server.predict(texts("accept", 1)[0])).json()
    assert metrics[f"dalorra_promise_broken{ADAPTER}"] == 0
    assert metrics[f"dalorra_promise_e_value{ADAPTER}"] < 1
    assert metrics["dalorra_promise_alarm_e_value"] == 20
    assert body["decision"] == "accept"


@pytest.mark.parametrize(("action", "then"), [("report", "accept"), ("strict", "escalate")])
async def test_a_broken_promise_is_an_alarm_and_where_asked_the_end_of_accepting(
    store: dict[str, Any], action: str, then: str
):
    accepted, torn = texts("accept", 12), texts("clarify", 1)
    settings = {"policy_action": action, **store}
    async with serving(predictor(), **settings) as server:
        await answer_and_judge(server, accepted, ["negative"] * 6 + ["positive"] * 6)
        metrics = await metrics_of(server)
        ready = await server.client.get("/health/ready")
        [body, other] = await server.predict_batch([accepted[0], *torn])
        later = await metrics_of(server)
    async with serving(predictor(), **settings) as server:
        again = (await server.predict(accepted[0])).json()
        after_restart = await metrics_of(server)
    async with serving(predictor(PROMISE.at(0.01)), **settings) as server:
        calibrated_again = await metrics_of(server)

    assert metrics[f"dalorra_promise_broken{ADAPTER}"] == 1
    assert metrics[f"dalorra_promise_e_value{ADAPTER}"] > 20
    assert ready.status_code == 200
    assert body["decision"] == again["decision"] == then
    assert other["decision"] == "clarify"
    if action == "strict":
        assert body["reason"].startswith(
            "nothing is accepted, because the promised error of 0.05 is broken: 6 of 12 accepted "
            "answers were wrong by feedback (e-value "
        )
        assert later['dalorra_decisions_total{adapter="fake-adapter",decision="escalate"}'] >= 1
    for series in ("promise_broken", "promise_e_value", "live_error_ratio"):
        name = f"dalorra_{series}{ADAPTER}"
        assert after_restart[name] == metrics[name]
    assert calibrated_again[f"dalorra_promise_broken{ADAPTER}"] == 0, "another policy, another test"
    assert calibrated_again[f"dalorra_judged_answers{ADAPTER}"] == 0


async def test_only_what_the_policy_accepts_counts_whatever_a_client_was_told(
    store: dict[str, Any],
):
    """A stricter target and `strict` change decisions, not what the promise is about."""
    accepted = texts("accept", 8)
    async with serving(predictor(), policy_action="strict", **store) as server:
        bodies = await server.predict_batch(accepted, target_error=0.01)
        told = Counter(body["decision"] for body in bodies)
        assert not told["accept"]
        for body in bodies:
            await judge(server, body["request_id"], "negative")
        metrics = await metrics_of(server)
        assert metrics[f"dalorra_live_error_ratio{ADAPTER}"] == 1.0
        assert metrics[f"dalorra_promise_broken{ADAPTER}"] == 1
        for decision in ("escalate", "clarify"):
            assert metrics[judged("false", decision)] == told[decision]
        before = metrics[f"dalorra_promise_e_value{ADAPTER}"]
        await answer_and_judge(server, accepted, ["negative"] * 8)
        assert (await metrics_of(server))[f"dalorra_promise_e_value{ADAPTER}"] > before


async def test_a_policy_that_promises_nothing_is_not_watched(store: dict[str, Any]):
    policy = PROMISE.model_copy(update={"confidence": None})
    async with serving(predictor(policy), **store) as server:
        await answer_and_judge(server, texts("accept", 12), ["negative"] * 12)
        metrics = await metrics_of(server)
    assert metrics[f"dalorra_live_error_ratio{ADAPTER}"] == 1.0
    assert math.isnan(metrics[f"dalorra_promise_e_value{ADAPTER}"])
    assert math.isnan(metrics[f"dalorra_promised_error_ratio{ADAPTER}"])
    assert metrics[f"dalorra_promise_broken{ADAPTER}"] == 0


@pytest.mark.parametrize("inputs", [False, True])
async def test_inputs_are_kept_only_where_asked_for(store: dict[str, Any], inputs: bool):
    async with serving(predictor(), feedback_inputs=inputs, **store) as server:
        await server.predict("a secret")
    with closing(sqlite3.connect(store["feedback_store"])) as database:
        [record] = database.execute("SELECT input FROM answers").fetchall()
    assert record == ('"a secret"' if inputs else None,)
    content = b"".join(path.read_bytes() for path in store["feedback_store"].parent.iterdir())
    assert (b"a secret" in content) is inputs


async def test_old_answers_go(store: dict[str, Any]):
    async with serving(predictor(), feedback_max_rows=3, **store) as server:
        for n in range(6):
            await server.predict("a", headers={"X-Request-Id": f"r{n}"})
            # Each waits for the one before it to be written.
            await judge(server, "nobody", "positive")
        statuses = [(await judge(server, f"r{n}", "positive")).status_code for n in range(6)]
    assert statuses == [404, 404, 404, 200, 200, 200]


async def test_a_judgement_sent_again_is_answered_as_before_and_counts_once(store: dict[str, Any]):
    async with serving(predictor(), **store) as server:
        [body] = await server.predict_batch(texts("accept", 1))
        first = await judge(server, body["request_id"], "negative")
        before = await metrics_of(server)
        again = await judge(server, body["request_id"], "negative")
        after = await metrics_of(server)
    assert (again.status_code, again.json()) == (200, first.json())
    assert before[judged("false", "accept")] == 1
    feedback = ("dalorra_feedback", "dalorra_judged", "dalorra_promise", "dalorra_live")
    assert [before[name] for name in before if name.startswith(feedback)] == [
        after[name] for name in after if name.startswith(feedback)
    ]


async def test_what_is_written_was_taken_though_it_cannot_be_added_up_yet(
    store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async with serving(predictor(), **store) as server:
        await server.predict("a", headers={"X-Request-Id": "x"})
        with monkeypatch.context() as patched:
            patched.setattr(FeedbackStore, "groups", fail)
            await server.predict("b", headers={"X-Request-Id": "y"})
            taken = await judge(server, "x", "positive")
            with pytest.raises(FeedbackStoreError, match="cannot be read"):
                await server.ledger.caught_up()
        metrics = await metrics_of(server)
    assert taken.status_code == 200
    assert metrics[f"dalorra_judged_answers{ADAPTER}"] == 1
    assert metrics["dalorra_unkept_answers_total"] == 0


async def test_a_disk_that_fails_is_said_and_slows_no_answer(
    store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with serving(predictor(), **store) as server:
        with monkeypatch.context() as patched:
            patched.setattr(FeedbackStore, "add", full)
            assert (await server.predict("a")).status_code == 200
            failed = await judge(server, "x", "positive")
            patched.setattr(FeedbackStore, "owners", full)
            failed = await judge(server, "x", "positive")
        body = (await server.predict("a")).json()
        fine = await judge(server, body["request_id"], "positive")
        metrics = await metrics_of(server)
    assert (failed.status_code, failed.json()["error_type"]) == (503, "feedback_store")
    assert "retry-after" in failed.headers
    assert fine.status_code == 200
    assert metrics["dalorra_unkept_answers_total"] == 1


async def test_a_full_inbox_costs_an_answer_its_feedback_and_not_its_time(
    store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("service.feedback.ledger.INBOX_SIZE", 1)
    blocked, loop, gate = asyncio.Event(), asyncio.get_running_loop(), threading.Event()
    add = FeedbackStore.add

    def wait(store: FeedbackStore, *answers: Any) -> None:
        loop.call_soon_threadsafe(blocked.set)
        gate.wait()
        add(store, *answers)

    monkeypatch.setattr(FeedbackStore, "add", wait)
    async with serving(predictor(), **store) as server:
        await server.predict("a")
        await blocked.wait()
        answers = [(await server.predict(text)).status_code for text in "bcd"]
        refused = await judge(server, "x", "positive")
        gate.set()
        metrics = await metrics_of(server)
    assert answers == [200, 200, 200]
    assert (refused.status_code, refused.json()["error_type"]) == (429, "queue_full")
    assert metrics["dalorra_unkept_answers_total"] == 2


def test_a_store_that_cannot_be_opened_stops_the_start(tmp_path: Path):
    settings = Settings(feedback_store=tmp_path / "nowhere" / "f.sqlite")
    with pytest.raises(ConfigError, match="cannot be opened"):
        create_app(settings, lambda _: FakePredictor())


def test_strictness_without_feedback_is_refused():
    with pytest.raises(ConfigError, match="policy_action strict needs feedback"):
        load_settings(policy_action="strict")


ADMIN = {"Authorization": "Bearer the-key-of-the-administrator"}


@pytest.fixture
def managed(store: dict[str, Any], tmp_path: Path) -> Callable[..., Any]:
    """A server of two adapters that can be replaced; each folder's name decides its digest."""
    folders = [tmp_path / "adapters" / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "dalorra.json").write_text("{}")
    base = FakeBase(**{folder.name: predictor() for folder in folders})
    return lambda **settings: serving(
        base=base,
        adapters={"one": folders[0], "two": folders[1]},
        adapter_roots=(tmp_path / "adapters",),
        admin_keys="the-key-of-the-administrator",
        **store,
        **settings,
    )


async def replace(server: RunningServer, name: str, folder: Path) -> None:
    response = await server.client.put(
        f"/adapters/{name}", json={"path": str(folder)}, headers=ADMIN
    )
    assert response.status_code == 200, response.text


async def test_each_adapter_is_watched_by_itself(managed: Any):
    accepted = texts("accept", 8)
    async with managed(policy_action="strict") as server:
        for body in await server.predict_batch(accepted, adapter="two"):
            await judge(server, body["request_id"], "negative")
        for body in await server.predict_batch(accepted[:3], adapter="one"):
            await judge(server, body["request_id"], "positive")
        metrics = await metrics_of(server)
        decisions = {
            name: (await server.predict_batch(accepted[:1], adapter=name))[0]["decision"]
            for name in ("one", "two")
        }
    assert metrics['dalorra_promise_broken{adapter="one"}'] == 0
    assert metrics['dalorra_promise_broken{adapter="two"}'] == 1
    assert metrics['dalorra_live_error_ratio{adapter="one"}'] == 0
    assert metrics['dalorra_judged_answers{adapter="two"}'] == 8
    assert decisions == {"one": "accept", "two": "escalate"}


async def test_what_replaces_an_adapter_starts_anew_and_what_comes_back_goes_on(
    managed: Any, tmp_path: Path
):
    accepted, folders = texts("accept", 8), tmp_path / "adapters"
    async with managed(policy_action="strict") as server:
        bodies = await server.predict_batch(accepted, adapter="two")
        for body in bodies[1:]:
            await judge(server, body["request_id"], "negative")
        before = await metrics_of(server)

        await replace(server, "two", folders / "third")
        replaced = await metrics_of(server)
        [new] = await server.predict_batch(accepted[:1], adapter="two")
        late = await judge(server, bodies[0]["request_id"], "negative")

        await replace(server, "two", folders / "second")
        back = await metrics_of(server)
        again = await judge(server, bodies[0]["request_id"], "negative")

    name = 'dalorra_promise_broken{adapter="two"}'
    assert (before[name], replaced[name], back[name]) == (1, 0, 1)
    assert new["decision"] == "accept"
    assert (late.status_code, late.json()["error_type"]) == (409, "other_adapter")
    assert again.status_code == 200
    e_value = 'dalorra_promise_e_value{adapter="two"}'
    assert back[e_value] == before[e_value]


async def test_an_unloaded_adapter_has_no_series(managed: Any):
    async with managed() as server:
        response = await server.client.delete("/adapters/two", headers=ADMIN)
        assert response.status_code == 200
        metrics = await metrics_of(server)
    assert not [series for series in metrics if "promise" in series and '"two"' in series]
    assert 'dalorra_promise_broken{adapter="one"}' in metrics
