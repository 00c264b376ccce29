"""Where inputs lie for an adapter, in two dimensions (BayesLoRA, Figure 2)."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from dalorra.decision.predictive import Prediction
from dalorra.predictor import Predictor
from training.answers import encode_example
from training.tasks import Example

INPUTS: Final = "inputs"
"""Name of the texts that were asked about one by one."""


def plane(
    predictor: Predictor, answered: Mapping[str, tuple[Sequence[Example], Sequence[Prediction]]]
) -> list[dict[str, Any]]:
    """The first two principal components of the inputs' hidden states, and each one's variance.

    The hidden state is that of `Predictor.novelty_features`: what the labels are read off, averaged
    over the samples. The components are those of all inputs together.

    Args:
        predictor: the adapter.
        answered: name of the data → examples and the answers to them, in the same order.
    """
    prompts = [
        encode_example(predictor, example, number)
        for examples, _ in answered.values()
        for number, example in enumerate(examples, 1)
    ]
    x = torch.cat(
        [predictor.novelty_features(prompts[i : i + 32]) for i in range(0, len(prompts), 32)]
    ).double()
    x = x - x.mean(dim=0)
    directions = torch.linalg.svd(x, full_matrices=False).Vh[:2]
    directions *= directions.sum(dim=1, keepdim=True).sign()  # an SVD leaves the sign open
    points = (x @ directions.T).tolist()
    named = [(name, p.variance) for name, (_, found) in answered.items() for p in found]
    return [
        {"data": name, "x": round(px, 3), "y": round(py, 3), "variance": float(f"{variance:.3g}")}
        for (name, variance), (px, py) in zip(named, points, strict=True)
    ]
