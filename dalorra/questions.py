"""Typed questions: a state, what is asked about it, and the options that can be chosen.

Three kinds cover what decision models are asked: `noul`, yes or no; `choice`, one of several named
options; `score`, one of several ordered levels. All are answered alike, by a distribution over the
options; the kinds differ in what is made of it.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from dalorra.errors import InputError

QuestionKind = Literal["noul", "choice", "score"]

LIMITS: dict[QuestionKind, tuple[int, int]] = {"noul": (2, 2), "choice": (2, 255), "score": (2, 10)}
"""Fewest and most options of each kind."""

YES, NO = "true", "false"
"""Names of the options of `noul`."""


@dataclass(frozen=True, slots=True)
class Option:
    """What can be chosen.

    Attributes:
        name: what the answer calls it, and what a model reads where it has no description.
        description: what it means; empty where the question does not say.
    """

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about a state.

    Attributes:
        kind: see the module.
        instructions: the question itself.
        options: of `noul` those named `YES` and `NO`; of `score` the levels, lowest first.

    Raises:
        InputError: no instructions, too few or too many options, or two of one name.
    """

    kind: QuestionKind
    instructions: str
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        if not self.instructions.strip():
            raise InputError("the question has no instructions: say what is asked")
        least, most = LIMITS[self.kind]
        if not least <= len(self.options) <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            raise InputError(
                f"a {self.kind} question has {len(self.options)} options: give {wanted}"
            )
        names = [option.name for option in self.options]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"two options are called {twice!r}: give each a name of its own")
        if "" in (name.strip() for name in names):
            raise InputError("an option has no name: give it one")

    @classmethod
    def noul(cls, instructions: str, yes: str = "", no: str = "") -> "Question":
        """Whether something is so; `yes` and `no` say what each would mean."""
        return cls("noul", instructions, (Option(YES, yes), Option(NO, no)))

    @property
    def digest(self) -> str:
        """Names the question by its words: kind, instructions and options.

        Only the levels of a score have an order that means something.
        """
        options = [[option.name, option.description] for option in self.options]
        words = [self.kind, self.instructions, options if self.kind == "score" else sorted(options)]
        text = json.dumps(words, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a state: the input of an adapter that answers questions."""

    state: str
    question: Question

    def as_dict(self) -> dict[str, Any]:
        """The same for a log or a file."""
        question = self.question
        return {
            "state": self.state,
            "kind": question.kind,
            "instructions": question.instructions,
            "options": {option.name: option.description for option in question.options},
        }


def as_text(value: Any) -> str:
    """What a model reads of a JSON value: a string as it is, anything else as compact JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
