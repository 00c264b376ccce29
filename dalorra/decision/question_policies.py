"""`question_policies.json`: thresholds of single questions, calibrated on labelled answers to each.

An adapter for questions has one policy for all of them, which promises nothing, because nobody
knows what will be asked. A question whose answers were labelled has thresholds and a temperature of
its own, and a promise: word for word, for these options. No file that the adapter's
digest covers depends on them, and each names the adapter that it was made for, as a policy does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dalorra.decision.atomic_file import write_atomically
from dalorra.decision.policy import Policy
from dalorra.decision.policy_digest import with_digest
from dalorra.errors import AdapterError, first_fault
from dalorra.questions import Option, Question, QuestionKind

QUESTION_POLICIES_FILE: Final = "question_policies.json"
"""Name of the file inside an adapter directory."""


class QuestionPolicy(BaseModel):
    """The policy of one question.

    Attributes:
        kind, instructions, options: of the question; options with their descriptions, in order.
        policy: holds for it alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: QuestionKind
    instructions: str
    options: tuple[tuple[str, str], ...]
    policy: Policy

    @classmethod
    def of(cls, question: Question, policy: Policy) -> Self:
        """That of a question."""
        options = tuple((option.name, option.description) for option in question.options)
        return cls(
            kind=question.kind,
            instructions=question.instructions,
            options=options,
            policy=policy,
        )

    @property
    def question(self) -> Question:
        """What it is about."""
        return Question(self.kind, self.instructions, tuple(Option(*one) for one in self.options))


_FILE: Final = TypeAdapter(tuple[QuestionPolicy, ...])


def read_question_policies(folder: Path) -> dict[str, QuestionPolicy]:
    """Those of an adapter directory, by `Question.digest`; none where it has no such file.

    Raises:
        AdapterError: the file cannot be read or is damaged.
    """
    path = folder / QUESTION_POLICIES_FILE
    if not path.exists():
        return {}
    try:
        found = _FILE.validate_json(path.read_bytes())
        return {one.question.digest: one for one in found}
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise AdapterError(
            f"{path} is not valid: {first_fault(error)}; restore it, or delete it and calibrate "
            "its questions again"
        ) from error


def keep_question_policy(folder: Path, question: Question, policy: Policy) -> Path:
    """Writes the policy that was calibrated on a question, in place of an earlier one.

    Raises:
        AdapterError: see `read_question_policies`.
    """
    kept: Mapping[str, QuestionPolicy] = {
        **read_question_policies(folder),
        question.digest: QuestionPolicy.of(question, with_digest(policy, question)),
    }
    path = folder / QUESTION_POLICIES_FILE
    write_atomically(path, _FILE.dump_json(tuple(kept.values()), indent=2) + b"\n")
    return path
