"""States with the right answers to one question, from a file."""

from collections.abc import Mapping
from pathlib import Path

from dalorra.errors import ConfigError
from dalorra.questions import NO, YES, Asked, Question, as_text
from dalorra.tables import Unreadable
from training.tasks import Example, Task
from training.tasks.sources import read_file

STATE, LABEL = "state", "label"
"""Columns of the file."""

_MEANS: Mapping[str, str] = {
    **dict.fromkeys(("true", "True", "yes", "Yes", "1"), YES),
    **dict.fromkeys(("false", "False", "no", "No", "0"), NO),
}
"""What may stand for yes and no."""


def read_labelled_states(path: Path, question: Question) -> list[Example]:
    """Every record as an example of the question.

    A state is a text, or what JSON can say. A label is the name of an option; of `noul` also yes or
    no; of `score` also the number of a level, the lowest 0.

    Raises:
        ConfigError: the file cannot be read, or a record of it has no state, or a label that is no
            option; the message names the record.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is no file: give one with columns {STATE!r} and {LABEL!r}")
    task = Task(
        name="question",
        template=f"{{{STATE}}}",
        labels={option.name: option.name for option in question.options},
        label_column=LABEL,
        label_values=_label_values(question),
    )
    found = []
    for record in read_file(path):
        values, state = dict(record.values), record.values.get(STATE)
        if state is not None and not isinstance(state, Unreadable):
            values[STATE] = as_text(state)
        read = task.example(values, record.where)
        found.append(Example(Asked(read.texts[STATE], question), read.label))
    return found


def _label_values(question: Question) -> dict[str, str]:
    names = [option.name for option in question.options]
    if question.kind == "noul":
        return dict(_MEANS)
    numbers = {str(level): name for level, name in enumerate(names)}
    own = {name.strip(): name for name in names}
    return {**numbers, **own} if question.kind == "score" else own
