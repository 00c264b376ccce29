from dataclasses import replace

import numpy as np
import pytest
import torch

from dalorra.errors import ConfigError
from tests.fakes import prediction
from tests.labelled_world import (
    LABELS,
    LogitPredictor,
    accepted,
    number_of,
    predictions,
    world,
)
from training.calibrate import calibrate
from training.promise import (
    Promise,
    cost_matrix,
    least_examples,
    promise_in_words,
    scored_examples,
)
from training.risk_control import upper_limit
from training.tasks import Example, data_digest


def run(predictor, examples, promise, **options):
    return calibrate(predictor, examples, promise, source="toy", **options)


@pytest.fixture(scope="module")
def calibrated():
    predictor, examples = world(3000)
    bank = {"samples": 5, "seed": 0, "sampler": "iid"}
    return run(predictor, examples, Promise(0.05), bank=bank), predictor, examples


def test_the_policy_says_what_it_promises_and_of_what(calibrated):
    policy, predictor, examples = calibrated
    assert predictor.policy is policy
    assert (policy.target_error, policy.confidence, policy.temperature) == (0.05, 0.95, 1.0)
    assert policy.n == 2700
    assert policy.source == "toy: 300 examples to declare the thresholds, 2700 to test"
    assert policy.error < policy.upper_bound <= 0.05
    assert policy.data_digest == data_digest(examples) != data_digest(examples[::-1])
    assert policy.bank == {"samples": 5, "seed": 0, "sampler": "iid"}
    assert policy.adapter_digest == "d" * 64
    assert policy.date.endswith("+00:00")


def test_the_accepted_share_and_error_are_those_of_the_tested_examples(calibrated):
    policy, _, _ = calibrated
    fresh, examples = world(20_000, seed=1)
    fresh.policy = policy
    taken = accepted(fresh, examples)
    assert policy.accepted > 0.3
    assert len(taken) / len(examples) == pytest.approx(policy.accepted, abs=0.03)
    assert np.mean([p.label != label for p, label in taken]) <= 0.05
    assert policy.escalated == pytest.approx(1 - policy.accepted), "nothing tells why"


def test_stricter_targets_are_kept_too_and_nested(calibrated):
    policy = calibrated[0]
    targets = [point.target_error for point in policy.path]
    assert targets[:4] == [0.0375, 0.025, 0.02, 0.015]
    shares = [policy.accepted, *(point.accepted for point in policy.path)]
    assert shares == sorted(shares, reverse=True)
    assert all(point.upper_bound <= point.target_error for point in policy.path)
    assert policy.at(0.03).min_probability > policy.min_probability
    assert policy.at(0.03).max_variance <= policy.max_variance


def test_a_second_run_chooses_the_same(calibrated):
    policy, _, examples = calibrated
    again = run(world(3000)[0], examples, Promise(0.05), bank=policy.bank)
    assert again == policy.model_copy(update={"date": again.date})


def test_nothing_is_accepted_when_nothing_qualifies():
    predictor, examples = world(60)
    policy = run(predictor, examples, Promise(0.01))
    assert policy.never_accepts
    assert (policy.accepted, policy.error, policy.upper_bound, policy.path) == (0.0, None, None, ())
    assert not accepted(predictor, examples)
    assert "within 0.01 with 95 % confidence" in policy.decide(prediction(1.0, 0.0)).reason
    words = promise_in_words(policy)
    assert words.startswith("NOTHING IS ACCEPTED")
    assert f"That takes {least_examples(policy.target_error, 0.95):,} accepted ones" in words


def test_a_class_target_holds_for_the_answers_with_that_label():
    hard = ("no", "yes")  # "perhaps" is often wrong, however sure it looks
    predictor, examples = world(6000, reliable=hard)
    loose = run(predictor, examples, Promise(0.15))
    fresh, new = world(20_000, seed=1, reliable=hard)

    def error(policy, label):
        fresh.policy = policy
        wrong = [p.label != truth for p, truth in accepted(fresh, new) if p.label == label]
        return np.mean(wrong)

    assert error(loose, "perhaps") > 0.17, "or the next lines show nothing"
    policy = run(predictor, examples, Promise(0.15, class_targets={"perhaps": 0.15}))
    assert error(policy, "perhaps") <= 0.15
    assert 0.0 < policy.accepted < loose.accepted
    assert policy.class_targets == {"perhaps": 0.15}
    assert "within 0.15 where the answer is perhaps" in promise_in_words(policy)


def test_a_class_that_never_answers_cannot_keep_its_target():
    predictor, examples = world(2000)
    predictor.logits[:, :, 1] -= 50.0
    assert not run(predictor, examples, Promise(0.4)).never_accepts
    assert run(predictor, examples, Promise(0.4, class_targets={"perhaps": 0.4})).never_accepts


def test_costs_bound_the_mean_cost_of_an_accepted_answer():
    predictor, examples = world(6000)
    plain = run(predictor, examples, Promise(0.1))
    policy = run(predictor, examples, Promise(0.1, costs={"yes": 5.0}))
    assert policy.costs == {"yes": 5.0}
    assert 0.0 < policy.accepted < plain.accepted
    assert policy.error < policy.upper_bound <= 0.1
    fresh, new = world(20_000, seed=1)
    fresh.policy = policy
    paid = [
        (p.label != truth) * (5.0 if p.label == "yes" else 1.0) for p, truth in accepted(fresh, new)
    ]
    assert np.mean(paid) <= 0.1
    assert np.mean(paid) == pytest.approx(policy.error, abs=0.02)
    assert "mean cost of an accepted answer ≤ 0.1" in promise_in_words(policy)


def test_costs_of_one_are_the_error_rate():
    predictor, examples = world(2000)
    plain = run(predictor, examples, Promise(0.1))
    same = run(predictor, examples, Promise(0.1, costs={"yes": 1.0, "no:yes": 1.0}))
    assert same.min_probability == plain.min_probability
    assert same.upper_bound == plain.upper_bound
    doubled = run(predictor, examples, Promise(0.2, costs=dict.fromkeys(LABELS, 2.0)))
    assert doubled.min_probability == plain.min_probability
    assert doubled.upper_bound == pytest.approx(2 * plain.upper_bound)


def test_the_cost_matrix():
    found = cost_matrix(LABELS, {"no:yes": 7.0, "yes": 5.0, "no": 0.0})
    assert found.tolist() == [[0, 1, 7], [0, 0, 5], [0, 1, 0]]
    assert cost_matrix(("a", "a:b", "b"), {"a:b": 3.0})[:, 1].tolist() == [3, 0, 3], "a label first"


def test_losses_are_on_the_scale_of_the_largest_cost():
    found = predictions(*world(4))
    truth = ["no" if p.label != "no" else "yes" for p in found]
    promise = Promise(0.1, costs={"no": 4.0}, class_targets={"no": 0.3})
    data = scored_examples(found, truth, LABELS, promise)
    cost, only_no = data.risks
    assert cost.loss.tolist() == [1.0 if p.label == "no" else 0.25 for p in found]
    assert (cost.target, cost.binary) == (0.025, False)
    assert only_no.counted.tolist() == [p.label == "no" for p in found]
    assert (only_no.target, only_no.binary, only_no.loss.tolist()) == (0.3, True, [1.0] * 4)


def test_temperature_undoes_overconfidence_and_is_served():
    predictor, examples = world(4000, sharpness=3.0)
    policy = run(predictor, examples, Promise(0.05))
    assert policy.temperature == pytest.approx(3.0, rel=0.1)
    assert f"divided by {policy.temperature:.4g}" in promise_in_words(policy)
    answers = predictions(predictor, examples)
    right = np.mean([p.label == e.label for p, e in zip(answers, examples, strict=True)])
    assert np.mean([p.probability for p in answers]) == pytest.approx(right, abs=0.02)


def test_temperature_is_fitted_on_the_pilot_alone():
    predictor, examples = world(1000, sharpness=3.0)
    asked = []
    plain = predictor.posterior_samples
    predictor.posterior_samples = lambda prompts: asked.append(len(prompts)) or plain(prompts)
    run(predictor, examples, Promise(0.2))
    assert asked[0] == 100
    assert sum(asked[1:]) == 1000


@pytest.mark.parametrize(
    ("promise", "message"),
    [
        ({"target_error": 0.0}, "target_error 0 is not between"),
        ({"target_error": 0.05, "confidence": 1.0}, "confidence 1 is not between"),
        ({"target_error": 0.05, "class_targets": {"no": 2.0}}, "class target 'no' 2 is not"),
        ({"target_error": 0.05, "class_targets": {"maybe": 0.1}}, "'maybe' is not a label"),
        ({"target_error": 0.05, "costs": {"maybe": 2.0}}, "'maybe' is not a label"),
        ({"target_error": 0.05, "costs": {"no:maybe": 2.0}}, "'no:maybe' is not a label"),
        ({"target_error": 0.05, "costs": {"no": -1.0}}, "must be finite and not negative"),
        ({"target_error": 0.05, "costs": {"no": float("nan")}}, "must be finite"),
        ({"target_error": 0.05, "costs": dict.fromkeys(LABELS, 0.0)}, "is free"),
    ],
)
def test_an_impossible_promise_is_refused_before_anything_is_predicted(promise, message):
    predictor, examples = world(20)
    predictor.predict = lambda _: pytest.fail("it predicts")
    with pytest.raises(ConfigError, match=message):
        run(predictor, examples, Promise(**promise))


def test_data_that_cannot_be_used_are_refused():
    predictor, examples = world(20)
    with pytest.raises(ConfigError, match="no examples"):
        run(predictor, [], Promise(0.1))
    with pytest.raises(ConfigError, match="'maybe'"):
        run(predictor, [*examples, Example({"sentence": "0"}, "maybe")], Promise(0.1))
    with pytest.raises(ConfigError, match="cannot hold out"):
        run(predictor, examples[:4], Promise(0.1))


def test_an_accepted_input_out_of_scope_is_an_error():
    predictor, examples = world(6000)
    plain = run(predictor, examples, Promise(0.1))

    def with_others(examples):
        """One in twenty has no label."""
        return [replace(e, label="other") if i % 20 == 0 else e for i, e in enumerate(examples)]

    policy = run(predictor, with_others(examples), Promise(0.1), out_of_scope=("other",))
    assert 0.0 < policy.accepted < plain.accepted
    fresh, new = world(20_000, seed=1)
    fresh.policy = policy
    assert np.mean([p.label != label for p, label in accepted(fresh, with_others(new))]) <= 0.1
    with pytest.raises(ConfigError, match="has the label 'other', which the adapter cannot answer"):
        run(predictor, with_others(examples), Promise(0.1))


def test_inputs_out_of_scope_fit_no_temperature():
    predictor, examples = world(3000, sharpness=3.0)
    labelled = [e for e in examples if int(e.input["sentence"]) % 3]
    others = [replace(e, label="other") for e in examples if not int(e.input["sentence"]) % 3]
    plain = run(predictor, labelled, Promise(0.2))
    found = run(predictor, [*labelled, *others], Promise(0.2), out_of_scope=("other",))
    assert plain.temperature > 2.0
    assert found.temperature == pytest.approx(plain.temperature, rel=0.2)


def test_a_false_accept_out_of_scope_costs_what_the_worst_one_of_the_answer_does():
    promise = Promise(1.0 - 1e-9, costs={"no": 4.0, "no:yes": 8.0, "yes:no": 2.0})
    answers = predictions(*world(40))
    scored = scored_examples(answers, ["other"] * 40, LABELS, promise)
    expected = [{"no": 4.0, "perhaps": 1.0, "yes": 8.0}[a.label] / 8.0 for a in answers]
    assert scored.risks[0].loss.tolist() == expected


# --- with a novelty level: what is novel is never accepted, the promise is of the rest ---


class NovelPredictor(LogitPredictor):
    """Every fifth input is novel."""

    def predict(self, prompts):
        return [
            replace(p, novelty=0.001 if number_of(prompt) % 5 == 0 else 0.5)
            for p, prompt in zip(super().predict(prompts), prompts, strict=True)
        ]


@pytest.fixture(scope="module")
def with_novelty():
    """Answers to novel inputs are worth nothing."""
    plain, examples = world(3000)
    wrong = {"no": "yes", "perhaps": "no", "yes": "perhaps"}
    spoiled = [
        replace(e, label=wrong[e.label]) if i % 5 == 0 else e for i, e in enumerate(examples)
    ]
    predictor = NovelPredictor(plain.logits)
    policy = run(predictor, spoiled, Promise(0.05), min_novelty_p=0.01, novelty_digest="e" * 64)
    return policy, predictor, spoiled


def test_the_promise_is_kept_because_novel_inputs_are_not_accepted(with_novelty):
    policy, predictor, examples = with_novelty
    assert not policy.never_accepts
    assert (policy.min_novelty_p, policy.novelty_digest) == (0.01, "e" * 64)
    assert policy.at(0.02).min_novelty_p == 0.01
    taken = accepted(predictor, examples)
    assert np.mean([p.label != label for p, label in taken]) <= 0.05
    assert len(taken) / len(examples) == pytest.approx(policy.accepted, abs=0.02)
    assert policy.n == 2700, "the novel ones were asked, too"


def test_without_the_level_the_same_examples_keep_nothing_like_it(with_novelty):
    policy, predictor, examples = with_novelty
    again = run(NovelPredictor(predictor.logits), examples, Promise(0.05))
    assert again.min_novelty_p is None
    assert (again.accepted or 0.0) < 0.5 * policy.accepted


def test_a_level_without_novelty_features_is_refused():
    predictor, examples = world(100)
    with pytest.raises(ConfigError, match="needs novelty features"):
        run(predictor, examples, Promise(0.05), min_novelty_p=0.01)


class CutPredictor(LogitPredictor):
    """Cuts the inputs whose number is odd, and is wrong about all of those."""

    def predict(self, prompts):
        return [
            replace(p, label="no", cut_at=300) if number_of(prompt) % 2 else p
            for p, prompt in zip(super().predict(prompts), prompts, strict=True)
        ]


def test_inputs_that_were_cut_are_neither_accepted_nor_tested():
    predictor, examples = world(3000)
    cut = CutPredictor(predictor.logits)
    wrong = [Example(e.input, "yes" if int(e.input["sentence"]) % 2 else e.label) for e in examples]
    policy = run(cut, wrong, Promise(0.05))
    taken = accepted(cut, wrong)
    assert 0.1 < policy.accepted < 0.5, "of all, cut ones included"
    assert len(taken) > 300
    assert all(p.cut_at is None for p, _ in taken)
    assert np.mean([p.label != label for p, label in taken]) <= 0.05


@pytest.mark.parametrize(("target", "confidence"), [(0.05, 0.95), (0.01, 0.9), (0.2, 0.99)])
def test_the_least_that_is_named_is_what_it_takes(target, confidence):
    least = least_examples(target, confidence)
    assert (
        upper_limit(0.0, least - 1, confidence) <= target < upper_limit(0.0, least - 2, confidence)
    )

    def accepts(tested):
        pilot = round(tested / 9)
        predictor, examples = right(tested + pilot)
        policy = run(predictor, examples, Promise(target, confidence))
        assert policy.n == tested
        return not policy.never_accepts

    assert accepts(least)
    assert not accepts(least - 1)


def right(n):
    """n inputs that are all answered rightly, one a little more surely than the other."""
    logits = torch.zeros(n, 5, 3)
    logits[:, :, 0] = torch.linspace(2.0, 4.0, n)[:, None]
    return LogitPredictor(logits), [Example({"sentence": str(i)}, LABELS[0]) for i in range(n)]


@pytest.mark.parametrize("target", [0.05, 0.08])
def test_of_ninety_rows_that_are_all_right_most_are_accepted(target):
    predictor, examples = right(90)
    policy = run(predictor, examples, Promise(target))
    assert policy.accepted == 1.0
    assert (policy.n, policy.error) == (81, 0.0)
    assert policy.upper_bound == pytest.approx(0.0363, abs=1e-4)
    assert len(accepted(predictor, examples)) >= 81


def test_the_same_input_may_occur_again_and_again():
    predictor, _ = right(3)
    policy = run(predictor, [Example({"sentence": str(i % 3)}, LABELS[0]) for i in range(90)],
                 Promise(0.05))  # fmt: skip
    assert (policy.n, policy.accepted) == (81, 1.0)


def test_what_class_targets_take_is_named_too():
    predictor, examples = right(30)
    policy = run(predictor, examples, Promise(0.05, class_targets={"yes": 0.1}))
    assert policy.never_accepts
    assert "That takes 60 accepted ones without a mistake, 30 where the answer is yes, and" in (
        promise_in_words(policy)
    )
