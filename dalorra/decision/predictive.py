"""Moments of the posterior predictive over the label tokens.

With p_m the softmax over the K label tokens under sample m of M, all in float32 or better:

    p̄ = mean_m p_m                                   (DALorRA, section 4, predictive average)
    variance = mean_m (p_m[ŷ] − p̄[ŷ])², ŷ = argmax p̄  (BayesLoRA, section 4)
    H[p̄] = total entropy; H[p̄] − mean_m H[p_m] = mutual information, its epistemic part (nats)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PosteriorSamples:
    """Distributions over the labels under samples of the posterior.

    Attributes:
        probabilities: `[B, M, S, K]`: M samples, each under S weighted masks of the head.
        weights: `[S]`, sums to 1; S is 1 where the head is sampled with the rest.
        error_ratio: error of a mean over the M samples, in units of that of M independent ones; see
            `dalorra.posteriors.bank.BankSpec`.
    """

    probabilities: Tensor
    weights: Tensor
    error_ratio: float = 1.0

    @classmethod
    def joined(cls, parts: Sequence["PosteriorSamples"]) -> "PosteriorSamples":
        """Those of all parts' inputs, which have as many labels under as many samples.

        A part whose head is sampled has the same distribution under every mask of the others.
        """
        widest = max(parts, key=lambda part: len(part.weights))
        masks = len(widest.weights)
        found = [part.probabilities.expand(-1, -1, masks, -1) for part in parts]
        return replace(widest, probabilities=torch.cat(found))

    @property
    def by_sample(self) -> Tensor:
        """`[B, M, K]`, mean over the head's masks."""
        return torch.einsum("bmsk,s->bmk", self.probabilities, self.weights)

    @property
    def mean(self) -> Tensor:
        """`[B, K]`, mean over everything."""
        return self.by_sample.mean(dim=1)

    def tempered(self, temperature: float) -> "PosteriorSamples":
        """Softer distributions where T is above 1, sharper ones below, at any T summing to 1.

        Above 1 each is softened by itself, p ∝ p^(1/T): samples that are too sure. Below 1 what
        they agree on is sharpened, p ∝ p · p̄^(1/T − 1): averaging samples that disagree makes p̄
        flatter than any of them, which sharpening each by itself hardly mends, as it sharpens the
        disagreement, too. Where there is one sample the two are the same (Guo et al., 2017).
        """
        if temperature == 1.0:
            return self
        # log p is the logits up to a constant that the softmax takes out again.
        logits = self.probabilities.log()
        if temperature > 1.0:
            return replace(self, probabilities=(logits / temperature).softmax(dim=-1))
        tiny = torch.finfo(self.probabilities.dtype).tiny
        agreed = self.mean.clamp_min(tiny).log()[:, None, None]
        return replace(
            self, probabilities=(logits + (1.0 / temperature - 1.0) * agreed).softmax(dim=-1)
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one input.

    Attributes:
        label: name of the most probable label.
        probability: mean over M of that label's probability.
        variance: population variance over M of that label's probability, at most 0.25.
        probabilities: label name → mean probability; sums to 1.
        entropy: of the mean distribution, in nats.
        mutual_information: epistemic part of the entropy, in nats.
        samples: M.
        standard_error: of `probability`, as an estimate of the mean over the whole posterior by M
            samples: e √(u / (M − 1)), u the population variance over the samples, e the bank's
            `error_ratio`. M independent samples have e = 1; a stratified bank is a Latin hypercube
            over the mask bits and has less (never much more: e² ≤ M / (M − 1); Owen, 1997). None
            for one sample, which cannot tell.
        sample_probabilities: the label's probability under each of the M samples.
        novelty: conformal p-value of the input among those like the training data, see
            `dalorra.decision.novelty`: small is novel. None when the adapter cannot tell.
        cut_at: tokens that were read of an input that was cut to fit; None: all of it was read.
    """

    label: str
    probability: float
    variance: float
    probabilities: dict[str, float]
    entropy: float
    mutual_information: float
    samples: int
    standard_error: float | None = None
    sample_probabilities: tuple[float, ...] = ()
    novelty: float | None = None
    cut_at: int | None = None


def summarise(samples: PosteriorSamples | Tensor, labels: Sequence[str]) -> list[Prediction]:
    """Predictive moments of a batch.

    Where the head is integrated the variance is that of the whole posterior, by the law of total
    variance: between the M samples, plus the mean over them of that within the head.

    Args:
        samples: of B inputs; or a tensor `[B, M, K]`, each `[b, m]` a distribution.
        labels: K names.

    Returns:
        B predictions, order kept.
    """
    if isinstance(samples, Tensor):
        samples = PosteriorSamples(samples[:, :, None], samples.new_ones(1))
    count, error_ratio = samples.probabilities.shape[1], samples.error_ratio
    p = samples.probabilities.double().flatten(1, 2)  # [B, M·S, K]
    of_mask = samples.weights.double()
    of_mask = of_mask / of_mask.sum()  # float32 weights add up to 1 up to their own rounding
    weight = of_mask.repeat(count)[:, None] / count  # [M·S, 1]
    mean = (weight * p).sum(dim=1)  # [B, K]
    best = mean.argmax(dim=-1)  # [B]
    chosen = p.gather(2, best[:, None, None].expand(-1, p.shape[1], 1)).squeeze(2)  # [B, M·S]
    deviation = chosen - mean.gather(1, best[:, None])
    variance = (weight[:, 0] * deviation.square()).sum(dim=1)
    # The head's masks are integrated, not sampled: only what the samples differ by is uncertain.
    by_sample = (weight[:, 0] * count * chosen).unflatten(1, (count, -1)).sum(dim=2)  # [B, M]
    between = (by_sample - mean.gather(1, best[:, None])).square().mean(dim=1)
    entropy = torch.special.entr(mean).sum(dim=-1)
    expected_entropy = (weight * torch.special.entr(p)).sum(dim=(1, 2))
    # At least 0 by Jensen's inequality, but rounding can take it a little below.
    mutual_information = (entropy - expected_entropy).clamp_min(0.0)
    return [
        Prediction(
            label=labels[index],
            probability=distribution[index],
            variance=var,
            probabilities=dict(zip(labels, distribution, strict=True)),
            entropy=total,
            mutual_information=epistemic,
            samples=count,
            standard_error=error_ratio * math.sqrt(spread / (count - 1)) if count > 1 else None,
            sample_probabilities=tuple(of_samples),
        )
        for distribution, index, var, total, epistemic, spread, of_samples in zip(
            mean.tolist(),
            best.tolist(),
            variance.tolist(),
            entropy.tolist(),
            mutual_information.tolist(),
            between.tolist(),
            by_sample.tolist(),
            strict=True,
        )
    ]
