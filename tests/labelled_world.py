"""Inputs with labels drawn from known distributions, and the predictor that answers them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalorra.decision.policy import Decision, Policy
from dalorra.decision.predictive import PosteriorSamples, Prediction, summarise
from dalorra.prompts import Prompt
from tests.fakes import FakePredictor
from training.tasks import Example

LABELS = ("no", "perhaps", "yes")


class LogitPredictor(FakePredictor):
    """Answers the input `i` with the i-th of `logits` `[n, M, K]`, at the policy's temperature."""

    labels = LABELS  # type: ignore[assignment]
    samples = 5
    precision = "float32 on cpu"

    def __init__(self, logits: Tensor) -> None:
        old = Policy(min_probability=0.0, max_variance=0.25, source="old", temperature=9.0)
        super().__init__(policy=old, digest="d" * 64)
        self.logits = logits

    def posterior_samples(self, prompts: Sequence[Prompt]) -> PosteriorSamples:
        logits = self.logits[[number_of(prompt) for prompt in prompts]]
        samples = PosteriorSamples(logits.softmax(-1)[:, :, None], torch.ones(1))
        return samples.tempered(self.policy.temperature)

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        return summarise(self.posterior_samples(prompts), LABELS)


def number_of(prompt: Prompt) -> int:
    """Which input it is; other texts are among the first ten."""
    text = "".join(map(chr, prompt.prompt_ids))
    return int(text) if text.isdecimal() else len(text) % 10


def world(
    n: int, *, seed: int = 0, sharpness: float = 1.0, reliable: Sequence[str] = LABELS
) -> tuple[LogitPredictor, list[Example]]:
    """n inputs; labels that are not `reliable` are hard to tell, however sure they look."""
    generator = np.random.default_rng(seed)
    favourite = generator.integers(0, 3, n)
    logits = generator.normal(0.0, 0.4, (n, 3))
    strength = generator.uniform(0.5, 7.0, n)
    told = np.isin(np.array(LABELS)[favourite], reliable)
    logits[np.arange(n), favourite] += np.where(told, strength, 0.6 * strength)
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (generator.random(n)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    shown = np.where(told[:, None], logits, logits * strength[:, None])
    samples = sharpness * shown[:, None] + 0.2 * generator.normal(size=(n, 5, 3))
    examples = [Example({"sentence": str(i)}, LABELS[k]) for i, k in enumerate(label)]
    return LogitPredictor(torch.tensor(samples)), examples


def predictions(predictor: Any, examples: Sequence[Example]) -> list[Prediction]:
    """Its answers to all of them."""
    found: list[Prediction] = predictor.predict(
        [predictor.encode(example.input["sentence"]) for example in examples]
    )
    return found


def accepted(predictor: Any, examples: Sequence[Example]) -> list[tuple[Prediction, str]]:
    """Answers that the predictor's policy accepts, with the true labels."""
    found = predictions(predictor, examples)
    return [
        (p, example.label)
        for p, example in zip(found, examples, strict=True)
        if predictor.policy.decide(p).decision is Decision.ACCEPT
    ]
