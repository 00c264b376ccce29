"""System One: what its clients send and read."""

import json
import sqlite3
from contextlib import closing
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from dalorra.decision.policy_digest import checked
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
from tests.serving import serving
from tests.systemone import answers, fault, post, refusal

NAME = "fake-adapter"


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
    by_hand = checked(PROMISE.model_copy(update={"digest": None}), hand_made=True)
    unpromised: list[Any] = []
    for policy in (POLICY, by_hand):
        async with serving(FakeQuestions(policy=policy)) as server:
            unpromised += (await answers(server, many)).values()
    assert unpromised[-1]["x_reason"].endswith("(hand-made policy)")
    assert {one["x_decision"] == "accept" for one in found} == {True, False}
    for some, target in ((found, 0.05), (strict, 0.02)):
        for one in some:
            accepted = one["x_decision"] == "accept"
            promise = {"target_error": target, "confidence": 0.95} if accepted else None
            assert one["x_promise"] == promise
    assert {one["x_promise"] is None for one in unpromised} == {True}
    assert "looser than the 0.05" in fault(response)


async def test_a_question_with_thresholds_of_its_own_is_decided_by_these():
    predictor = FakeQuestions(policy=POLICY)
    always = PROMISE.model_copy(update={"min_probability": 0.0, "max_variance": 1.0})
    predictor.question_policies[Question.noul(NOUL["instructions"]).digest] = always
    async with serving(predictor) as server:
        found = await answers(server)
        stricter = await answers(server, {"refund": NOUL}, x_target_error=0.04)
        response = await post(server, x_target_error=0.04)
    assert found["refund"]["x_promise"] == {"target_error": 0.05, "confidence": 0.95}
    assert [found[name]["x_promise"] for name in ("team", "anger")] == [None, None]
    assert stricter["refund"]["x_decision"] in {"accept", "escalate"}
    assert "promises none" in fault(response)


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


def test_yes_is_named_as_the_protocol_names_it():
    assert YES == "true"  # the name of a noul's criterion, too
