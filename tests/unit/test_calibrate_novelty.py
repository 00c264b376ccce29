"""Calibration with a novelty level: what is novel is never accepted, the promise is of the rest."""

from dataclasses import replace

import numpy as np
import pytest

from dalorra.decision.policy import Decision
from dalorra.errors import ConfigError
from tests.unit.test_calibrate import FakePredictor, run, world
from training.promise import Promise


class Novel(FakePredictor):
    """Every fifth input is novel, and its answer worth nothing."""

    def predict(self, prompts):
        found = super().predict(prompts)
        return [
            replace(one, novelty=0.001 if prompt.prompt_ids[0] % 5 == 0 else 0.5)
            for one, prompt in zip(found, prompts, strict=True)
        ]


@pytest.fixture(scope="module")
def calibrated():
    plain, examples = world(3000)
    wrong = {"no": "yes", "perhaps": "no", "yes": "perhaps"}
    spoiled = [
        replace(e, label=wrong[e.label]) if i % 5 == 0 else e for i, e in enumerate(examples)
    ]
    predictor = Novel(plain.logits)
    policy = run(predictor, spoiled, Promise(0.05), min_novelty_p=0.01, novelty_digest="e" * 64)
    return policy, predictor, spoiled


def test_the_promise_is_kept_because_novel_inputs_are_not_accepted(calibrated):
    policy, predictor, examples = calibrated
    assert not policy.never_accepts
    assert (policy.min_novelty_p, policy.novelty_digest) == (0.01, "e" * 64)
    assert policy.at(0.02).min_novelty_p == 0.01
    found = predictor.predict([predictor.encode(e.input["sentence"]) for e in examples])
    taken = [
        p.label == e.label
        for p, e in zip(found, examples, strict=True)
        if policy.decide(p.probability, p.variance, p.novelty).decision is Decision.ACCEPT
    ]
    assert 1 - np.mean(taken) <= 0.05
    assert len(taken) / len(examples) == pytest.approx(policy.accepted, abs=0.02)
    assert policy.n == 2700, "the novel ones were asked, too"


def test_without_the_level_the_same_examples_keep_nothing_like_it(calibrated):
    policy, predictor, examples = calibrated
    again = run(Novel(predictor.logits), examples, Promise(0.05))
    assert again.min_novelty_p is None
    assert (again.accepted or 0.0) < 0.5 * policy.accepted


def test_a_level_without_novelty_features_is_refused():
    predictor, examples = world(100)
    with pytest.raises(ConfigError, match="needs novelty features"):
        run(predictor, examples, Promise(0.05), min_novelty_p=0.01)
