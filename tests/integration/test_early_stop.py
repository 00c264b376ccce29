"""With the bundled adapter, fewer samples give the labels and decisions of the whole bank.

`TEST_DATA` may name a folder with sst2/validation.jsonl: then all of its sentences are asked.
"""

import os
from pathlib import Path

import pytest

from dalorra.decision.policy import Policy
from dalorra.decision.predictive import PosteriorSamples, summarise
from dalorra.early_stop import predict_in_stages
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from dalorra.shared_base import SharedBase
from training.tasks import load_examples

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

SENTENCES = (
    "This movie was fantastic!",
    "The plot was hard to follow.",
    "I've seen better films",
    "The quarterly earnings exceeded expectations.",
    "florgle wumpus theory extrapolates",
    "a gorgeous, witty, seductive movie",
    "it 's a charming and often affecting journey",
    "unflinchingly bleak and desperate",
    "neither good nor bad, it is simply there",
    "you will laugh, and then you will wonder why",
    "so bad that it is fun again",
    "two hours that i will not get back",
)
POLICIES = [(0.85, 0.00116), (0.6, 0.02), (0.85, 0.25), (0.95, 1e-5), (2.0, 0.0)]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    base = SharedBase.load(device="cpu", dtype="float32", prefix_cache_bytes=1 << 28)
    return base.bind(base.read())


@pytest.fixture(scope="module")
def prompts(predictor: Predictor) -> list[Prompt]:
    folder = os.environ.get("TEST_DATA")
    examples = load_examples("sst2", "validation", Path(folder)) if folder else []
    texts = [example.input["sentence"] for example in examples] or SENTENCES
    return sorted((predictor.encode(text) for text in texts), key=lambda p: p.tokens)


@pytest.fixture(scope="module")
def whole(predictor: Predictor, prompts: list[Prompt]) -> list[PosteriorSamples]:
    """Each input's samples under the whole bank."""
    found = []
    for start in range(0, len(prompts), 32):
        samples = predictor.posterior_samples(prompts[start : start + 32])
        found += [PosteriorSamples(p[None], samples.weights) for p in samples.probabilities]
    return found


def test_labels_and_decisions_are_those_of_the_whole_bank(predictor, prompts, whole):
    early = []
    for start in range(0, len(prompts), 32):
        batch = prompts[start : start + 32]
        early += predictor.predict(batch, [predictor.policy] * len(batch))
    for few, samples in zip(early, whole, strict=True):
        [every] = summarise(samples, predictor.labels)
        assert few.label == every.label
        assert decision(predictor.policy, few) == decision(predictor.policy, every)
    used = sum(few.samples for few in early) / len(early)
    print(f"{len(early)} inputs, {used:.2f} samples on average")  # noqa: T201 - for -s


@pytest.mark.parametrize(("min_probability", "max_variance"), POLICIES)
def test_under_any_thresholds(predictor, whole, min_probability, max_variance):
    policy = Policy(min_probability=min_probability, max_variance=max_variance, source="a test")
    used = 0
    for samples in whole:
        [few] = predict_in_stages(
            lambda _, members, s=samples: PosteriorSamples(
                s.probabilities[:, list(members)], s.weights
            ),
            [Prompt((1,), (2,))],
            [policy],
            members=predictor.samples,
            labels=predictor.labels,
        )
        [every] = summarise(samples, predictor.labels)
        assert (few.label, decision(policy, few)) == (every.label, decision(policy, every))
        used += few.samples
    print(f"{policy.min_probability}, {policy.max_variance}: {used / len(whole):.2f} samples")  # noqa: T201


def decision(policy: Policy, prediction) -> str:
    return policy.decide(prediction.probability, prediction.variance).decision
