"""A request may ask for a lower error rate among accepted answers than the policy's own."""

from typing import Any

import pytest

from dalorra.decision.policy import Policy
from tests.fakes import POLICY, PROMISE, FakePredictor, prediction
from tests.serving import RunningServer, serving

TEXTS = [f"text {n}" for n in range(40)]


async def ask(server: RunningServer, target: float | None) -> list[dict[str, Any]]:
    return await server.predict_batch(TEXTS, target_error=target)


@pytest.mark.parametrize("target", [0.02, 0.03, 0.0499])
async def test_the_thresholds_are_those_calibrated_for_it(target: float):
    async with serving(FakePredictor(policy=PROMISE)) as server:
        usual, strict = await ask(server, None), await ask(server, target)

    at_strict = PROMISE.at(target)
    for loose, answer in zip(usual, strict, strict=True):
        found = prediction(answer["probability"], answer["variance"], answer["novelty"])
        verdict = at_strict.decide(found)
        assert (answer["decision"], answer["reason"]) == (verdict.decision, verdict.reason)
        assert answer["probability"] == loose["probability"]
    accepted = [sum(one["decision"] == "accept" for one in some) for some in (usual, strict)]
    assert accepted[0] > accepted[1] > 0


async def test_one_input_can_ask_for_it_too_and_the_policys_own_changes_nothing():
    async with serving(FakePredictor(policy=PROMISE)) as server:
        one = (await server.predict(TEXTS[0], target_error=0.02)).json()
        [batch, *_] = await ask(server, 0.02)
        same = await ask(server, 0.05)
        usual = await ask(server, None)
    assert (one["decision"], one["reason"]) == (batch["decision"], batch["reason"])
    assert [one["reason"] for one in same] == [one["reason"] for one in usual]


async def test_a_target_that_was_never_reached_accepts_nothing():
    async with serving(FakePredictor(policy=PROMISE)) as server:
        answers = await ask(server, 0.001)
    assert {one["decision"] for one in answers} <= {"escalate", "clarify"}
    assert "to keep the error among accepted within 0.001" in answers[0]["reason"]


@pytest.mark.parametrize(
    ("policy", "target", "sentence"),
    [
        (PROMISE, 0.06, "target_error 0.06 is looser than the 0.05 that the adapter was"),
        (PROMISE, 0, "target_error 0 is not between 0 and 1"),
        (PROMISE, -1, "target_error -1 is not between 0 and 1"),
        (PROMISE, "low", "target_error: Input should be a valid number"),
        (POLICY, 0.02, "because the adapter's policy promises none: leave it out"),
        (Policy.never(), 0.02, "because no thresholds have been picked: leave it out"),
    ],
)
async def test_what_cannot_be_promised_is_refused_before_it_costs_anything(
    policy: Policy, target: object, sentence: str
):
    async with serving(FakePredictor(policy=policy)) as server:
        for path, name, value in (
            ("/predict", "input", "a"),
            ("/predict/batch", "inputs", ["a", "b"]),
        ):
            response = await server.client.post(path, json={name: value, "target_error": target})
            assert response.status_code == 422
            assert response.json()["error_type"] == "invalid_input"
            assert sentence in response.json()["error"]
        assert server.predictor.batches == []
