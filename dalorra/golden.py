"""The golden check: does an adapter answer here what the unmodified model answers?

The packed forward is tested to be exact, but on other machines than this one, with other libraries
and adapters. So before an adapter is served, one short input is answered twice: by its network, and
by `forward.reference_logits` through the unmodified transformers model. Nothing needs to be kept
with the adapter: its digest says that it is the same one, and the base's that the model is.
"""

import math
from typing import Final

import torch

from dalorra.adapter.layer import StochasticPeftModel
from dalorra.errors import AdapterError
from dalorra.forward.reference import reference_logits
from dalorra.predictor import Predictor

PROBE: Final = "a short text"

_TOLERANCE: Final = {torch.float32: 1e-3}
_ROUGH_TOLERANCE: Final = 0.05  # of bfloat16, for a mean probability


@torch.inference_mode()
def check_golden(predictor: Predictor, model: StochasticPeftModel) -> None:
    """Compares the predictor with the model that it was made from, on `PROBE`.

    Args:
        predictor: of the adapter.
        model: the base model with the adapter attached.

    Raises:
        AdapterError: an answer is not a distribution, not reproducible, or not the model's.
    """
    prompts = [predictor.probe(PROBE)]
    answers = [predictor.predict(prompts)[0] for _ in range(2)]
    values = [*answers[0].probabilities.values(), answers[0].variance]
    if not all(math.isfinite(value) for value in values):
        raise AdapterError("the golden check failed: its answers are not finite numbers")
    if abs(sum(answers[0].probabilities.values()) - 1.0) > 1e-4:
        raise AdapterError("the golden check failed: its probabilities do not sum to 1")
    tolerance = _TOLERANCE.get(predictor.dtype, _ROUGH_TOLERANCE)
    again = [*answers[1].probabilities.values(), answers[1].variance]
    # The second time the prefix cache may leave fewer rows, which some libraries round otherwise.
    if not max(abs(a - b) for a, b in zip(values, again, strict=True)) <= tolerance:
        raise AdapterError("the golden check failed: it answers one input in two ways")

    samples, bank = range(predictor.samples), predictor.bank
    labels = predictor.labels_of(prompts[0], model.device)
    expected = reference_logits(model, prompts, samples, bank, predictor.scope, labels)
    found = predictor.label_logits(prompts)
    gap = (found.softmax(-1).mean(1) - expected.softmax(-1).mean(1)).abs().max().item()
    if not gap <= tolerance:
        raise AdapterError(
            f"the golden check failed: its probabilities are {gap:.2g} away from those of the "
            "unmodified model, so this machine or its libraries compute something else"
        )
