"""A temperature of the label logits: the one that fits, and whether it is worth having.

Averaging makes a distribution over many labels flatter than the samples that it is made of, and
training on little data makes it too sharp. Both are mended by one number, as far as they are even.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from dalorra.decision.predictive import PosteriorSamples
from training.answers import Evaluable, encode_example, labels_of, padded_samples
from training.tasks import Example

TemperatureChoice = Literal["auto", "on", "off"]
"""Fit one where it helps, always, or never."""

TEMPERATURES: Final = (0.05, 20.0)
"""Lowest and highest temperature that `fit_temperature` tries."""

LEAST: Final = 30
"""Examples without which no temperature is taken unasked."""

FOLDS: Final = 5
EVIDENCE: Final = math.log(10.0)
"""Labels that a temperature was not fitted to must be ten times as likely under it."""


def choose_temperature(
    samples: PosteriorSamples,
    targets: Sequence[int],
    choice: TemperatureChoice = "auto",
    options: Sequence[int] | None = None,
) -> float:
    """The temperature to serve with.

    "auto" takes the fitted one where labels that had no part in the fit are, all together, ten
    times as likely under it as under none: each of `FOLDS` parts is judged at the
    temperature that fits the others. Where the probabilities are right already, the product of
    these ratios has a mean of about 1 (of 1 exactly if only earlier parts were fitted to), so that
    few examples rarely ask for a temperature that does harm, and then for a small one.

    Args:
        samples: of n inputs, at temperature 1.
        targets: `[n]` index of the true label.
        options: `[n]`, how many labels each has; None: all.
        choice: see `TemperatureChoice`.
    """
    if choice == "off" or (choice == "auto" and _evidence(samples, targets, options) < EVIDENCE):
        return 1.0
    return fit_temperature(samples, targets, options)


def fit_temperature(
    samples: PosteriorSamples, targets: Sequence[int], options: Sequence[int] | None = None
) -> float:
    """The temperature of all label logits that makes the true labels most likely.

    Minimises the cross-entropy of the mean over the samples, which are softened or sharpened before
    it is taken, as `PosteriorSamples.tempered` serves them. The targets are
    Platt's (1999, "Probabilistic outputs for support vector machines", sec. 2.2): the true label
    has (n + 1) / (n + 2), as if one more example were right and one wrong; the other labels share
    the rest. Without these two, few examples that are all right ask for a temperature near 0.

    Args:
        samples: of n inputs.
        targets: `[n]` index of the true label.
        options: see `choose_temperature`.
    """
    n, widest = len(targets), samples.probabilities.shape[-1]
    labels = torch.tensor([widest] * n if options is None else options, dtype=torch.float64)
    smoothed = (1 / (n + 2) / (labels - 1))[:, None].expand(-1, widest)
    smoothed = smoothed.where(torch.arange(widest) < labels[:, None], 0.0)
    smoothed[torch.arange(n), torch.tensor(targets)] = (n + 1) / (n + 2)

    def loss(log_temperature: float) -> float:
        return float(-(smoothed * _log_mean(samples, float(np.exp(log_temperature)))).sum())

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(optimize.minimize_scalar(loss, bounds=bounds, method="bounded").x))


def temperature_on(
    predictor: Evaluable, examples: Sequence[Example], choice: TemperatureChoice = "on"
) -> float:
    """`choose_temperature` on labelled examples; the policy's own temperature has to be 1."""
    if choice == "off":
        return 1.0
    prompts = [encode_example(predictor, example, n) for n, example in enumerate(examples, start=1)]
    labels = [labels_of(predictor, example) for example in examples]
    targets = [own.index(e.label) for own, e in zip(labels, examples, strict=True)]
    options = [len(own) for own in labels]
    samples = padded_samples(predictor, prompts)
    return choose_temperature(samples, targets, choice, options)


def _evidence(
    samples: PosteriorSamples, targets: Sequence[int], options: Sequence[int] | None
) -> float:
    """Log of how many times likelier cross-fitted temperatures make the true labels."""
    if len(targets) < LEAST:
        return 0.0
    true = torch.tensor(targets)
    widths = torch.tensor(options or [samples.probabilities.shape[-1]] * len(targets))
    fold = torch.arange(len(targets)) % FOLDS
    gain = 0.0
    for judged in (fold == k for k in range(FOLDS)):
        others = _part(samples, ~judged)
        fitted = fit_temperature(others, true[~judged].tolist(), widths[~judged].tolist())
        part, own = _part(samples, judged), true[judged, None]
        ratio = _log_mean(part, fitted).gather(1, own) - _log_mean(part, 1.0).gather(1, own)
        gain += float(ratio.sum())
    return gain


def _log_mean(samples: PosteriorSamples, temperature: float) -> Tensor:
    """Log of the mean distribution, `[n, K]` in float64."""
    mean = samples.tempered(temperature).mean.double()
    return mean.clamp_min(torch.finfo(torch.float64).tiny).log()


def _part(samples: PosteriorSamples, where: Tensor) -> PosteriorSamples:
    return replace(samples, probabilities=samples.probabilities[where])
