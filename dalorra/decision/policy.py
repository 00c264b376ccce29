"""When to believe an answer: thresholds on its probability, its variance and its novelty.

An answer with mean probability p and variance v, by the rule of BayesLoRA (section 4):

    accept    when p ≥ τ_p and v ≤ τ_v

What is not accepted is told apart by why. BayesLoRA asks the variance: above τ_v the model does not
know, below it the input is ambiguous. Measured, it is the other way round: samples disagree *more*
where an input holds reasons for two labels than where the adapter hardly feels it (Proposition 1;
`benchmarks.doubts`). Familiarity does tell: no clear answer to an input like those that it was
trained for is the input's doing, to any other one the model's (the reading of Mukhoti et al., 2023,
"Deep deterministic uncertainty"). With the novelty p-value (`dalorra.decision.novelty`) that is

    clarify   when the input is more familiar than a fifth of the usual ones: it leaves the answer
              open
    escalate  otherwise: the model does not know

An adapter without novelty features cannot tell, and escalates. So is, before anything else, what
promises nothing: an input that was cut to fit, of which something was not read; every input under a
policy that accepts nothing; and one whose novelty p-value is below the policy's level ε.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dalorra.decision.atomic_file import write_atomically
from dalorra.errors import AdapterError, InputError, first_fault

if TYPE_CHECKING:
    from dalorra.decision.predictive import PosteriorSamples, Prediction

POLICY_FILE = "policy.json"
"""Name of the policy inside an adapter directory."""

NEVER = 2.0
"""The τ_p of a policy that never accepts: no probability reaches it."""

FAMILIAR = 0.2
"""Novelty p-value from which on an input that is not accepted is taken to leave its answer open.

Chosen on the development half of `benchmarks.doubts`, for all adapters at once.
"""

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Decision(StrEnum):
    """What to do with an answer."""

    ACCEPT = "accept"
    ESCALATE = "escalate"
    CLARIFY = "clarify"


class Answer(Protocol):
    """The part of a prediction that thresholds are about."""

    @property
    def label(self) -> str: ...
    @property
    def probability(self) -> float: ...
    @property
    def variance(self) -> float: ...
    @property
    def novelty(self) -> float | None: ...
    @property
    def cut_at(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and the one sentence that explains it."""

    decision: Decision
    reason: str


class CalibratedPoint(BaseModel):
    """The thresholds of one target error, with the names of `Policy`."""

    model_config = _STRICT

    target_error: float = Field(ge=0.0, le=1.0)
    min_probability: float = Field(ge=0.0, le=1.0)
    max_variance: float = Field(ge=0.0)
    accepted: float = Field(ge=0.0, le=1.0)
    error: float = Field(ge=0.0)
    upper_bound: float = Field(ge=0.0)


class Policy(BaseModel):
    """Thresholds of one adapter, where they came from and what they promise.

    Where `costs` are given, the three errors are mean costs of an accepted answer.

    Attributes:
        min_probability: τ_p; above 1 (`NEVER`) for a policy that accepts nothing.
        max_variance: τ_v; a variance of a probability is at most 0.25.
        source: what the thresholds were picked on, in words.
        target_error: the error rate among accepted answers that they were picked for.
        confidence: probability, over the draw of the labelled examples, that the target is kept;
            None for thresholds that promise nothing.
        n: number of labelled examples that they were picked on, or tested on with a confidence.
        accepted: share of those that the policy accepts.
        escalated: share of those that it escalates.
        error: error rate among those accepted; None when none is.
        upper_bound: upper confidence limit of that error rate, never above the target. The
            promise is the target: the pair was chosen among several, this limit is of one alone.
        class_targets: label → largest error rate among accepted answers with that label.
        costs: label, or true:predicted pair of labels → cost of a false accept; others cost 1.
        temperature: divides the label logits of every sample before the softmax.
        min_novelty_p: ε; an input with a lower novelty p-value is escalated. None or 0: no limit.
        novelty_digest: of the novelty features that ε was used with.
        path: thresholds for stricter targets, see `at`.
        date: when they were picked, ISO 8601.
        data_digest: of the labelled examples.
        precisions: what computed the answers that they were tested on, such as `bfloat16 on cpu`:
            they hold in each of these and in no other. A server names the one that it runs in.
        bank: the mask bank that they hold for, see `BankSpec.identity`.
        adapter_digest: the adapter that they hold for.
        question: `Question.digest` of the only question that they hold for; None: of any.
        digest: of all that was calibrated, see `policy_digest`; None: made by hand.
    """

    model_config = _STRICT

    min_probability: float = Field(ge=0.0, le=NEVER)
    max_variance: float = Field(ge=0.0)
    source: str = Field(min_length=1)
    target_error: float | None = Field(default=None, ge=0.0, le=1.0)
    confidence: float | None = Field(default=None, gt=0.0, lt=1.0)
    n: int | None = Field(default=None, ge=1)
    accepted: float | None = Field(default=None, ge=0.0, le=1.0)
    escalated: float | None = Field(default=None, ge=0.0, le=1.0)
    error: float | None = Field(default=None, ge=0.0)
    upper_bound: float | None = Field(default=None, ge=0.0)
    class_targets: dict[str, float] = Field(default_factory=dict)
    costs: dict[str, float] = Field(default_factory=dict)
    temperature: float = Field(default=1.0, gt=0.0)
    min_novelty_p: float | None = Field(default=None, ge=0.0, lt=1.0)
    novelty_digest: str | None = None
    path: tuple[CalibratedPoint, ...] = ()
    date: str | None = None
    data_digest: str | None = None
    precisions: tuple[str, ...] = ()
    bank: dict[str, int | str] | None = None
    adapter_digest: str | None = None
    question: str | None = Field(default=None, exclude_if=lambda value: value is None)
    digest: str | None = Field(default=None, exclude_if=lambda value: value is None)

    @property
    def hand_made(self) -> bool:
        """Whether it accepts answers by thresholds that nobody has calibrated."""
        return self.digest is None and not self.never_accepts

    @property
    def never_accepts(self) -> bool:
        """Whether no answer whatever is accepted."""
        return self.min_probability > 1.0

    @classmethod
    def never(
        cls, adapter_digest: str | None = None, why: str = "no thresholds have been picked"
    ) -> Self:
        """The policy of an adapter without valid thresholds: nothing is accepted."""
        return cls(
            min_probability=NEVER, max_variance=0.0, source=why, adapter_digest=adapter_digest
        )

    def held_to(
        self,
        adapter_digest: str,
        bank: Mapping[str, int | str],
        novelty_digest: str | None = None,
        question: str | None = None,
    ) -> Self:
        """This policy if it was made for all of that, else one that never accepts.

        One with a novelty level needs the novelty features that it was made with, too; one without
        a level does not ask for them. Thresholds promise nothing about probabilities that another
        adapter or other samples average to, so they are void; the reason of every answer then
        says so.
        """
        if self.bank is not None and self.bank != dict(bank):
            made, now = (
                ", ".join(f"{name} {value}" for name, value in described.items())
                for described in (self.bank, bank)
            )
            return self.never(
                adapter_digest, f"its policy was made for another mask bank ({made}; now {now})"
            )
        if self.adapter_digest not in (None, adapter_digest):
            return self.never(
                adapter_digest,
                f"its policy was made for another adapter ({str(self.adapter_digest)[:12]}…, "
                f"this is {adapter_digest[:12]}…)",
            )
        if self.min_novelty_p and self.novelty_digest not in (None, novelty_digest):
            now = f"these are {novelty_digest[:12]}…" if novelty_digest else "there are none now"
            return self.never(
                adapter_digest,
                "its policy was made with other novelty features "
                f"({str(self.novelty_digest)[:12]}…, {now})",
            )
        if (self.digest or self.question) and self.question != question:
            return self.never(adapter_digest, "its policy was made for another question")
        return self

    def served_in(self, precision: str) -> Self:
        """This policy if its promise was tested in that precision, else one that never accepts.

        Rounding moves probabilities and variances, by more in bfloat16 than some thresholds leave
        room for, and each kind of device rounds in its own way: it is another function.

        Args:
            precision: of the predictor, such as `bfloat16 on cpu`.
        """
        served = self
        if self.confidence is not None and precision not in self.precisions:
            tested = " and ".join(self.precisions) or "a precision that it does not name"
            served = self.never(
                self.adapter_digest,
                f"its policy was tested in {tested}, and this is {precision}: calibrate it here",
            )
        return served.model_copy(update={"precisions": (precision,)})

    def at(self, target_error: float) -> Self:
        """The policy for a stricter target error, from the calibrated path.

        It holds with the same confidence for each target by itself, never accepts what this one
        does not, and accepts nothing when the target is stricter than any that was reached.

        Raises:
            InputError: the target is looser than this policy's, no probability, or the policy was
                not calibrated, or for another adapter, and so has no error rate to promise.
        """
        if not 0.0 < target_error <= 1.0:
            raise InputError(f"target_error {target_error:g} is not between 0 and 1")
        if self.target_error is not None and target_error > self.target_error:
            raise InputError(
                f"target_error {target_error:g} is looser than the {self.target_error:g} that the "
                "adapter was calibrated for: ask for that or less"
            )
        if self.target_error is None or self.confidence is None:
            why = self.source if self.never_accepts else "the adapter's policy promises none"
            raise InputError(
                f"target_error cannot be chosen, because {why}: leave it out, or calibrate the "
                "adapter"
            )
        if self.never_accepts or target_error == self.target_error:
            return self
        reached = [point for point in self.path if point.target_error <= target_error]
        if not reached:
            changes: dict[str, Any] = {
                "min_probability": NEVER,
                "target_error": target_error,
                "accepted": 0.0,
                "escalated": None,
                "error": None,
                "upper_bound": None,
                "path": (),
            }
        else:
            point = max(reached, key=lambda point: point.target_error)
            stricter = tuple(p for p in reached if p.target_error < point.target_error)
            changes = {**dict(point), "escalated": None, "path": stricter}
        return self.model_copy(update=changes)

    def excludes(self, answer: Answer) -> bool:
        """Whether it is not accepted whatever its probability and variance are.

        The input is too novel, or it was cut to fit.
        """
        return answer.cut_at is not None or self.novel(answer.novelty)

    def novel(self, novelty: float | None) -> bool:
        """Whether an input is too novel, or the adapter cannot tell although the policy asks.

        Args:
            novelty: its p-value; None when the adapter has no novelty features.
        """
        level = self.min_novelty_p or 0.0
        return level > 0.0 and not (novelty is not None and novelty >= level)

    def tempered(self, samples: PosteriorSamples) -> PosteriorSamples:
        """The samples at the policy's temperature."""
        return samples.tempered(self.temperature)

    def summarise(self, samples: PosteriorSamples, labels: Sequence[str]) -> list[Prediction]:
        """Predictive moments at the policy's temperature; what `decide` then decides on.

        Args:
            samples: of B inputs, as the network gives them.
            labels: K names.

        Returns:
            B predictions, order kept; none has a novelty.
        """
        from dalorra.decision.predictive import summarise  # torch, which thresholds do without

        return summarise(self.tempered(samples), labels)

    def decide(self, answer: Answer) -> Verdict:
        """Applies the rule to one answer. A number that is not finite is never accepted."""
        verdict = self._by_the_rule(answer)
        if self.hand_made:
            return Verdict(verdict.decision, f"{verdict.reason} (hand-made policy)")
        return verdict

    def _by_the_rule(self, answer: Answer) -> Verdict:
        if (reason := self._objection(answer)) is not None:
            return Verdict(Decision.ESCALATE, reason)
        p, floor = told_apart(answer.probability, self.min_probability)
        v, limit = told_apart(answer.variance, self.max_variance)
        if answer.probability >= self.min_probability and answer.variance <= self.max_variance:
            return Verdict(
                Decision.ACCEPT,
                f"probability {p} is at least {floor} and variance {v} is at most {limit}",
            )
        doubt = (
            f"probability {p} is below {floor}"
            if answer.probability < self.min_probability
            else f"variance {v} is above {limit}"
        )
        if answer.novelty is None or not math.isfinite(answer.novelty):
            return Verdict(
                Decision.ESCALATE,
                f"{doubt}, and without novelty features nothing tells an open input from an "
                "unknown one",
            )
        novelty, least = told_apart(answer.novelty, FAMILIAR)
        if answer.novelty >= FAMILIAR:
            return Verdict(
                Decision.CLARIFY,
                f"{doubt}, and the input is familiar (novelty p-value {novelty} is at least "
                f"{least}): it leaves the answer open",
            )
        return Verdict(
            Decision.ESCALATE,
            f"{doubt}, and four of five usual inputs are more familiar (novelty p-value {novelty} "
            f"is below {least}): the adapter does not know",
        )

    def _objection(self, answer: Answer) -> str | None:
        """Why it is escalated whatever its probability and variance are, if it is."""
        for name, value in (("probability", answer.probability), ("variance", answer.variance)):
            if not math.isfinite(value):
                return f"{name} is not a finite number: the model failed"
        if answer.cut_at is not None:
            return f"the input was cut at {answer.cut_at} tokens: what came after was not read"
        if self.never_accepts:
            return (
                f"nothing is accepted, because {self._why_never()} (probability "
                f"{answer.probability:.3g}, variance {answer.variance:.3g})"
            )
        return self._why_novel(answer.novelty) if self.novel(answer.novelty) else None

    def _why_novel(self, novelty: float | None) -> str:
        level = self.min_novelty_p or 0.0
        if novelty is None or not math.isfinite(novelty):
            return f"the input's novelty is not known, and the policy asks for at least {level:.3g}"
        p, limit = told_apart(novelty, level)
        return (
            f"novelty p-value {p} is below {limit}: the input is unlike those that the adapter "
            "was trained on"
        )

    def _why_never(self) -> str:
        if self.target_error is None:
            return self.source
        sure = f" with {100 * self.confidence:.6g} % confidence" if self.confidence else ""
        within = f"the error among accepted within {self.target_error:.3g}{sure}"
        return f"no thresholds were shown to keep {within}"

    def save(self, path: Path) -> None:
        """Writes JSON to `path`, or to `policy.json` in it when it is a directory, atomically."""
        path = path / POLICY_FILE if path.is_dir() else path
        write_atomically(path, (self.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            AdapterError: the file is missing, not JSON, or holds anything but a policy.
        """
        path = path / POLICY_FILE if path.is_dir() else path
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise AdapterError(f"policy {path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise AdapterError(
                f"policy {path} is not valid: {first_fault(error)}; pick thresholds again or "
                "restore the file"
            ) from error


def told_apart(value: float, threshold: float) -> tuple[str, str]:
    """Both numbers with three significant digits, or as many as show which is larger."""
    digits = 3
    while value != threshold and f"{value:.{digits}g}" == f"{threshold:.{digits}g}":
        digits += 1  # ends at 17 digits, where different floats have different texts
    return f"{value:.{digits}g}", f"{threshold:.{digits}g}"
