"""An adapter's answers to labelled examples."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress

from dalorra.decision.predictive import PosteriorSamples, Prediction
from dalorra.errors import InputError
from dalorra.posteriors.bank import NoiseBank
from dalorra.predictor import Predictor
from dalorra.prompts import InputFields, Prompt
from dalorra.questions import Asked
from training.laplace import LaplacePredictor
from training.tasks import Example

WINDOW: Final = 256
"""Examples between two steps of the progress bar."""


Evaluable = Predictor | LaplacePredictor
"""An adapter on its base that can be scored; the second kind cannot be served."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Predictions in the order of the examples.

    Attributes:
        sampled: by the M samples.
        mean_mask: by the mean mask; empty when it was not asked for.
        truncated: whether the input was cut to fit.
        seconds: time that each of the two took, tokenisation excluded.
    """

    sampled: list[Prediction]
    mean_mask: list[Prediction]
    truncated: list[bool]
    seconds: dict[str, float]


def answer(
    predictor: Evaluable,
    examples: Sequence[Example],
    *,
    mean_mask: bool = True,
    quiet: bool = True,
) -> Answers:
    """Predicts every example, in windows of `WINDOW` of similar length, the longest first.

    Args:
        predictor: an adapter on its base model.
        examples: labelled inputs.
        mean_mask: whether to ask the mean mask, too.
        quiet: whether to leave out the progress bar.

    Raises:
        InputError: an input does not fit the template; the message names the example.
    """
    prompts = [encode_example(predictor, example, n) for n, example in enumerate(examples, start=1)]
    # What does not fit in memory then fails at once and not at the end.
    order = sorted(range(len(prompts)), key=lambda i: -prompts[i].tokens)
    sampled: dict[int, Prediction] = {}
    by_mean_mask: dict[int, Prediction] = {}
    seconds = {"sampled": 0.0, "mean_mask": 0.0}
    error_console = Console(stderr=True)
    hidden = quiet or not error_console.is_terminal
    with Progress(console=error_console, disable=hidden, transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(prompts))
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            chosen = [prompts[i] for i in window]
            began = time.perf_counter()
            sampled.update(zip(window, predictor.predict(chosen), strict=True))
            between = time.perf_counter()
            if mean_mask:
                by_mean_mask.update(zip(window, predictor.predict_mean(chosen), strict=True))
            seconds["sampled"] += between - began
            seconds["mean_mask"] += time.perf_counter() - between
            progress.advance(bar, len(window))
    return Answers(
        sampled=[sampled[i] for i in range(len(prompts))],
        mean_mask=[by_mean_mask[i] for i in range(len(by_mean_mask))],
        truncated=[prompt.truncated for prompt in prompts],
        seconds=seconds,
    )


def labels_of(predictor: Evaluable, example: Example) -> tuple[str, ...]:
    """What may answer an example: labels of the adapter, or the options of its question."""
    if isinstance(example.input, Asked):
        return tuple(option.name for option in example.input.question.options)
    return predictor.labels


def labels_of_all(predictor: Evaluable, examples: Sequence[Example]) -> tuple[str, ...] | None:
    """The same where it is the same for all examples, else None."""
    found = {labels_of(predictor, example) for example in examples}
    return found.pop() if len(found) == 1 else None


def padded_samples(
    predictor: Evaluable, prompts: Sequence[Prompt], bank: NoiseBank | None = None
) -> PosteriorSamples:
    """Distributions under each sample, 0 behind the last label of a prompt that has its own.

    Args:
        predictor: an adapter on its base model.
        prompts: one or more.
        bank: in place of the adapter's own, where it has one.
    """
    groups: dict[int, list[int]] = {}  # places by the number of labels, 0 for the adapter's own
    for place, prompt in enumerate(prompts):
        groups.setdefault(len(prompt.options or ()), []).append(place)
    in_groups = [[prompts[place] for place in places] for places in groups.values()]
    if bank is not None and isinstance(predictor, Predictor):
        found = [predictor.posterior_samples(group, bank) for group in in_groups]
    else:
        found = [predictor.posterior_samples(group) for group in in_groups]
    widest = max(samples.probabilities.shape[-1] for samples in found)
    padded = [F.pad(s.probabilities, (0, widest - s.probabilities.shape[-1])) for s in found]
    back = torch.tensor([place for places in groups.values() for place in places]).argsort()
    return replace(found[0], probabilities=torch.cat(padded)[back])


def encode_example(predictor: Evaluable, example: Example, number: int) -> Prompt:
    """Tokenises the input of the `number`-th example, which an `InputError` names."""
    value: InputFields | Asked = example.input
    if isinstance(value, Mapping) and len(value) == len(predictor.fields) == 1:
        [value] = value.values()  # its name does not matter: any text fits such a template
    try:
        return predictor.encode(value)
    except InputError as error:
        raise InputError(f"example {number}: {error}") from error
