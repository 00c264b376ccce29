import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dalorra.decision.policy import FAMILIAR, CalibratedPoint, Decision, Policy, Verdict
from dalorra.decision.policy_digest import with_digest
from dalorra.errors import AdapterError, InputError
from tests.fakes import prediction

POLICY = with_digest(Policy(min_probability=0.9, max_variance=0.012, source="a test"))


@pytest.mark.parametrize(
    ("probability", "variance", "accepted"),
    [
        (0.95, 0.001, True),
        (0.9, 0.012, True),  # both thresholds are included
        (np.nextafter(0.9, 0), 0.012, False),
        (0.9, np.nextafter(0.012, 1), False),
        (0.5, 0.0, False),
        (0.5, 0.2, False),
        (1.0, 0.0, True),
    ],
)
def test_the_rule(probability, variance, accepted):
    refused = {None: Decision.ESCALATE, 0.1: Decision.ESCALATE, 0.9: Decision.CLARIFY}
    for novelty, decision in refused.items():
        answer = replace(prediction(probability, variance), novelty=novelty)
        expected = Decision.ACCEPT if accepted else decision
        assert POLICY.decide(answer).decision is expected


@pytest.mark.parametrize(
    ("probability", "variance"),
    [
        (math.nan, 0.0),
        (0.99, math.nan),
        (math.inf, 0.0),
        (0.99, -math.inf),
        (math.nan, math.nan),
    ],
)
def test_what_is_no_number_is_escalated_however_familiar_the_input_is(probability, variance):
    answer = replace(prediction(probability, variance), novelty=1.0)
    assert POLICY.decide(answer).decision is Decision.ESCALATE


@pytest.mark.parametrize(
    ("novelty", "decision"),
    [
        (np.nextafter(FAMILIAR, 0), Decision.ESCALATE),
        (FAMILIAR, Decision.CLARIFY),
        (1.0, Decision.CLARIFY),
        (math.nan, Decision.ESCALATE),
        (None, Decision.ESCALATE),
    ],
)
def test_an_input_leaves_its_answer_open_where_it_is_familiar(novelty, decision):
    for doubtful in (prediction(0.7, 0.001), prediction(0.95, 0.1)):
        assert POLICY.decide(replace(doubtful, novelty=novelty)).decision is decision
    sure = replace(prediction(0.95, 0.001), novelty=novelty)
    assert POLICY.decide(sure).decision is Decision.ACCEPT, "without a level novelty forbids none"
    assert Policy.never().decide(sure).decision is Decision.ESCALATE


def test_reasons_are_one_sentence_with_the_numbers():
    def reason(probability, variance, novelty=None):
        return POLICY.decide(replace(prediction(probability, variance), novelty=novelty)).reason

    assert reason(0.95, 0.031, 0.1) == (
        "variance 0.031 is above 0.012, and four of five usual inputs are more familiar (novelty "
        "p-value 0.1 is below 0.2): the adapter does not know"
    )
    assert reason(0.7, 0.031, 0.6) == (
        "probability 0.7 is below 0.9, and the input is familiar (novelty p-value 0.6 is at least "
        "0.2): it leaves the answer open"
    )
    assert reason(0.7, 0.001) == (
        "probability 0.7 is below 0.9, and without novelty features nothing tells an open input "
        "from an unknown one"
    )
    assert reason(0.98765, 0.0) == (
        "probability 0.988 is at least 0.9 and variance 0 is at most 0.012"
    )
    assert reason(math.nan, 0.0) == "probability is not a finite number: the model failed"
    assert "variance is not a finite" in reason(0.5, math.nan)


@pytest.mark.parametrize("variance", [0.0120001, np.nextafter(0.012, 1)])
def test_a_reason_never_says_that_a_number_is_above_itself(variance):
    reason = POLICY.decide(prediction(0.95, variance)).reason
    shown = [float(word.strip(",:")) for word in reason.split() if word[0].isdigit()]
    assert shown[0] > shown[1]


@given(st.floats(0.0, 1.0), st.floats(0.0, 0.25))
def test_a_policy_that_never_accepts(probability, variance):
    policy = Policy.never("abc")
    verdict = policy.decide(prediction(probability, variance))
    assert policy.never_accepts
    assert policy.adapter_digest == "abc"
    assert verdict.decision is Decision.ESCALATE
    assert "nothing is accepted, because no thresholds have been picked" in verdict.reason


@given(st.floats(0.0, 1.0), st.floats(0.0, 0.25))
def test_an_input_that_was_cut_is_never_accepted(probability, variance):
    answer = replace(prediction(probability, variance), cut_at=300)
    loosest = with_digest(
        Policy(min_probability=0.0, max_variance=1.0, source="made up for a test")
    )
    for policy in (loosest, Policy.never()):
        assert policy.excludes(answer)
        assert policy.decide(answer) == Verdict(
            Decision.ESCALATE, "the input was cut at 300 tokens: what came after was not read"
        )
    assert loosest.decide(replace(answer, cut_at=None)).decision is Decision.ACCEPT


def test_a_policy_cannot_be_changed_or_given_unknown_fields():
    with pytest.raises(ValidationError):
        POLICY.min_probability = 0.1
    for wrong in ({"max_varience": 1.0}, {"min_probability": math.nan}, {"min_probability": -0.1}):
        with pytest.raises(ValidationError):
            Policy(**{**POLICY.model_dump(), **wrong})


def test_save_and_load_are_inverse(tmp_path):
    policy = Policy(min_probability=0.1 + 0.2, max_variance=1 / 3, source="naïve data")
    policy.save(tmp_path)
    assert Policy.load(tmp_path) == policy
    assert Policy.load(tmp_path / "policy.json") == policy
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]
    assert json.loads((tmp_path / "policy.json").read_text())["min_probability"] == 0.1 + 0.2
    Policy.never().save(tmp_path)
    assert Policy.load(tmp_path).never_accepts


def test_an_interrupted_save_leaves_the_old_policy(tmp_path, monkeypatch):
    POLICY.save(tmp_path)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        Policy.never().save(tmp_path)
    assert Policy.load(tmp_path) == POLICY
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]


GOOD = POLICY.model_dump()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSON"),
        ('{"min_probability": 0.9', "JSON"),
        ("[]", "content"),
        (json.dumps({**GOOD, "max_novelty": 0.1}), "max_novelty"),
        (json.dumps({**GOOD, "min_probability": "0.9"}), "min_probability"),
        (json.dumps({**GOOD, "min_probability": 7.0}), "min_probability"),
        (json.dumps({**GOOD, "max_variance": -1.0}), "max_variance"),
        (json.dumps({**GOOD, "max_variance": None}), "max_variance"),
        (json.dumps({**GOOD, "max_variance": math.nan}), "JSON|max_variance"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "source"}), "source"),
        ("\x80", "JSON|unicode"),
    ],
)
def test_a_damaged_policy_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "policy.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(AdapterError, match=message) as refusal:
        Policy.load(path)
    assert str(path) in str(refusal.value)


def test_a_missing_policy_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="cannot be read"):
        Policy.load(tmp_path)


def point(target, probability, variance):
    return CalibratedPoint(
        target_error=target,
        min_probability=probability,
        max_variance=variance,
        accepted=0.3,
        error=target / 3,
        upper_bound=target / 2,
    )


CALIBRATED = Policy(
    min_probability=0.8,
    max_variance=0.02,
    source="a test",
    target_error=0.05,
    confidence=0.95,
    n=400,
    accepted=0.6,
    escalated=0.2,
    error=0.02,
    upper_bound=0.045,
    path=(point(0.03, 0.9, 0.01), point(0.01, 0.97, 0.001)),
    class_targets={"positive": 0.03},
    bank={"samples": 10, "seed": 0, "sampler": "stratified"},
    adapter_digest="d1",
)


def test_a_stricter_target_takes_the_thresholds_that_were_calibrated_for_it():
    at = CALIBRATED.at(0.02)
    assert (at.target_error, at.min_probability, at.max_variance) == (0.01, 0.97, 0.001)
    assert (at.upper_bound, at.confidence, at.class_targets) == (0.005, 0.95, {"positive": 0.03})
    assert (CALIBRATED.escalated, at.escalated) == (0.2, None), "of other thresholds, unknown"
    assert CALIBRATED.at(0.05) is CALIBRATED
    assert CALIBRATED.at(0.03).min_probability == CALIBRATED.at(0.0499).min_probability == 0.9
    assert CALIBRATED.at(0.03).at(0.01) == CALIBRATED.at(0.01)
    assert Policy.model_validate(at.model_dump(), strict=False) == at, "it is a policy like any"


def test_a_target_that_was_never_reached_accepts_nothing():
    at = CALIBRATED.at(0.001)
    assert at.never_accepts
    assert at.decide(prediction(1.0, 0.0)).reason.startswith(
        "nothing is accepted, because no thresholds were shown to keep the error among accepted "
        "within 0.001 "
        "with 95 % confidence"
    )
    assert at.decide(prediction(0.9, 0.0)).decision is Decision.ESCALATE


@pytest.mark.parametrize(
    ("policy", "target", "message"),
    [
        (CALIBRATED, 0.06, "0.06 is looser than the 0.05"),
        (CALIBRATED.at(0.01), 0.03, "0.03 is looser than the 0.01"),
        (CALIBRATED.at(0.001), 0.01, "looser"),
        (POLICY, 0.05, "promises none"),
        (POLICY.model_copy(update={"target_error": 0.1}), 0.05, "promises none"),
        (Policy.never(), 0.05, "because no thresholds have been picked: leave it out"),
        (CALIBRATED.held_to("d2", {}), 0.05, "because its policy was made for another mask bank"),
        (CALIBRATED, 0.0, "not between 0 and 1"),
        (CALIBRATED, -0.1, "not between 0 and 1"),
        (CALIBRATED, math.nan, "not between 0 and 1"),
    ],
)
def test_a_target_that_cannot_be_promised_is_refused(policy, target, message):
    with pytest.raises(InputError, match=message):
        policy.at(target)


def test_a_calibration_that_found_nothing_keeps_every_stricter_target():
    found_nothing = CALIBRATED.at(0.001)
    assert found_nothing.at(0.0001) is found_nothing


@given(st.floats(0.0001, 0.05), st.floats(0.0001, 0.05), st.floats(0.0, 1.0), st.floats(0.0, 0.25))
def test_a_stricter_target_never_accepts_more(one, other, probability, variance):
    strict, loose = sorted((one, other))
    if CALIBRATED.at(strict).decide(prediction(probability, variance)).decision is Decision.ACCEPT:
        assert (
            CALIBRATED.at(loose).decide(prediction(probability, variance)).decision
            is Decision.ACCEPT
        )


def test_a_policy_is_void_for_another_adapter_or_bank():
    bank = CALIBRATED.bank
    assert CALIBRATED.held_to("d1", bank) is CALIBRATED
    assert POLICY.held_to("d1", bank) is POLICY, "what names neither holds for any"
    for digest, other in (
        ("d2", bank),
        ("d1", {**bank, "samples": 20}),
        ("d1", {**bank, "seed": 1}),
    ):
        void = CALIBRATED.held_to(digest, other)
        assert void.never_accepts
        assert void.adapter_digest == digest
        assert void.confidence is None
        assert "was made for another" in void.decide(prediction(1.0, 0.0)).reason


def test_a_promise_holds_in_the_precisions_that_it_was_tested_in_and_in_no_other():
    tested = ("bfloat16 on cpu", "float32 on cpu")
    calibrated = CALIBRATED.model_copy(update={"precisions": tested})
    for precision in tested:
        served = calibrated.served_in(precision)
        assert served == calibrated.model_copy(update={"precisions": (precision,)})
        assert served.decide(prediction(0.99, 0.0)).decision is Decision.ACCEPT
    for policy, named in (
        (calibrated, "bfloat16 on cpu and float32 on cpu"),
        (CALIBRATED, "a precision that it does not name"),
    ):
        void = policy.served_in("bfloat16 on cuda")
        assert void.precisions == ("bfloat16 on cuda",)
        verdict = void.decide(prediction(1.0, 0.0))
        assert verdict.decision is Decision.ESCALATE
        assert f"tested in {named}, and this is bfloat16 on cuda: calibrate it here" in (
            verdict.reason
        )
    by_hand = POLICY.served_in("bfloat16 on cuda")
    assert by_hand.decide(prediction(1.0, 0.0)).decision is Decision.ACCEPT, "it promises nothing"


def test_a_calibrated_policy_survives_its_file(tmp_path):
    CALIBRATED.save(tmp_path)
    assert Policy.load(tmp_path) == CALIBRATED
