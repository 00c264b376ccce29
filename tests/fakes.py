"""A predictor without weights: deterministic, and as slow or as broken as a test asks."""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from dalorra.adapter.manifest import Card
from dalorra.adapter.registered import RegisteredQuestion
from dalorra.decision.policy import CalibratedPoint, Policy
from dalorra.decision.policy_digest import with_digest
from dalorra.decision.predictive import Prediction
from dalorra.errors import AdapterError, InputError, TooLongError
from dalorra.forward.batches import Batching, State
from dalorra.prompts import InputFields, Prompt
from dalorra.questions import Asked
from service.engine import Limits

POISON = ord("☠")
BLOW = ord("⚡")
"""In a prompt, breaks the device for good."""
CUE = (1, 2)
POLICY = with_digest(Policy(min_probability=0.8, max_variance=0.02, source="made up for a test"))
PROMISE = with_digest(
    Policy(
        min_probability=0.6,
        max_variance=0.05,
        source="made up for a test",
        target_error=0.05,
        confidence=0.95,
        path=tuple(
            CalibratedPoint(
                target_error=target,
                min_probability=probability,
                max_variance=variance,
                accepted=0.3,
                error=target / 2,
                upper_bound=target,
            )
            for target, probability, variance in ((0.02, 0.9, 0.03), (0.01, 0.999, 0.05))
        ),
    )
)


def limits(**changes: float) -> Limits:
    """Limits that are in nobody's way, apart from `changes`."""
    roomy = Limits(queue_requests=512, queue_rows=65_536, batch_seconds=1e6, stall_seconds=300)
    return replace(roomy, **changes)  # type: ignore[arg-type]


class FakePredictor:
    """One token per character; the answer depends on the prompt alone.

    Attributes:
        label: of every answer.
        seconds: time of one forward,
        row_seconds: and of each of its rows.
        gate: a forward waits for it; open by default.
        broken: every forward fails.
        most: prompts that the memory has room for.
        encoded: inputs that were tokenised.
        batches: prompts of each forward that was tried.
        read_states: of all of these: none is read twice.
    """

    scope = "answer_tokens"
    labels = ("negative", "positive")
    samples = 10
    max_tokens = 300
    nbytes = 1_000
    registered: tuple[RegisteredQuestion, ...] = ()

    def __init__(
        self,
        fields: Sequence[str] = ("sentence",),
        *,
        policy: Policy = POLICY,
        digest: str = "0123abcd",
        label: str = "positive",
        batch_rows: int = 2_048,
        seconds: float = 0.0,
        row_seconds: float = 0.0,
        examples: int = 0,
        on_warm_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.card = Card("fake-model", "fake-adapter", digest, "dalorra")
        self.fields = tuple(fields)
        self.prefix_cache = None  # for it is its own base, too
        self.novelty = None
        self.policy = policy
        self.question_policies: dict[str, Policy] = {}
        self.batching = Batching(budget=batch_rows, price=40, padding=0.25, pads=False)
        self.label = label
        self.seconds = seconds
        self.row_seconds = row_seconds
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False
        self.most = 1_000
        self.encoded: list[InputFields] = []
        self.batches: list[list[Prompt]] = []
        self.read_states: set[tuple[int, ...]] = set()
        self._examples = examples
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

    def policy_for(self, value: object) -> Policy:
        return self.policy

    def packed_rows(self, prompt: Prompt) -> int:
        return len(prompt.prompt_ids) + self.samples * len(prompt.cue_ids)

    def state_of(self, prompt: Prompt) -> State:
        return State(prompt.state_ids, prompt.shared)

    def cached_tokens(self, prompt: Prompt) -> int:
        return len(prompt.state_ids) if prompt.state_ids in self.read_states else 0

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        self.batches.append(list(prompts))
        self.read_states |= {prompt.state_ids for prompt in prompts}
        self.gate.wait()
        rows = sum(map(self.packed_rows, prompts))
        if seconds := self.seconds + self.row_seconds * rows:
            time.sleep(seconds)
        if any(BLOW in prompt.prompt_ids for prompt in prompts):
            self.broken = True
        if self.broken:
            raise RuntimeError("the device fell off the bus")
        if len(prompts) > self.most:
            raise MemoryError
        if any(POISON in prompt.prompt_ids for prompt in prompts):
            raise RuntimeError("this prompt is poisoned")
        return [expected_prediction(prompt, self.label) for prompt in prompts]

    def read(self, path: Path | None) -> Self:
        """As a base on which it is the only adapter."""
        return self

    def bind(self, adapter: Self, name: str | None) -> Self:
        return adapter

    def examples(self) -> list[Prompt]:
        return [Prompt((n,) * 30, CUE) for n in range(self._examples)]

    def warm_up(self) -> Iterator[Callable[[], object]]:
        yield self._warm_up

    def _warm_up(self) -> None:
        self._on_warm_up()
        if self.broken:
            raise RuntimeError("the device fell off the bus")


class FakeQuestions(FakePredictor):
    """Answers questions: each option is as likely as a hash of it and of what is asked.

    Attributes:
        asked: every question, as it came.
    """

    labels = ()
    max_tokens = 100_000

    def __init__(self, **options: Any) -> None:
        super().__init__((), **options)
        self.asked: list[Asked] = []

    def policy_for(self, value: Any) -> Policy:
        return self.question_policies.get(value.question.digest, self.policy)

    def encode(self, value: Any) -> Prompt:
        if not isinstance(value, Asked):
            raise InputError("this adapter answers questions")
        self.asked.append(value)
        question = value.question
        words = (question.kind, question.instructions, *(o.description for o in question.options))
        state, asked = tuple(map(ord, value.state)), tuple(map(ord, "\n".join(words)))
        names = tuple(option.name for option in question.options)
        prompt = Prompt((*state, *asked), CUE, shared=len(state), options=names)
        if prompt.tokens > self.max_tokens:
            raise TooLongError(f"{prompt.tokens} tokens are more than {self.max_tokens}")
        return prompt

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        return [
            answer_to_question(prompt, base)
            for prompt, base in zip(prompts, super().predict(prompts), strict=True)
        ]


def answer_to_question(prompt: Prompt, base: Prediction) -> Prediction:
    """What the fake answers: `base` says how sure it is."""
    names = prompt.options or ()
    weights = []
    for name in names:
        digest = hashlib.sha256(f"{prompt.prompt_ids} {name}".encode()).digest()
        weights.append(math.exp(6 * digest[0] / 255))
    probabilities = {name: w / sum(weights) for name, w in zip(names, weights, strict=True)}
    label = max(probabilities, key=probabilities.__getitem__)
    deviations = [p - base.probability for p in base.sample_probabilities]
    room = min(probabilities[label], 1 - probabilities[label])
    scale = min(1.0, room / max(map(abs, deviations))) if any(deviations) else 0.0
    samples = tuple(probabilities[label] + scale * d for d in deviations)
    return replace(
        base,
        label=label,
        probability=probabilities[label],
        probabilities=probabilities,
        variance=scale**2 * base.variance,
        standard_error=scale * (base.standard_error or 0.0),
        sample_probabilities=samples,
    )


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
        digest = f"digest-of-{adapter}"
        predictor.card = replace(predictor.card, adapter=name or adapter, digest=digest)
        self.bound.append(predictor)
        return predictor


def expected_prediction(prompt: Prompt, label: str = "positive") -> Prediction:
    """What the fake answers to a prompt."""
    digest = hashlib.sha256(repr(prompt.prompt_ids).encode()).digest()
    positive = 0.5 + digest[0] / 512
    # Ten samples, evenly spread; none may leave [0, 1].
    steps = [(2 * m - 9) / math.sqrt(33) for m in range(10)]  # mean 0, variance 1
    variance = digest[1] / 256 * min(0.04, ((1 - positive) / steps[-1]) ** 2)
    return replace(
        prediction(positive, variance, novelty=(1 + digest[2]) / 256),
        label=label,
        cut_at=prompt.tokens if prompt.truncated else None,
        standard_error=math.sqrt(variance / 9),
        sample_probabilities=tuple(positive + step * math.sqrt(variance) for step in steps),
    )


def prediction(probability: float, variance: float, novelty: float | None = None) -> Prediction:
    """One with these numbers, as far as a policy looks at them."""
    return Prediction(
        label="positive",
        probability=probability,
        variance=variance,
        probabilities={"negative": 1 - probability, "positive": probability},
        entropy=0.5,
        mutual_information=0.1,
        samples=10,
        novelty=novelty,
    )
