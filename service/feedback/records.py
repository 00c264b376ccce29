"""What is kept of an answer, and what feedback says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dalorra.questions import Asked

if TYPE_CHECKING:
    from service.engine.interfaces import Input


def readable(value: Input) -> str | Mapping[str, Any]:
    """An input as a log or a file has it."""
    return value.as_dict() if isinstance(value, Asked) else value


class Source(NamedTuple):
    """What answered: equal sources make equal answers and promise the same.

    Attributes:
        adapter_digest: of the adapter.
        bank: its mask bank, as JSON.
        policy: the policy that was served, as JSON.
        novelty_digest: of the novelty features; None where there are none.
    """

    adapter_digest: str
    bank: str
    policy: str
    novelty_digest: str | None


class KeptAnswer(NamedTuple):
    """One answer that waits for feedback.

    Attributes:
        request_id: names the answer among its owner's.
        answered_at: seconds since the epoch.
        label, probability, variance, novelty, cut_at, samples: see `Prediction`.
        decision: what the client was told.
        accepted: whether the policy itself accepts it, at its own target.
        input: the input as JSON; None where inputs are not kept.
        called: what the client calls each label, as JSON; None where that is its name.
        owner: whose it is, see `service.keys.owner_name`.
    """

    request_id: str
    answered_at: float
    label: str
    probability: float
    variance: float
    novelty: float | None
    cut_at: int | None
    samples: int
    decision: str
    accepted: bool
    input: str | None
    called: str | None = None
    owner: str = ""


class AnswerRecord(NamedTuple):
    """What a judgement needs of a kept answer; `source` is a number of the store's."""

    source: int
    label: str
    decision: str
    accepted: bool
    true_label: str | None
    called: str | None


@dataclass(frozen=True, slots=True)
class Feedback:
    """The truth about one answer.

    Attributes:
        request_id: of the answer.
        label: the true one.
        predicted: the one that was answered.
        decision: what the client was told to do with it.
        adapter: the name of its adapter.
    """

    request_id: str
    label: str
    predicted: str
    decision: str
    adapter: str

    @property
    def correct(self) -> bool:
        """Whether the answer was right."""
        return self.label == self.predicted


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer whose truth is known, for calibration.

    Attributes:
        request_id: names the answer, after its owner where there is one.
        label, probability, variance, novelty, cut_at: of the answer.
        true_label: the truth.
        precision: what computed the answer, see `Predictor.precision`; empty where it is not known.
    """

    request_id: str
    label: str
    probability: float
    variance: float
    novelty: float | None
    cut_at: int | None
    true_label: str
    precision: str
