"""A predictor without weights: deterministic, and as slow or as broken as a test asks."""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Self

from dalorra.decision.policy import Policy
from dalorra.decision.predictive import Prediction
from dalorra.errors import AdapterError, InputError
from dalorra.prompts import InputFields, Prompt
from service.engine import Limits

POISON = ord("☠")
CUE = (1, 2)


def limits(**changes: float) -> Limits:
    """Limits that are in nobody's way, apart from `changes`."""
    roomy = Limits(queue_requests=512, queue_rows=65_536, batch_rows=2_048, stall_seconds=300)
    return replace(roomy, **changes)  # type: ignore[arg-type]


class FakePredictor:
    """One token per character; the answer depends on the prompt, its samples on who decides.

    Attributes:
        seconds: time of one forward.
        gate: a forward waits for it; open by default.
        broken: every forward fails.
        encoded: inputs that were tokenised.
        batches: prompts of each forward that was tried.
    """

    model_name = "fake-model"
    adapter_name = "fake-adapter"
    adapter_digest = "0123abcd"
    method = "dalorra"
    scope = "answer_tokens"
    labels = ("negative", "positive")
    samples = 10
    max_tokens = 300
    nbytes = 1_000

    def __init__(
        self,
        fields: Sequence[str] = ("sentence",),
        *,
        seconds: float = 0.0,
        on_warm_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.fields = tuple(fields)
        self.prefix_cache = None  # for it is its own base, too
        self.novelty = None
        self.policy = Policy(min_probability=0.8, max_variance=0.02, source="made up for a test")
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False
        self.encoded: list[InputFields] = []
        self.batches: list[list[Prompt]] = []
        self._on_warm_up = on_warm_up

    def encode(self, value: InputFields) -> Prompt:
        self.encoded.append(value)
        if isinstance(value, str):
            if len(self.fields) != 1:
                raise InputError(f"input is a string: send an object with {self.fields}")
            value = {self.fields[0]: value}
        if set(value) != set(self.fields):
            raise InputError(f"input has the wrong fields: send {', '.join(self.fields)}")
        text = "".join(value[name] for name in self.fields)
        if not text:
            raise InputError("input is empty: send some text")
        room = self.max_tokens - len(CUE)
        ids = tuple(map(ord, text))
        return Prompt(ids[:room], CUE, truncated=len(ids) > room)

    def packed_rows(self, prompt: Prompt) -> int:
        return len(prompt.prompt_ids) + self.samples * len(prompt.cue_ids)

    def predict(
        self, prompts: Sequence[Prompt], deciders: Sequence[Policy | None] = ()
    ) -> list[Prediction]:
        self.batches.append(list(prompts))
        self.gate.wait()
        if self.seconds:
            time.sleep(self.seconds)
        if self.broken:
            raise RuntimeError("the device fell off the bus")
        if any(POISON in prompt.prompt_ids for prompt in prompts):
            raise RuntimeError("this prompt is poisoned")
        return [
            replace(expected_prediction(prompt), samples=6 if decider else self.samples)
            for prompt, decider in zip_longest(prompts, deciders)
        ]

    def read(self, path: Path | None) -> Self:
        """As a base on which it is the only adapter."""
        return self

    def bind(self, adapter: Self, name: str | None) -> Self:
        return adapter

    def warm_up(self) -> Iterator[Callable[[], object]]:
        yield self._warm_up

    def _warm_up(self) -> None:
        self._on_warm_up()
        if self.broken:
            raise RuntimeError("the device fell off the bus")


class FakeBase:
    """A base on which every directory is an adapter that answers by its folder's name.

    Attributes:
        bound: the predictors that were made, in order.
        damaged: folders that cannot be read.
        misfits: folders of adapters that do not fit.
    """

    prefix_cache = None

    def __init__(self, **predictors: FakePredictor) -> None:
        self.bound: list[FakePredictor] = []
        self.damaged: set[str] = set()
        self.misfits: set[str] = set()
        self._predictors = predictors

    def read(self, path: Path | None) -> str:
        name = path.name if path else "bundled"
        if name in self.damaged:
            raise AdapterError(f"{path} has no dalorra.json: it is not a complete DALorRA adapter")
        return name

    def bind(self, adapter: str, name: str | None) -> FakePredictor:
        if adapter in self.misfits:
            raise AdapterError(f"{adapter} was trained on another base model")
        predictor = self._predictors.get(adapter) or FakePredictor()
        predictor.adapter_name = name or adapter
        predictor.adapter_digest = f"digest-of-{adapter}"
        self.bound.append(predictor)
        return predictor


def expected_prediction(prompt: Prompt) -> Prediction:
    """What the fake answers to a prompt."""
    digest = hashlib.sha256(repr(prompt.prompt_ids).encode()).digest()
    positive = 0.5 + digest[0] / 512
    # Ten samples, evenly spread; none may leave [0, 1].
    steps = [(2 * m - 9) / math.sqrt(33) for m in range(10)]  # mean 0, variance 1
    variance = digest[1] / 256 * min(0.04, ((1 - positive) / steps[-1]) ** 2)
    return Prediction(
        label="positive",
        probability=positive,
        variance=variance,
        probabilities={"negative": 1 - positive, "positive": positive},
        entropy=0.5,
        mutual_information=0.1,
        samples=10,
        standard_error=math.sqrt(variance / 9),
        novelty=(1 + digest[2]) / 256,
        sample_probabilities=tuple(positive + step * math.sqrt(variance) for step in steps),
    )
