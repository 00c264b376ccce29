"""`questions.json`: questions in words that an adapter with labels of its own answers.

Whoever asks a server one of them gets this adapter's answer, and with it what its policy promises.
No probability depends on the file, so the adapter's digest does not cover it, as it does not cover
the policy.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dalorra.decision.atomic_file import write_atomically
from dalorra.errors import AdapterError, ConfigError, first_fault
from dalorra.questions import NO, YES, Question

QUESTIONS_FILE: Final = "questions.json"


class RegisteredQuestion(BaseModel):
    """A question that an adapter's labels answer.

    Attributes:
        instructions: the question, compared without case and the white space around it.
        yes: the label that means yes, where the question can be asked as a `noul`; the other of
            two labels then means no.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    instructions: str = Field(pattern=r"\S")
    yes: str | None = None

    @property
    def key(self) -> str:
        """Equal for equal questions."""
        return _plain(self.instructions)

    @classmethod
    def about(cls, labels: Sequence[str], instructions: str, yes: str | None = None) -> Self:
        """A question for an adapter with these labels.

        Args:
            labels: of the adapter.
            instructions: the question.
            yes: see the class; by default the one of two labels that the question names.

        Raises:
            ConfigError: `yes` is none of them, or there are more than two; or the question is
                empty.
        """
        if not instructions.strip():
            raise ConfigError("the question is empty: say what is asked")
        if yes is None and len(labels) == 2:
            named = [label for label in labels if _names(instructions, label)]
            yes = named[0] if len(named) == 1 else None
        registered = cls(instructions=instructions.strip(), yes=yes)
        if problem := registered.misfit(labels):
            raise ConfigError(problem)
        return registered

    def misfit(self, labels: Sequence[str]) -> str | None:
        """Why an adapter with these labels cannot answer it, if it cannot."""
        if self.yes is None:
            return None
        if self.yes not in labels:
            return f"no label is called {self.yes!r}: yes is one of {', '.join(labels)}"
        if len(labels) != 2:
            return (
                f"with {len(labels)} labels no single one means no: register the question without "
                "yes, and ask it as a choice"
            )
        return None

    def answers(self, question: Question, labels: Sequence[str]) -> tuple[str, ...] | None:
        """The label that stands for each option of a question, in its order.

        None where the question is another: other words, other options, or options that are
        described, which says more than the labels do.

        Args:
            question: as it was asked.
            labels: of the adapter.
        """
        described = any(option.description for option in question.options)
        if described or _plain(question.instructions) != self.key:
            return None
        names = [option.name for option in question.options]
        if question.kind == "noul" and self.yes is not None:
            no = next(label for label in labels if label != self.yes)
            meaning = {YES: self.yes, NO: no}
            return tuple(meaning[name] for name in names)
        by_name = {_plain(label): label for label in labels}
        named = tuple(by_name.get(_plain(name), "") for name in names)
        return named if question.kind == "choice" and sorted(named) == sorted(labels) else None


_FILE = TypeAdapter(tuple[RegisteredQuestion, ...])


def read_registered(path: Path, labels: Sequence[str]) -> tuple[RegisteredQuestion, ...]:
    """The questions of an adapter directory that has the file.

    Raises:
        AdapterError: the file is damaged, or its questions are not about these labels.
    """
    file = path / QUESTIONS_FILE
    try:
        found = _FILE.validate_json(file.read_bytes())
    except OSError as error:
        raise AdapterError(f"{file} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise AdapterError(f"{file} is not valid: {first_fault(error)}") from error
    for registered in found:
        if problem := registered.misfit(labels):
            raise AdapterError(f"{file}: {registered.instructions!r}: {problem}")
    return found


def write_registered(path: Path, registered: Sequence[RegisteredQuestion]) -> None:
    """Writes what `read_registered` reads; no file for none."""
    file = path / QUESTIONS_FILE
    if registered:
        text = _FILE.dump_json(tuple(registered), indent=2, exclude_none=True)
        write_atomically(file, text + b"\n")
    else:
        file.unlink(missing_ok=True)


def _plain(words: str) -> str:
    return words.strip().casefold()


def _names(instructions: str, label: str) -> bool:
    """Whether a question has the label as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(_plain(label))}(?!\w)", _plain(instructions)) is not None
