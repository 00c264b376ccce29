"""Decisions in OpenAI's form: what its clients send and read, errors included."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.confidence import choice_confidence, score_confidence
from service.api.systemone import SystemOneRequest
from tests.fakes import POLICY, FakePredictor, FakeQuestions, expected_prediction
from tests.questions import POSITIVE, STATE, check_distribution, check_own_fields
from tests.serving import RunningServer, serving

PATH = "/v1/decisions"
PREDICATE = {"type": "predicate", "name": "refund", "instructions": "Does somebody want a refund?"}
CHOICE = {
    "type": "choice",
    "instructions": [
        {"type": "input_text", "text": "Which "},
        {"type": "input_text", "text": "one?"},
    ],
    "choices": [{"value": "Billing", "description": "money"}, {"value": True}, {"value": "환불"}],
}
SCORE = {
    "type": "score",
    "name": "anger",
    "instructions": "How angry?",
    "levels": [
        {"label": "calm"},
        {"label": "annoyed", "description": "short words"},
        {"label": "furious"},
    ],
}
QUESTIONS = [PREDICATE, CHOICE, SCORE]
USER = {"role": "user", "content": "Refund me."}
CALL = {"type": "function_call", "call_id": "1", "name": "pay", "arguments": '{"order": 7}'}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "ok"}


async def post(server: RunningServer, questions: Any = QUESTIONS, **body: Any) -> httpx.Response:
    asked = {"model": "gpt-6-luna", "input": STATE, "questions": questions, **body}
    return await server.client.post(PATH, json=asked)


def error(response: httpx.Response, status: int, param: str | None) -> str:
    assert response.status_code == status, response.text
    said = response.json()["error"]
    assert set(said) == {"message", "type", "param", "code"}
    assert said["param"] == param
    return str(said["message"])


async def test_each_kind_is_answered_in_order():
    async with serving(FakeQuestions()) as server:
        response = await post(server)
        metrics = await server.metrics()
        asked = [one.question for one in server.predictor.asked]  # type: ignore[attr-defined]

    body = response.json()
    predicate, choice, score = body["answers"]
    assert [one["type"] for one in body["answers"]] == ["predicate", "choice", "score"]
    assert [one["name"] for one in body["answers"]] == ["refund", None, "anger"]
    assert 0 <= predicate["probability"] <= 1
    p = [one["probability"] for one in choice["probabilities"]]
    check_distribution(p)
    assert [one["value"] for one in choice["probabilities"]] == ["Billing", True, "환불"]
    assert choice["choice"] in ("Billing", True, "환불")
    assert choice["confidence"] == choice_confidence(p)
    p = [one["probability"] for one in score["probabilities"]]
    check_distribution(p)
    assert [(one["value"], one["label"]) for one in score["probabilities"]] == [
        (0, "calm"), (1, "annoyed"), (2, "furious"),
    ]  # fmt: skip
    assert score["score"] == pytest.approx(p[1] + 2 * p[2])
    assert score["confidence"] == score_confidence(p)
    for answer in body["answers"]:
        check_own_fields(answer, "fake-adapter")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] > 0
    assert usage["output_tokens"] == 0
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    assert asked[1].instructions == "Which one?"
    assert [(o.name, o.description) for o in asked[1].options] == [
        ("Billing", "money"), ("true", ""), ("환불", ""),
    ]  # fmt: skip
    assert [o.description for o in asked[2].options] == ["", "short words", ""]
    assert metrics['dalorra_requests_total{outcome="ok"}'] == 1


async def test_both_protocols_ask_the_same_question():
    """So that an answer does not depend on the protocol that its client happens to speak."""
    noul = {"type": "noul", "instructions": PREDICATE["instructions"]}
    score = {"type": "score", "instructions": "How?", "criteria": ["calm", "furious"]}
    levels = [{"label": "calm"}, {"label": "furious"}]
    asked = {"state": STATE, "questions": {"a": noul, "b": score}}
    SystemOneRequest.model_validate(asked)
    async with serving(FakeQuestions()) as server:
        one = (await server.client.post("/v1/systemone", json=asked)).json()["answers"]
        two = (
            await post(server, [PREDICATE, {**SCORE, "instructions": "How?", "levels": levels}])
        ).json()["answers"]
    assert two[0]["probability"] == one["a"]["noul"]
    assert two[1]["score"] == one["b"]["score"]


@pytest.mark.parametrize(
    ("conversation", "read"),
    [
        ("Refund me.", "Refund me."),
        ([USER], "Refund me."),
        (
            [{"role": "system", "content": "Be kind."}, {**USER, "type": "message"}],
            "system: Be kind.\nuser: Refund me.",
        ),
        (
            [USER, CALL, OUTPUT, {"role": "assistant", "content": [
                {"type": "output_text", "text": "Y"}, {"type": "refusal", "refusal": "es"},
            ]}],
            'user: Refund me.\nassistant calls pay: {"order": 7}\npay returns: ok\nassistant: Yes',
        ),
        (
            [
                {"role": "developer", "content": [{"type": "input_json", "data": {"a": [1]}}]},
                {"type": "custom_tool_call", "call_id": "2", "name": "sql", "input": "SELECT 1"},
                {
                    "type": "custom_tool_call_output",
                    "call_id": "2",
                    "output": [{"type": "input_text", "text": "1"}],
                },
            ],
            'developer: {"a": [1]}\nassistant calls sql: SELECT 1\nsql returns: 1',
        ),
    ],
)  # fmt: skip
async def test_a_conversation_is_read_as_lines(conversation: Any, read: str):
    async with serving(FakeQuestions()) as server:
        response = await post(server, [PREDICATE], input=conversation)
        assert response.status_code == 200, response.text
        [asked] = server.predictor.asked  # type: ignore[attr-defined]
    assert asked.state == read


async def test_a_registered_question_is_answered_by_its_adapter():
    predictor = FakePredictor()
    predictor.registered = (POSITIVE,)
    question = {"type": "predicate", "instructions": "Is this review positive?"}
    async with serving(predictor) as server:
        [answer] = (await post(server, [question], input=[USER])).json()["answers"]
    expected = expected_prediction(predictor.encode("Refund me."))
    assert answer["probability"] == expected.probabilities["positive"]
    check_own_fields(answer, "fake-adapter")


async def test_what_is_not_accepted_can_be_refused():
    many = [{**PREDICATE, "name": str(n), "instructions": f"Is it {n}?"} for n in range(40)]
    async with serving(FakeQuestions()) as server:
        shown = (await post(server, many)).json()["answers"]
    async with serving(FakeQuestions(), refuse_unaccepted=True) as server:
        guarded = (await post(server, many)).json()["answers"]
    kinds = set()
    for one, other in zip(shown, guarded, strict=True):
        if one["x_decision"] == "accept":
            assert {**one, "x_request_id": ""} == {**other, "x_request_id": ""}
        else:
            assert (other["type"], other["name"]) == ("refusal", one["name"])
            assert "probability" not in other
            check_own_fields(other, "fake-adapter")
        kinds.add(other["type"])
    assert kinds == {"predicate", "refusal"}


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"questions": []}, "questions", "at least 1 item"),
        ({"questions": [PREDICATE] * 401}, "questions", "at most 400 items"),
        ({"questions": [{**PREDICATE, "type": "noul"}]}, "questions[0]", "'noul'"),
        ({"questions": [{"type": "predicate"}]}, "questions[0].predicate.instructions", "required"),
        ({"questions": [PREDICATE, {**CHOICE, "choices": [{"value": "a"}]}]},
         "questions[1].choice.choices", "at least 2 items"),
        ({"questions": [{**CHOICE, "choices": [{"value": "true"}, {"value": True}]}]},
         "questions[0]", "two options are called 'true'"),
        ({"questions": [{**SCORE, "levels": ["calm", "furious"]}]},
         "questions[0].score.levels[0]", "valid dictionary"),
        ({"input": []}, "input.items", "at least 1 item"),
        ({"input": None}, "input.items", "valid list"),
        ({"input": [OUTPUT]}, "input[0].call_id", "no call before it"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input.items[0].message.role", "'user'"),
        ({"input": [{**USER, "content": [{"type": "input_image", "image_url": "data:,"}]}]},
         "input.items[0].message.content.parts[0]", "text alone"),
        ({"x_target_error": 0.01}, None, "cannot be chosen"),
    ],
)  # fmt: skip
async def test_what_does_not_fit_is_found(changes: Any, param: str | None, says: str):
    async with serving(FakeQuestions()) as server:
        response = await post(server, **changes)
    assert says in error(response, 400, param)
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["error"]["code"] == "invalid_input"


async def test_other_errors_have_the_same_form():
    short = FakeQuestions()
    short.max_tokens = 100
    async with serving(short, api_keys="k") as server:
        key = {"Authorization": "Bearer k"}
        keyless = await post(server)
        body = {"model": "gpt-6-luna", "input": "a" * 100, "questions": [PREDICATE]}
        long = await server.client.post(PATH, json=body, headers=key)
        twice = await server.client.post(
            PATH,
            content=b'{"input": 1, "input": 2}',
            headers={**key, "Content-Type": "application/json"},
        )
        unknown = await server.client.post(PATH, json={**body, "model": "?"}, headers=key)
    error(keyless, 401, None)
    error(long, 413, None)
    assert "stands twice" in error(twice, 400, None)
    error(unknown, 404, None)
    assert keyless.json()["error"]["type"] == "authentication_error"
    assert long.json()["error"]["code"] == "input_too_long"


distributions = st.lists(st.floats(0.001, 1), min_size=2, max_size=10).map(
    lambda weights: [w / sum(weights) for w in weights]
)


@given(p=distributions)
def test_confidence_is_between_chance_and_certainty(p: list[float]):
    for confidence in (choice_confidence(p), score_confidence(p)):
        assert 0 <= confidence <= 1
    n, top = len(p), max(p)
    assert choice_confidence(p) == pytest.approx((n * top - 1) / (n - 1))
    assert choice_confidence([1 / n] * n) == pytest.approx(0, abs=1e-9)
    sure = [0.0] * (n - 1) + [1.0]
    assert choice_confidence(sure) == score_confidence(sure) == 1


def test_confidence_of_a_score_knows_how_far_levels_are_apart():
    near, far = score_confidence([0.6, 0.4, 0, 0]), score_confidence([0.6, 0, 0, 0.4])
    assert near == pytest.approx(0.6)  # 1 − 0.4 / 1, D = (1.5 + 0.5 + 0.5 + 1.5) / 4
    assert far == 0


def test_the_fakes_policy_leaves_some_unaccepted():
    assert POLICY.min_probability < 1
