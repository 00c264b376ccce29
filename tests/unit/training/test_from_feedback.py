import types
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from dalorra.decision.policy import Decision, Policy
from dalorra.errors import ConfigError
from training.from_feedback import PILOT, calibrate_from_feedback
from training.promise import Promise

LABELS = ("no", "yes")
ADAPTER = types.SimpleNamespace(
    digest="d" * 64,
    novelty=None,
    policy=None,
    manifest=types.SimpleNamespace(
        labelled=types.SimpleNamespace(labels=dict.fromkeys(LABELS, "")),
        bank=types.SimpleNamespace(identity={"samples": 10}),
    ),
)


@dataclass(frozen=True)
class Judged:
    request_id: str
    label: str
    probability: float
    variance: float
    true_label: str
    novelty: float | None = None
    cut_at: int | None = None
    precision: str = "float32 on cpu"


def judged(n, *, seed=0, error=lambda p: 1.0 - p, **more):
    """Answers in the order of their judgements; one of probability p is wrong with `error(p)`."""
    generator = np.random.default_rng(seed)
    p = 1.0 - 0.5 * generator.beta(0.6, 1.6, n)
    wrong = generator.random(n) < error(p)
    label = generator.integers(0, 2, n)
    return [
        Judged(
            f"r{i}", LABELS[label[i]], float(p[i]), 0.0, LABELS[label[i] ^ int(wrong[i])], **more
        )
        for i in range(n)
    ]


def calibrate(answers, promise, **options):
    return calibrate_from_feedback(ADAPTER, answers, promise, **options)


def accepted(policy, answers):
    return [a for a in answers if policy.decide(a).decision is Decision.ACCEPT]


def risk(answers):
    return np.mean([a.label != a.true_label for a in answers])


def test_the_policy_is_made_of_all_that_came_after_the_first():
    answers = judged(1500)
    policy = calibrate(answers, Promise(0.1))
    assert policy.n == 1500 - PILOT
    assert f"the first {PILOT} answers to declare the thresholds, the 1470 after" in policy.source
    taken = accepted(policy, answers[PILOT:])
    assert policy.accepted == pytest.approx(len(taken) / policy.n)
    assert policy.error == pytest.approx(risk(taken))
    assert policy.error < policy.upper_bound <= 0.1
    fresh = accepted(policy, judged(20_000, seed=1))
    assert len(fresh) > 10_000
    assert risk(fresh) <= 0.1
    shares = [policy.accepted, *(point.accepted for point in policy.path)]
    assert len(shares) > 2
    assert shares == sorted(shares, reverse=True)
    assert calibrate(answers, Promise(0.1)).data_digest == policy.data_digest
    assert calibrate(answers[::-1], Promise(0.1)).data_digest != policy.data_digest


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [lambda p: np.full_like(p, 0.102), lambda p: 0.095 + 0.02 * (p < 0.9)]
)
def test_whoever_looks_every_50_answers_and_takes_the_first_policy_is_promised_the_same(error):
    # In the first world every step breaks its target just so; in the second the looser ones do.
    p = np.array([a.probability for a in judged(200_000, seed=10**6)])
    runs, broken = 200, 0
    for seed in range(runs):
        answers = judged(1000, seed=seed, error=error)
        found = (calibrate(answers[:n], Promise(0.1)) for n in range(50, 1001, 50))
        first = next((policy for policy in found if not policy.never_accepts), None)
        if first is not None:
            broken += bool(error(p[p >= first.min_probability]).mean() > 0.1)
    assert broken <= stats.binom.isf(1e-3, runs, 0.05)


def test_feedback_that_was_good_once_is_not_enough():
    good = judged(400, error=lambda p: 0.0 * p)
    assert not calibrate(good, Promise(0.1)).never_accepts
    bad = judged(400, seed=1, error=lambda p: 0.4 + 0.0 * p)
    assert calibrate([*good, *bad], Promise(0.1)).never_accepts


def test_what_comes_later_changes_no_threshold_that_is_tested():
    answers = judged(1000)
    steps = {
        (point.min_probability, point.max_variance)
        for n in (300, 600, 1000)
        for policy in [calibrate(answers[:n], Promise(0.2))]
        for point in (policy, *policy.path)
    }
    seen = {a.probability for a in answers[:PILOT]}
    assert len(steps) > 3
    lowest = min(seen)
    assert all(low > lowest - 1e-6 for low, _ in steps), "nothing looser than the first ones show"


def test_class_targets_and_costs_are_kept():
    answers = judged(4000)
    plain = calibrate(answers, Promise(0.1))
    dear = calibrate(answers, Promise(0.1, costs={"yes": 4.0}))
    assert 0.0 < dear.accepted < plain.accepted
    assert dear.error < dear.upper_bound <= 0.1
    fresh = accepted(dear, judged(20_000, seed=1))
    paid = [(a.label != a.true_label) * (4.0 if a.label == "yes" else 1.0) for a in fresh]
    assert np.mean(paid) <= 0.1
    strict = calibrate(answers, Promise(0.1, class_targets={"yes": 0.05}))
    assert 0.0 < strict.accepted < plain.accepted
    assert risk([a for a in accepted(strict, judged(20_000, seed=1)) if a.label == "yes"]) <= 0.05


def test_novel_and_cut_answers_are_neither_accepted_nor_tested():
    wrong = {"error": lambda p: 1.0 + 0.0 * p}
    usual = judged(900, error=lambda p: 0.0 * p, novelty=0.5)
    for other in (judged(300, novelty=0.001, **wrong), judged(300, novelty=0.5, cut_at=9, **wrong)):
        mixed = [a for trio in zip(usual[::3], usual[1::3], usual[2::3], strict=True) for a in trio]
        every_fourth = [x for i, a in enumerate(other) for x in (*mixed[3 * i : 3 * i + 3], a)]
        policy = calibrate(every_fourth, Promise(0.05), min_novelty_p=0.01)
        assert policy.error == 0.0
        assert 0.6 < policy.accepted <= 0.76
        assert not set(accepted(policy, every_fourth)) & set(other)


def test_too_little_feedback_is_refused():
    with pytest.raises(ConfigError, match=f"there are only {PILOT}: collect more"):
        calibrate(judged(PILOT), Promise(0.1))
    assert calibrate(judged(PILOT + 1), Promise(0.1)).never_accepts
    with pytest.raises(ConfigError, match="needs novelty features"):
        calibrate(judged(100), Promise(0.1), min_novelty_p=0.01)


def test_the_temperature_of_the_answers_stays():
    adapter = types.SimpleNamespace(
        **{**vars(ADAPTER), "policy": Policy.never().model_copy(update={"temperature": 0.7})}
    )
    assert calibrate_from_feedback(adapter, judged(100), Promise(0.1)).temperature == 0.7
