"""Where inputs lie for an adapter, in two dimensions (BayesLoRA, Figure 2)."""

from collections.abc import Mapping
from typing import Any, Final

import torch

from dalorra.predictor import Predictor
from training.answers import encode_example
from training.experiments.predictions import LabelledAnswers

INPUTS: Final = "inputs"
"""Name of the texts that were asked about one by one."""


def plane(predictor: Predictor, answered: Mapping[str, LabelledAnswers]) -> list[dict[str, Any]]:
    """The first two principal components of the inputs' hidden states, and each one's variance.

    The hidden state is the last of `Predictor.novelty_features`, from which the label logits are
    made, averaged over the samples. The components are those of all inputs together.

    Args:
        predictor: the adapter.
        answered: by the name of the data.
    """
    prompts = [
        encode_example(predictor, example, number)
        for examples, _ in answered.values()
        for number, example in enumerate(examples, 1)
    ]
    x = predictor.novelty_features(prompts)[:, -1].double()
    x = x - x.mean(dim=0)
    directions = torch.linalg.svd(x, full_matrices=False).Vh[:2]
    directions *= directions.sum(dim=1, keepdim=True).sign()  # an SVD leaves the sign open
    points = (x @ directions.T).tolist()
    named = [(name, p.variance) for name, (_, found) in answered.items() for p in found]
    return [
        {"data": name, "x": round(px, 3), "y": round(py, 3), "variance": float(f"{variance:.3g}")}
        for (name, variance), (px, py) in zip(named, points, strict=True)
    ]
