"""An adapter's answers to labelled examples, in batches of similar length."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import Progress

from dalorra.decision.policy import Policy
from dalorra.decision.predictive import PosteriorSamples, Prediction
from dalorra.errors import InputError
from dalorra.prompts import InputFields, Prompt
from training.tasks import Example


class Evaluable(Protocol):
    """What is scored: the part of `dalorra.predictor.Predictor` that it takes."""

    model_name: str
    adapter_name: str
    adapter_digest: str
    method: str
    policy: Policy

    @property
    def scope(self) -> str:
        """Rows that the adapter acts on."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the template."""
        ...

    @property
    def samples(self) -> int:
        """M."""
        ...

    def encode(self, value: InputFields, /) -> Prompt:
        """Tokenises one input; `InputError` when it does not fit."""
        ...

    def predict(self, prompts: Sequence[Prompt], /) -> list[Prediction]:
        """Answers by the M samples, order kept."""
        ...

    def predict_mean(self, prompts: Sequence[Prompt], /) -> list[Prediction]:
        """Answers by the mean mask, order kept."""
        ...

    def posterior_samples(self, prompts: Sequence[Prompt], /) -> PosteriorSamples:
        """Distributions over the labels under every sample."""
        ...


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
    batch_size: int = 32,
    quiet: bool = True,
) -> Answers:
    """Predicts every example, in batches of similar length, the longest first.

    Raises:
        InputError: an input does not fit the template; the message names the example.
    """
    prompts = [encode_example(predictor, example, n) for n, example in enumerate(examples, start=1)]
    # Longest first: a batch that does not fit in memory fails at once and not at the end.
    order = sorted(range(len(prompts)), key=lambda i: -prompts[i].tokens)
    sampled: dict[int, Prediction] = {}
    by_mean_mask: dict[int, Prediction] = {}
    seconds = {"sampled": 0.0, "mean_mask": 0.0}
    error_console = Console(stderr=True)
    hidden = quiet or not error_console.is_terminal
    with Progress(console=error_console, disable=hidden, transient=True) as progress:
        bar = progress.add_task("evaluating", total=len(prompts))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            chosen = [prompts[i] for i in batch]
            began = time.perf_counter()
            sampled.update(zip(batch, predictor.predict(chosen), strict=True))
            between = time.perf_counter()
            if mean_mask:
                by_mean_mask.update(zip(batch, predictor.predict_mean(chosen), strict=True))
            seconds["sampled"] += between - began
            seconds["mean_mask"] += time.perf_counter() - between
            progress.advance(bar, len(batch))
    return Answers(
        sampled=[sampled[i] for i in range(len(prompts))],
        mean_mask=[by_mean_mask[i] for i in range(len(by_mean_mask))],
        truncated=[prompt.truncated for prompt in prompts],
        seconds=seconds,
    )


def encode_example(predictor: Evaluable, example: Example, number: int) -> Prompt:
    """Tokenises the input of the `number`-th example, which an `InputError` names."""
    values = list(example.input.values())
    # Where both have one field its name does not matter: any text can be asked of any template.
    single = len(values) == 1 and len(predictor.fields) == 1
    try:
        return predictor.encode(values[0] if single else dict(example.input))
    except InputError as error:
        raise InputError(f"example {number}: {error}") from error
