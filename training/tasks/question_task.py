"""A task that is made of questions about the records of several data sets."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from dalorra.question_prompts import QuestionFormat
from training.tasks.task import Task


class QuestionTask(BaseModel):
    """Which data sets questions are drawn from, and how many.

    A set is a built-in task with a recipe (`training.tasks.recipe`), such as `sst2`, whose training
    split is read, or one with the split that is: `rotten_tomatoes/test`.

    Attributes:
        name: of the task.
        sets: questions about these are trained on; a part of their records is only evaluated on.
        held_out: questions about these are only evaluated on: they are of kinds that the adapter
            has not seen, and choose its thresholds.
        per_set: questions about each set that are trained on.
        evaluated: questions about each set that are evaluated on, at most one for each record.
        elsewhere: share of the questions that are asked about a state of another set, which leaves
            the answer open.
        longest_state: characters of a record beyond which it is left out.
        prompt: how a question is asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    sets: tuple[str, ...] = Field(min_length=1)
    held_out: tuple[str, ...] = ()
    per_set: int = Field(default=1000, ge=1)
    evaluated: int = Field(default=500, ge=1)
    elsewhere: float = Field(default=0.1, ge=0.0, lt=1.0)
    longest_state: int = Field(default=1500, ge=1)
    prompt: QuestionFormat = QuestionFormat()

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [*self.sets, *self.held_out]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice!r} is named twice: a set is trained on, or held out")
        return self


def _kind(value: Any) -> str:
    """What a task is given as: by reference, described, or made of questions."""
    if isinstance(value, Mapping):
        return QuestionTask.__name__ if "sets" in value else Task.__name__
    if isinstance(value, BaseModel):
        return type(value).__name__
    return "str" if isinstance(value, str) else Task.__name__


AnyTask = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[Task, Tag(Task.__name__)]
    | Annotated[QuestionTask, Tag(QuestionTask.__name__)],
    Discriminator(_kind),
]
"""A task, or the name of one or of a file that describes one."""
