"""A policy whose file is not what calibration wrote accepts nothing, unless that is allowed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalorra.adapter.directory import adapter_digest, bundled_adapter, read_adapter
from dalorra.decision.policy import NEVER, CalibratedPoint, Decision, Policy
from dalorra.decision.policy_digest import checked, with_digest
from dalorra.decision.promise_watch import PromiseWatch
from dalorra.decision.question_policies import (
    QUESTION_POLICIES_FILE,
    keep_question_policy,
    read_question_policies,
)
from dalorra.errors import ConfigError, InputError
from dalorra.questions import Question
from dalorra.shared_base import SharedBase
from tests.fakes import prediction
from tests.tiny import save_tiny_adapter, tiny_base
from training.old_policies import add_digests

QUESTION, OTHER = Question.noul("Is it urgent?"), Question.noul("Is it late?")
CALIBRATED = with_digest(
    Policy(
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
        class_targets={"positive": 0.03},
        costs={"negative": 2.0},
        temperature=1.3,
        min_novelty_p=0.01,
        novelty_digest="f" * 64,
        path=(
            CalibratedPoint(
                target_error=0.03,
                min_probability=0.9,
                max_variance=0.01,
                accepted=0.3,
                error=0.01,
                upper_bound=0.02,
            ),
        ),
        date="2026-11-27T22:21:55+00:00",
        data_digest="e" * 64,
        precisions=("float32 on cpu",),
        bank={"samples": 10, "seed": 0},
        adapter_digest="d" * 64,
    ),
    QUESTION,
)
SURE = prediction(1.0, 0.0, novelty=0.9)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the numbers, texts and nulls of a JSON value are, and its members as a whole."""
    members = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for name, member in members:
        found.append((*path, name))
        if isinstance(member, dict | list):
            found += places(member, (*path, name))
    return found


def edited(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value there; None for what may be left out leaves it out."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return copy


@given(st.data())
def test_whatever_is_edited_the_digest_is_not_that_of_the_file(data):
    written = json.loads(CALIBRATED.model_dump_json())
    assert written.keys() == Policy.model_fields.keys(), "the example has every field"
    place = data.draw(st.sampled_from(places(written)))
    value = data.draw(
        st.none()
        | st.floats(0.0, 1.0)
        | st.integers(0, 1_000)
        | st.text(max_size=5)
        | st.just([])
        | st.just({})
    )
    try:
        policy = Policy.model_validate_json(json.dumps(edited(written, place, value)))
    except ValueError:
        return  # it is no policy at all
    same = policy == CALIBRATED
    assert (checked(policy, hand_made=False) == policy) is same
    if not same:
        assert checked(policy, hand_made=False).decide(SURE).decision is Decision.ESCALATE


def test_every_field_counts():
    written = json.loads(CALIBRATED.model_dump_json())
    others = {
        "min_probability": 0.5, "max_variance": 0.25, "source": "b", "target_error": 0.1,
        "confidence": 0.5, "n": 401, "accepted": 0.7, "escalated": 0.1, "error": 0.01,
        "upper_bound": 0.05, "class_targets": {}, "costs": {}, "temperature": 1.0,
        "min_novelty_p": None, "novelty_digest": None, "path": [], "date": None,
        "data_digest": None, "precisions": ["float32 on cpu", "bfloat16 on cuda"], "bank": None,
        "adapter_digest": None, "question": None, "digest": None,
    }  # fmt: skip
    assert others.keys() == Policy.model_fields.keys()
    for name, value in others.items():
        policy = Policy.model_validate_json(json.dumps({**written, name: value}))
        void = checked(policy, hand_made=False)
        assert void.never_accepts, name
        why = "has no digest" if name == "digest" else "is not the one that was calibrated"
        assert why in void.source


def test_the_digest_is_of_what_is_said_and_not_of_how_it_is_written():
    written = json.loads(CALIBRATED.model_dump_json())
    backwards = json.dumps(dict(reversed(written.items())), indent=7)
    policy = Policy.model_validate_json(backwards)
    assert checked(policy, hand_made=False) is policy
    assert with_digest(CALIBRATED, QUESTION) == CALIBRATED
    assert with_digest(CALIBRATED, OTHER).digest != CALIBRATED.digest


@pytest.mark.parametrize("digest", [None, "0" * 64])
def test_a_hand_made_policy_decides_where_it_is_allowed_and_promises_nothing(digest):
    by_hand = CALIBRATED.model_copy(update={"max_variance": 0.1, "digest": digest})
    policy = checked(by_hand, hand_made=True)
    assert policy.hand_made
    for answer in (SURE, prediction(0.5, 0.2, novelty=0.9), prediction(0.5, 0.0, novelty=0.001)):
        verdict = policy.decide(answer)
        assert verdict.reason.endswith(" (hand-made policy)")
        assert verdict.reason.startswith(CALIBRATED.decide(answer).reason[:20])
    assert policy.decide(SURE).decision is Decision.ACCEPT
    assert PromiseWatch.of(policy, ("negative", "positive")) is None
    with pytest.raises(InputError, match="promises none"):
        policy.at(0.03)
    assert not CALIBRATED.hand_made
    assert not CALIBRATED.decide(SURE).reason.endswith(")")


def test_what_accepts_nothing_needs_no_digest():
    never = Policy.never("d1").model_copy(update={"temperature": 2.0})
    for hand_made in (True, False):
        assert checked(never, hand_made=hand_made) is never
    assert not never.hand_made


@pytest.fixture
def adapter(tmp_path):
    path = save_tiny_adapter(tmp_path / "adapter", tiny_base())
    policy = Policy(
        min_probability=0.8,
        max_variance=0.02,
        source="a test",
        date="2026-11-27",
        data_digest="e" * 64,
        adapter_digest=adapter_digest(path),
    )
    with_digest(policy).save(path)
    return path


def rewrite(path, **changes):
    """Edits a file by hand; None takes the member away."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


def test_an_edited_file_accepts_nothing_until_that_is_allowed(adapter):
    assert not read_adapter(adapter).policy.never_accepts
    rewrite(adapter / "policy.json", min_probability=0.0, adapter_digest=None)
    policy = read_adapter(adapter).policy
    assert policy.never_accepts
    assert "calibrate the adapter, or allow hand_made_policies" in policy.source
    assert policy.decide(SURE).decision is Decision.ESCALATE
    base = SharedBase(tiny_base(), hand_made_policies=True)
    allowed = base.bind(base.read(adapter)).policy
    assert allowed.hand_made
    assert allowed.min_probability == 0.0


def test_a_hand_made_policy_of_another_adapter_stays_void(adapter):
    rewrite(adapter / "policy.json", adapter_digest="0" * 64)
    policy = read_adapter(adapter, hand_made_policies=True).policy
    assert "made for another adapter" in policy.source


def test_the_policy_of_a_question_holds_for_no_other_one(adapter):
    keep_question_policy(adapter, QUESTION, CALIBRATED.model_copy(
        update={"adapter_digest": adapter_digest(adapter), "bank": None, "novelty_digest": None}
    ))  # fmt: skip
    (kept,) = read_question_policies(adapter).values()
    assert kept.policy.question == QUESTION.digest

    def found(**options: bool) -> Policy:
        (policy,) = read_adapter(adapter, **options).question_policies.values()
        return policy

    assert not found().never_accepts
    file = adapter / QUESTION_POLICIES_FILE
    before = json.loads(file.read_text())
    file.write_text(json.dumps([before[0] | {"instructions": OTHER.instructions}]))
    for options in ({}, {"hand_made_policies": True}):
        assert "made for another question" in found(**options).source
    kept.policy.save(adapter)
    assert "made for another question" in read_adapter(adapter).policy.source
    file.write_text(json.dumps([before[0] | {"policy": before[0]["policy"] | {"n": 9}}]))
    assert "is not the one that was calibrated" in found().source
    assert found(hand_made_policies=True).hand_made


def test_policies_from_before_get_their_digests(adapter):
    keep_question_policy(adapter, QUESTION, Policy.load(adapter))
    file = adapter / QUESTION_POLICIES_FILE
    expected = read_adapter(adapter)
    rewrite(adapter / "policy.json", digest=None)
    (entry,) = json.loads(file.read_text())
    file.write_text(
        json.dumps([entry | {"policy": json.loads(Policy.load(adapter).model_dump_json())}])
    )
    assert read_adapter(adapter).policy.never_accepts
    assert add_digests(adapter) == 2
    assert add_digests(adapter) == 0
    found = read_adapter(adapter)
    assert (found.policy, found.question_policies) == (expected.policy, expected.question_policies)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_digest": None}, "nobody calibrated"),
        ({"adapter_digest": "0" * 64}, "another adapter"),
    ],
)
def test_no_digest_is_given_to_what_was_not_calibrated_for_the_adapter(adapter, changes, message):
    rewrite(adapter / "policy.json", digest=None, **changes)
    before = (adapter / "policy.json").read_text()
    with pytest.raises(ConfigError, match=message):
        add_digests(adapter)
    assert (adapter / "policy.json").read_text() == before


def test_the_bundled_policy_is_as_it_was_calibrated():
    policy = read_adapter(bundled_adapter()).policy
    assert policy is not None
    assert policy.min_probability < NEVER
    assert policy.confidence == 0.95
