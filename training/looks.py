"""Which labelled inputs an adapter was tested on: looking at them again proves less.

Each calibration has a probability of at most δ = 1 − confidence of keeping thresholds that break
their promise. Whoever calibrates six times on the same examples, each time with another target or
temperature, and takes the best, has six such chances, together at most 6 δ (the union bound: of
looks that are made whatever the others show). So every look is kept beside the adapter. The same
examples under the same settings give the same thresholds and are no second look; any other that
shares inputs with earlier ones is refused, or paid for: then its confidence is 1 − the sum of the
δ of all of them. An adapter that was trained again is another one, whose looks start anew.

Inputs are kept as short hashes. They cannot be read back, but whoever guesses an input can check
whether it was among them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dalorra.decision.atomic_file import write_atomically
from dalorra.decision.policy import Policy
from dalorra.errors import AdapterError, ConfigError, first_fault
from training.from_feedback import JudgedAnswer
from training.promise import Promise
from training.tasks import Example, data_digest

LOOKS_FILE: Final = "looks.json"
"""Name of the file inside an adapter directory."""

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
_HASH_DIGITS = 12  # 10,000 new inputs and 10,000 old ones share one by chance once in 3 million
_ROUNDING = 12  # digits of a confidence, so that 1 − 0.05 − 0.05 is 0.9


class Look(BaseModel):
    """One calibration.

    Attributes:
        adapter_digest: of the adapter that was calibrated.
        test: digest of all that decides the outcome; equal ones have equal outcomes.
        inputs: short hashes of the labelled inputs, ascending.
        spent: δ, the probability that it was allowed to go wrong with.
        source: what the examples were, in words.
        date: ISO 8601.
    """

    model_config = _STRICT

    adapter_digest: str
    test: str
    inputs: tuple[str, ...]
    spent: float = Field(gt=0.0, lt=1.0)
    source: str
    date: str

    def repeats(self, other: Self) -> bool:
        """Whether it is the same test as `other`, or goes on with it after more answers."""
        return self.test == other.test and set(self.inputs) >= set(other.inputs)

    def shared_with(self, other: Self) -> int:
        """Number of inputs that both looked at, for one adapter."""
        same = self.adapter_digest == other.adapter_digest
        return len(set(self.inputs) & set(other.inputs)) if same else 0


class Looks(BaseModel):
    """All looks that were taken with the adapters of one directory, oldest first."""

    model_config = _STRICT

    looks: tuple[Look, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Those of an adapter directory; none where nobody has looked.

        Raises:
            AdapterError: the file cannot be read or is damaged.
        """
        path = folder / LOOKS_FILE
        try:
            return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()
        except OSError as error:
            raise AdapterError(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise AdapterError(
                f"{path} is not valid: {first_fault(error)}; it says which examples the adapter "
                "was tested on: restore it, or delete it and calibrate on new examples"
            ) from error

    def save(self, folder: Path) -> None:
        """Writes JSON, atomically.

        Raises:
            AdapterError: the directory cannot be written.
        """
        path = folder / LOOKS_FILE
        try:
            write_atomically(path, (self.model_dump_json() + "\n").encode())
        except OSError as error:
            raise AdapterError(
                f"{path} cannot be written ({error.strerror}), which keeps what the adapter was "
                "tested on: calibrate a copy of the adapter that can"
            ) from error

    def others(self, look: Look) -> list[Look]:
        """Earlier looks at some of the same inputs, that are not this one."""
        return [one for one in self.looks if not look.repeats(one) and look.shared_with(one)]

    def confidence(self, look: Look, *, again: bool) -> float:
        """What a policy from this look can promise.

        Args:
            look: the one that is to be taken.
            again: whether to pay for earlier looks at some of the same inputs.

        Raises:
            ConfigError: there were such looks, and they are not to be paid for, or nothing is left.
        """
        others = self.others(look)
        left = round(1.0 - look.spent - sum(one.spent for one in others), _ROUNDING)
        known = any(look.repeats(one) for one in self.looks)
        if others and (left <= 0.0 or not (again or known)):
            last = max(others, key=lambda one: one.date)
            paid = (
                f"pay with --look-again, which leaves a confidence of {left:g}"
                if left > 0.0
                else "ask for a higher --confidence from the first look on: here none is left"
            )
            raise ConfigError(
                f"{look.shared_with(last):,} of these {len(look.inputs):,} inputs were tested on "
                f"before, with other settings or among others ({last.source}, {last.date}), and "
                f"the best of several looks breaks its promise more often: use new examples, or "
                f"{paid}"
            )
        return left

    def after(self, look: Look) -> Self:
        """These and one more, in place of those that it repeats."""
        kept = (one for one in self.looks if not look.repeats(one))
        return self.model_copy(update={"looks": (*kept, look)})


def look_at(
    examples: Sequence[Example],
    adapter_digest: str,
    promise: Promise,
    settings: Mapping[str, object],
    source: str,
) -> Look:
    """The look that a calibration on labelled examples is.

    Args:
        examples: all of them: those that only declare what is tested tell of the others.
        adapter_digest: of the adapter.
        promise: what is asked for.
        settings: all else that decides the outcome, as JSON can hold it.
        source: what the examples are, in words.
    """
    in_one_order = sorted(examples, key=lambda one: json.dumps([one.content, one.label]))
    test = [asdict(promise), settings, data_digest(in_one_order)]
    inputs = (json.dumps(one.content, sort_keys=True) for one in examples)
    return _look(inputs, adapter_digest, promise, test, source)


def look_at_feedback(
    answers: Sequence[JudgedAnswer],
    adapter_digest: str,
    promise: Promise,
    settings: Mapping[str, object],
) -> Look:
    """The look that a calibration from feedback is; see `look_at`.

    Its test holds at any moment: it repeats an earlier one while all answers that were judged then
    are still among these.
    """
    ids = (answer.request_id for answer in answers)
    return _look(ids, adapter_digest, promise, [asdict(promise), settings], "feedback")


def _look(
    inputs: Iterable[str], adapter_digest: str, promise: Promise, test: object, source: str
) -> Look:
    return Look(
        adapter_digest=adapter_digest,
        test=_hash(json.dumps([adapter_digest, test], sort_keys=True)),
        inputs=tuple(sorted({_hash(one)[:_HASH_DIGITS] for one in inputs})),
        spent=round(1.0 - promise.confidence, _ROUNDING),
        source=source,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def take_look(folder: Path, look: Look, calibrate: Callable[[], Policy], *, again: bool) -> Policy:
    """Calibrates, keeps the look, and only then gives the policy, with what it can promise.

    Args:
        folder: of the adapter.
        look: what `calibrate` is.
        calibrate: gives the policy as if nobody had looked before.
        again: see `Looks.confidence`.

    Raises:
        ConfigError: see `Looks.confidence`.
        AdapterError: the looks cannot be read or written.
    """
    Looks.load(folder).confidence(look, again=again)  # refuses before anything is answered
    policy = calibrate()
    looks = Looks.load(folder)  # once more: another process may have looked meanwhile
    confidence = looks.confidence(look, again=again)
    looks.after(look).save(folder)
    if not (others := looks.others(look)):
        return policy
    spent = " − ".join(f"{one.spent:.6g}" for one in (*others, look))
    source = f"{policy.source}; its inputs were looked at before: confidence 1 − {spent}"
    return policy.model_copy(update={"confidence": confidence, "source": source})
