"""How the records of labelled data sets become questions: what `recipes/*.yaml` hold.

A recipe says in several wordings what a state can look like, what can be asked about it and what
each label is called; `training.tasks.drawing` draws among them.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dalorra.errors import ConfigError, first_fault
from dalorra.questions import LIMITS
from dalorra.templates import fields_of
from training.tasks.task import Task, text_keys
from training.yaml_file import read_yaml

NAME, MEANING = "name", "meaning"
"""Fields of templates that speak of one answer: what it is called, and what it means."""

_FOLDER: Final = Path(__file__).parent / "recipes"

StateForm = str | dict[str, str]
"""A template of a state, or templates of the fields of one that is an object."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(_Part):
    """One of the possible answers, such as a label.

    Attributes:
        names: what it may be called; a question takes the n-th of every answer.
        means: wordings of what it means.
        asks: wordings of a question that is answered yes where this is right.
    """

    names: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()


class Scale(_Part):
    """A question with ordered levels.

    Attributes:
        asks: its wordings.
        levels: level → label that it stands for, lowest first; a label may have several, of which
            nobody knows which is right.
    """

    asks: tuple[str, ...] = Field(min_length=1)
    levels: Annotated[dict[str, str], BeforeValidator(text_keys)]


class Way(_Part):
    """States, and what can be asked about them.

    Attributes:
        states: a question takes one of them.
        choice: wordings of a question for one of the answers.
        asks: wordings of a question whether one answer is right, with `{name}` or `{meaning}`.
        denies: the same for whether it is not.
        scores: questions with levels.
    """

    states: tuple[StateForm, ...] = Field(min_length=1)
    choice: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    denies: tuple[str, ...] = ()
    scores: tuple[Scale, ...] = ()

    @property
    def about_record(self) -> bool:
        """Whether its states say anything of a record."""
        return any(fields_of(template) for state in self.states for template in texts_of(state))


def _answer(value: Any) -> Any:
    """A text alone is what the answer means."""
    return {"means": [value]} if isinstance(value, str) else value


class Recipe(_Part):
    """How the records of some tasks become questions.

    Attributes:
        tasks: built-in tasks that it is for.
        ways: each draws on its own states.
        labels: the answers, by the task's names of the labels.
        choices: in place of these, fields of a record that hold its own answers, in the order of
            the task's labels; a record may lack some.
        options: fewest and most labels that are options of a choice; all of them by default.
        none: whether "none of these" may be an option.
        means: wordings of an answer's description, with `{meaning}`.
        elsewhere: what `asks` are answered of another set's state: `no`, or that is `open`.
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    ways: tuple[Way, ...] = Field(min_length=1)
    labels: Annotated[
        dict[str, Annotated[Answer, BeforeValidator(_answer)]], BeforeValidator(text_keys)
    ] = Field(default_factory=dict)
    choices: tuple[str, ...] = ()
    options: tuple[int, int] | None = None
    none: bool = False
    means: tuple[str, ...] = ("{meaning}",)
    elsewhere: Literal["no", "open"] = "open"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.labels) == bool(self.choices):
            raise ValueError("give either `labels` or `choices`")
        if len({len(answer.names) for answer in self.labels.values()}) > 1:
            raise ValueError(
                "give every label equally many names, the n-th of each for one wording"
            )
        asked = {bool(answer.asks) for answer in self.labels.values()}
        if any(not way.asks for way in self.ways) and len(asked) > 1:
            raise ValueError("give `asks` to every label, to none, or to every one of the ways")
        for scale in (scale for way in self.ways for scale in way.scores):
            least, most = LIMITS["score"]
            if not least <= len(scale.levels) <= most:
                raise ValueError(f"give a score {least} to {most} levels")
            if stray := set(scale.levels.values()) - set(self.labels):
                raise ValueError(f"levels names {min(stray)!r}, which labels does not have")
        return self

    def check(self, task: Task) -> None:
        """Compares it with a task that it is for.

        Raises:
            ConfigError: a label is missing or too much, or a template has a field that no record
                of the task has.
        """
        if self.labels and set(self.labels) != set(task.labels):
            odd = min(set(self.labels) ^ set(task.labels))
            raise ConfigError(
                f"the recipe of {task.name}: labels: {odd!r} is in one of recipe and task alone"
            )
        known = set(task.prompt_format.fields) | set(self.choices)
        for template, of_answer in self._templates():
            fields = set(fields_of(template))
            meant = not self.labels or all(answer.means for answer in self.labels.values())
            allowed = (
                {NAME} | ({MEANING} if meant and self.labels else set()) if of_answer else set()
            )
            if stray := fields - known - allowed:
                raise ConfigError(
                    f"the recipe of {task.name}: {template!r} has the field {min(stray)!r}, which "
                    f"it cannot: there are {', '.join(sorted(known | allowed))}"
                )

    def _templates(self) -> Iterator[tuple[str, bool]]:
        """All of them, and whether each speaks of one answer."""
        for way in self.ways:
            yield from ((text, False) for state in way.states for text in texts_of(state))
            yield from ((text, False) for text in way.choice)
            yield from ((text, False) for scale in way.scores for text in scale.asks)
            yield from ((text, True) for text in (*way.asks, *way.denies))
        yield from ((text, False) for answer in self.labels.values() for text in answer.asks)


def texts_of(state: StateForm) -> tuple[str, ...]:
    """The templates in it."""
    return (state,) if isinstance(state, str) else tuple(state.values())


@cache
def recipes() -> Mapping[str, Recipe]:
    """Those that come with the project, by the name of the task."""
    found: dict[str, Recipe] = {}
    for path in sorted(_FOLDER.glob("*.yaml")):
        recipe = read_recipe(path)
        found |= dict.fromkeys(recipe.tasks, recipe)
    return found


def read_recipe(path: Path) -> Recipe:
    """Reads a file.

    Raises:
        ConfigError: it is no recipe; the message names what is wrong.
    """
    try:
        return Recipe.model_validate(read_yaml(path, f"recipe {path}"))
    except ValidationError as error:
        raise ConfigError(f"recipe {path}: {first_fault(error)}") from error
