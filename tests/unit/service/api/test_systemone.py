"""System One: what its clients send and read, errors included."""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dalorra.questions import YES, Question
from service.api.confidence import choice_confidence, score_confidence
from tests.fakes import POLICY, PROMISE, FakeBase, FakePredictor, FakeQuestions, expected_prediction
from tests.questions import (
    ASK_POSITIVE,
    CHOICE,
    NOUL,
    POSITIVE,
    QUESTIONS,
    SCORE,
    STATE,
    check_distribution,
    check_own_fields,
)
from tests.serving import JSON, RunningServer, serving

PATH = "/v1/systemone"
NAME = "fake-adapter"


async def post(server: RunningServer, questions: Any = QUESTIONS, **body: Any) -> httpx.Response:
    asked = {"model": "jev-latest", "state": STATE, "questions": questions, **body}
    return await server.client.post(PATH, json=asked)


async def answers(server: RunningServer, questions: Any = QUESTIONS, **body: Any) -> dict[str, Any]:
    response = await post(server, questions, **body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["answers"]
    return found


def fault(response: httpx.Response, *path: Any) -> str:
    """Checks the form of a fault of the body; what the one at `path` says."""
    assert response.status_code == 422, response.text
    detail = response.json()["detail"]
    assert all(set(one) == {"loc", "msg", "type"} for one in detail)
    [said] = [one["msg"] for one in detail if one["loc"] == ["body", *path]]
    return str(said)


def refusal(response: httpx.Response, status: int, error_type: str) -> str:
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert set(detail) == {"error_type", "message"}
    assert detail["error_type"] == error_type
    return str(detail["message"])


async def test_each_kind_is_answered():
    async with serving(FakeQuestions()) as server:
        response = await post(server)
        metrics = await server.metrics()

    body = response.json()
    assert list(body) == ["model", "answers", "usage"]
    assert body["model"] == NAME
    noul, choice, score = (body["answers"][name] for name in QUESTIONS)
    assert (noul["type"], choice["type"], score["type"]) == ("noul", "choice", "score")
    assert 0 <= noul["noul"] <= 1
    assert "confidence" not in noul
    assert list(choice["probabilities"]) == list(CHOICE["criteria"])
    p = list(choice["probabilities"].values())
    check_distribution(p)
    assert choice["choice"] == max(choice["probabilities"], key=choice["probabilities"].get)
    assert choice["confidence"] == choice_confidence(p)
    assert score["legend"] == dict(zip("012", SCORE["criteria"], strict=True))
    p = [score["probabilities"][level] for level in "012"]
    check_distribution(p)
    assert score["score"] == pytest.approx(p[1] + 2 * p[2])
    assert score["confidence"] == score_confidence(p)
    for answer in (noul, choice, score):
        check_own_fields(answer, NAME)
    ids = [one["x_request_id"] for one in body["answers"].values()]
    assert ids == [f"{response.headers['x-request-id']}-{place}" for place in range(3)]
    assert "server-timing" in response.headers
    assert metrics['dalorra_requests_total{outcome="ok"}'] == 1
    assert sum(v for k, v in metrics.items() if k.startswith("dalorra_decisions_total")) == 3
    assert not [name for name in metrics if name.startswith("dalorra_labels_total")]


async def test_what_is_asked_is_what_was_sent():
    async with serving(FakeQuestions()) as server:
        await answers(server, state={"subject": "Twice", "n": [1, True]})
        asked = server.predictor.asked  # type: ignore[attr-defined]
    assert {one.state for one in asked} == {'{"subject": "Twice", "n": [1, true]}'}
    noul, choice, score = (one.question for one in asked)
    assert noul == Question.noul(NOUL["instructions"])
    assert [(o.name, o.description) for o in choice.options] == [
        ("Billing", "invoices and refunds"), ("Technical", ""), ("환불 🙂", '["a", {"b": 1}]'),
    ]  # fmt: skip
    assert [o.name for o in score.options] == ["calm", '{"label": "annoyed"}', "furious"]


@pytest.mark.parametrize(
    ("criteria", "described"),
    [
        (None, ("", "")),
        ({"true": "they do"}, ("they do", "")),
        ({"false": {"or": "not"}}, ("", '{"or": "not"}')),
        ({"true": None, "false": None}, ("", "")),
    ],
)
async def test_a_noul_may_say_what_yes_and_no_mean(criteria: Any, described: tuple[str, str]):
    async with serving(FakeQuestions()) as server:
        await answers(server, {"q": {**NOUL, "criteria": criteria}})
        [asked] = server.predictor.asked  # type: ignore[attr-defined]
    assert tuple(option.description for option in asked.question.options) == described


async def test_criteria_alone_are_enough_and_nothing_is_not():
    without = {name: {**one, "instructions": None} for name, one in QUESTIONS.items()}
    without["refund"] = {"type": "noul", "criteria": {"true": "money back"}}
    async with serving(FakeQuestions()) as server:
        assert len(await answers(server, without)) == 3
        response = await post(server, {"q": {"type": "noul"}})
    assert "needs instructions" in fault(response, "questions", "q", "noul")


async def test_neither_names_nor_neighbours_nor_order_change_an_answer():
    async with serving(FakeQuestions()) as server:
        together = await answers(server)
        for name, question in QUESTIONS.items():
            alone = (await answers(server, {"🎯 " + name: question}))["🎯 " + name]
            assert {**alone, "x_request_id": ""} == {**together[name], "x_request_id": ""}
        turned = await answers(server, dict(reversed(QUESTIONS.items())))
    assert list(turned) == list(reversed(QUESTIONS))
    assert turned["team"]["probabilities"] == together["team"]["probabilities"]


async def test_equal_questions_are_computed_once():
    async with serving(FakeQuestions()) as server:
        found = await answers(server, {"a": NOUL, "b": NOUL})
        assert len(server.predictor.encoded) + len(server.predictor.asked) == 1  # type: ignore[attr-defined]
        metrics = await server.metrics()
    assert found["a"]["noul"] == found["b"]["noul"]
    assert found["a"]["x_request_id"] != found["b"]["x_request_id"]
    assert metrics["dalorra_coalesced_inputs_total"] == 1


async def test_the_state_counts_once():
    async with serving(FakeQuestions()) as server:
        one = (await post(server, {"a": NOUL})).json()["usage"]
        two = (await post(server, {"a": NOUL, "b": SCORE})).json()["usage"]
        asked = tuple(server.predictor.asked)  # type: ignore[attr-defined]
        more = [server.predictor.encode(one) for one in asked]
    assert one == {"input_tokens": more[0].tokens, "output_tokens": 0}
    assert two["input_tokens"] == more[0].tokens + more[2].tokens - len(STATE)


async def test_samples_are_added_where_asked_for():
    async with serving(FakeQuestions()) as server:
        found = await answers(server, x_return_samples=True)
        assert "x_sample_probabilities" not in (await answers(server))["refund"]
    tops = {
        "refund": found["refund"]["noul"],
        "team": max(found["team"]["probabilities"].values()),
        "anger": max(found["anger"]["probabilities"].values()),
    }
    for name, top in tops.items():
        samples = found[name]["x_sample_probabilities"]
        assert len(samples) == 10
        assert sum(samples) / 10 == pytest.approx(top, abs=1e-6)
        spread = sum((p - top) ** 2 for p in samples) / 10
        assert spread == pytest.approx(found[name]["x_variance"], abs=1e-6)


async def test_what_is_promised_is_said_of_accepted_answers():
    many = {str(n): {**NOUL, "instructions": f"Is it {n}?"} for n in range(40)}
    async with serving(FakeQuestions(policy=PROMISE)) as server:
        found = (await answers(server, many)).values()
        strict = (await answers(server, many, x_target_error=0.02)).values()
        response = await post(server, many, x_target_error=0.5)
    async with serving(FakeQuestions(policy=POLICY)) as server:
        unpromised = (await answers(server, many)).values()
    assert {one["x_decision"] == "accept" for one in found} == {True, False}
    for some, target in ((found, 0.05), (strict, 0.02)):
        for one in some:
            accepted = one["x_decision"] == "accept"
            promise = {"target_error": target, "confidence": 0.95} if accepted else None
            assert one["x_promise"] == promise
    assert {one["x_promise"] is None for one in unpromised} == {True}
    assert "looser than the 0.05" in fault(response)


# Which adapter answers


async def test_models_are_listed_for_both_kinds_of_client():
    policy = POLICY.model_copy(update={"date": "2026-05-04T03:02:01+00:00"})
    async with serving(FakeQuestions(policy=policy)) as server:
        body = (await server.client.get("/v1/models")).json()
    names = ["jev-latest", "jev-preview", "gpt-6-luna", NAME]
    assert [one["name"] for one in body["models"]] == names
    assert {one["release_date"] for one in body["models"]} == {"2026-05-04"}
    assert body["models"][-1]["description"] == "Answers typed questions."
    assert body["object"] == "list"
    assert [one["id"] for one in body["data"]] == names


@pytest.fixture
def several(tmp_path: Any) -> Any:
    """A server with labels of its own, which come first, and one for questions."""
    labelled = FakePredictor()
    labelled.registered = (POSITIVE,)
    base = FakeBase(sentiment=labelled, ask=FakeQuestions(policy=PROMISE), other=FakeQuestions())
    adapters = {name: tmp_path / name for name in ("sentiment", "ask", "other")}
    return lambda **options: serving(base=base, adapters=adapters, **options)


async def test_a_model_is_an_adapter_or_stands_for_the_default(several: Any):
    async with several() as server:
        for model, adapter in (("jev-latest", "ask"), ("ask", "ask"), ("other", "other")):
            response = await post(server, model=model)
            assert response.json()["model"] == adapter
            assert response.json()["answers"]["team"]["x_adapter"] == adapter
        unknown = await post(server, model="gpt-4")
        labelled = await post(server, {"q": NOUL}, model="sentiment")
    assert "'jev-latest'" in refusal(unknown, 404, "unknown_adapter")
    assert "'Is this review positive?'" in fault(labelled, "questions", "q")
    async with several(questions_adapter="other", question_models="*") as server:
        assert (await post(server, model="gpt-4")).json()["model"] == "other"


@pytest.mark.parametrize("model", ["jev-latest", "sentiment"])
async def test_a_question_in_an_adapters_words_gets_its_answer(several: Any, model: str):
    choice = {
        "type": "choice",
        "instructions": "Is this review positive?",
        "criteria": {"Positive": None, "negative": None},
    }
    async with several() as server:
        found = await answers(server, {"a": ASK_POSITIVE, "b": choice}, model=model)
    expected = expected_prediction(FakePredictor().encode(STATE))
    for answer in found.values():
        check_own_fields(answer, "sentiment")
        assert answer["x_variance"] == expected.variance
        assert answer["x_decision"] == POLICY.decide(expected).decision
    assert found["a"]["noul"] == expected.probabilities["positive"]
    assert found["b"]["choice"] == "Positive"
    assert list(found["b"]["probabilities"].values()) == [
        expected.probabilities["positive"], expected.probabilities["negative"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "question",
    [
        {**ASK_POSITIVE, "criteria": {"true": "the customer is happy"}},
        {**ASK_POSITIVE, "instructions": "Is this review positive"},
        {**ASK_POSITIVE, "type": "choice", "criteria": {"positive": "good", "negative": None}},
        {**ASK_POSITIVE, "type": "choice", "criteria": {"positive": None, "neutral": None}},
        {**ASK_POSITIVE, "type": "score", "criteria": ["negative", "positive"]},
    ],
)
async def test_other_words_are_another_question(several: Any, question: Any):
    async with several() as server:
        found = await answers(server, {"q": question, "r": ASK_POSITIVE})
    assert (found["q"]["x_adapter"], found["r"]["x_adapter"]) == ("ask", "sentiment")


async def test_a_state_may_be_the_fields_of_the_template():
    predictor = FakePredictor(["claim", "evidence"])
    predictor.registered = (POSITIVE,)
    async with serving(predictor) as server:
        fits = await answers(server, {"q": ASK_POSITIVE}, state={"evidence": "b", "claim": "a"})
        misses = await post(server, {"q": ASK_POSITIVE}, state="a")
    expected = expected_prediction(predictor.encode({"claim": "a", "evidence": "b"}))
    assert fits["q"]["noul"] == expected.probabilities["positive"]
    assert "claim, evidence" in fault(misses, "questions", "q")


async def test_a_server_without_a_questions_adapter_says_so():
    async with serving() as server:
        response = await post(server)
        models = (await server.client.get("/v1/models")).json()
    assert "no adapter that is asked answers typed questions" in fault(
        response, "questions", "refund"
    )
    assert models == {"models": [], "object": "list", "data": []}


async def test_predict_leads_to_this_path():
    async with serving(FakeQuestions()) as server:
        predicted = await server.predict({"state": "a", "question": "b"})
        tool = await server.client.get("/tool.json")
    for response in (predicted, tool):
        assert response.status_code == 422
        assert "POST /v1/systemone" in response.json()["error"]


# Feedback, logs


async def test_feedback_names_an_answer_and_its_options(several: Any, tmp_path: Any):
    questions = {**QUESTIONS, "positive": ASK_POSITIVE}
    async with several(feedback_store=tmp_path / "f.sqlite", feedback_inputs=True) as server:
        found = await answers(server, questions)

        async def judge(name: str, label: str) -> httpx.Response:
            body = {"request_id": found[name]["x_request_id"], "label": label}
            return await server.client.post("/feedback", json=body)

        unknown = await judge("team", "billing")
        judged = {
            "refund": await judge("refund", "false"),
            "team": await judge("team", "환불 🙂"),
            "anger": await judge("anger", "2"),
            "positive": await judge("positive", "true"),
        }
        again = await judge("positive", "false")
    assert unknown.status_code == 422
    assert "send one of Billing, Technical, 환불 🙂" in unknown.json()["error"]
    assert {one.status_code for one in judged.values()} == {200}
    labels = {name: one.json()["label"] for name, one in judged.items()}
    assert labels == {
        "refund": "false", "team": "환불 🙂", "anger": "furious", "positive": "positive",
    }  # fmt: skip
    assert judged["positive"].json()["predicted"] == "positive"
    assert again.status_code == 409


async def test_inputs_are_logged_and_kept_in_a_readable_form(tmp_path: Any):
    store = tmp_path / "f.sqlite"
    with capture_logs() as lines:
        async with serving(
            FakeQuestions(), feedback_store=store, feedback_inputs=True, log_inputs=True
        ) as server:
            await answers(server, {"q": {**NOUL, "criteria": {"true": "money"}}})
    with closing(sqlite3.connect(store)) as database:
        [(kept,)] = database.execute("SELECT input FROM answers").fetchall()
    readable = {
        "state": STATE, "kind": "noul", "instructions": NOUL["instructions"],
        "options": {"true": "money", "false": ""},
    }  # fmt: skip
    assert json.loads(kept) == readable
    [logged] = [line for line in lines if line["event"] == "request"]
    assert logged["texts"] == [readable]


# Errors


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


def test_yes_is_named_as_the_protocol_names_it():
    assert YES == "true"  # the name of a noul's criterion, too
