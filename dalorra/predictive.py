"""Moments of the posterior predictive over the label tokens.

With p_m the softmax over the K label tokens under sample m of M, all in float32 or better:

    p̄ = mean_m p_m                                   (DALorRA, section 4, predictive average)
    variance = mean_m (p_m[ŷ] − p̄[ŷ])², ŷ = argmax p̄  (BayesLoRA, section 4)
    H[p̄] = total entropy; H[p̄] − mean_m H[p_m] = mutual information, its epistemic part (nats)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
    """

    label: str
    probability: float
    variance: float
    probabilities: dict[str, float]
    entropy: float
    mutual_information: float
    samples: int


def summarise(sample_probabilities: Tensor, labels: Sequence[str]) -> list[Prediction]:
    """Predictive moments of a batch.

    Args:
        sample_probabilities: `[B, M, K]`, each `[b, m]` a distribution over the labels.
        labels: K names.

    Returns:
        B predictions, order kept.
    """
    p = sample_probabilities.double()  # [B, M, K]
    mean = p.mean(dim=1)  # [B, K]
    best = mean.argmax(dim=-1)  # [B]
    chosen = p.gather(2, best[:, None, None].expand(-1, p.shape[1], 1)).squeeze(2)  # [B, M]
    variance = (chosen - chosen.mean(dim=1, keepdim=True)).square().mean(dim=1)
    entropy = torch.special.entr(mean).sum(dim=-1)
    expected_entropy = torch.special.entr(p).sum(dim=-1).mean(dim=-1)
    # Jensen makes the difference non-negative; rounding may not.
    mutual_information = (entropy - expected_entropy).clamp_min(0.0)
    return [
        Prediction(
            label=labels[index],
            probability=row[index],
            variance=var,
            probabilities=dict(zip(labels, row, strict=True)),
            entropy=total,
            mutual_information=epistemic,
            samples=p.shape[1],
        )
        for row, index, var, total, epistemic in zip(
            mean.tolist(),
            best.tolist(),
            variance.tolist(),
            entropy.tolist(),
            mutual_information.tolist(),
            strict=True,
        )
    ]
