"""The description of a task, and the step from a record of its data to an example."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dalorra.errors import ConfigError
from dalorra.labels import LabelsBy
from dalorra.prompts import PromptFormat
from dalorra.questions import Asked
from dalorra.tables import Unreadable
from training.tasks.chat import CHAT, Message


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled input.

    Attributes:
        input: the template's fields, or a question about a state.
        label: name of the true label, or a value of `Task.out_of_scope`; empty where `target` says
            that there is none.
        target: probabilities of a question's options, in its order, where the answer is open among
            several; None: all on the label.
        kind: what it is counted under in an evaluation, such as the name of a data set.
    """

    input: Mapping[str, str] | Asked
    label: str
    target: tuple[float, ...] | None = None
    kind: str = ""

    @property
    def content(self) -> dict[str, Any]:
        """The input as JSON can hold it."""
        return asdict(self.input) if isinstance(self.input, Asked) else dict(self.input)

    @property
    def texts(self) -> dict[str, str]:
        """What the input says, by field; of a question, the state that it is about."""
        return {"state": self.input.state} if isinstance(self.input, Asked) else dict(self.input)

    def saying(self, texts: Mapping[str, str]) -> "Example":
        """The same with other `texts`."""
        if isinstance(self.input, Asked):
            return replace(self, input=replace(self.input, state=texts["state"]))
        return replace(self, input=texts)


def text_keys(value: Any) -> Any:
    """Keys as text: YAML reads `0:` and `true:` as a number and a boolean."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


def _label_texts(value: Any) -> Any:
    """A list of label names stands for names whose texts are a space and the name."""
    if isinstance(value, list):
        return {str(name): f" {name}" for name in value}
    return text_keys(value)


TextKeyed = Annotated[dict[str, str], BeforeValidator(text_keys)]
Labels = Annotated[dict[str, str], BeforeValidator(_label_texts)]


class HubData(BaseModel):
    """A data set on the Hugging Face hub.

    Attributes:
        id: e.g. `stanfordnlp/sst2`.
        config: its configuration, where it has several.
        revision: branch, tag or commit.
        splits: our split name → the hub's, where they differ.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    config: str | None = None
    revision: str | None = None
    splits: TextKeyed = Field(default_factory=dict)


class Task(BaseModel):
    """A classification task: how it is asked, what may be answered, where its data are.

    Attributes:
        name: also the folder that holds its local files.
        description: one line.
        template: prompt with named fields, without its constant tail; or `chat`.
        messages: of a chat, which the base model's own chat template renders; the last is the
            user's.
        answer_cue: that constant tail; in a chat, what follows the template's own beginning of an
            answer, and may be absent. An encoder has no use for it, and does not see it.
        labels: label name → the text that answers so, in order; or a list of names.
        labels_by: see `dalorra.labels`; `auto` also makes labels classes of a head where their
            trie would have more than `training.asking.MOST_NODES` rows.
        columns: field → column of the data, where they differ.
        label_column: column of the true label.
        label_values: value in that column, as text → label name. Empty: the column holds names.
        out_of_scope: values in that column that no label answers. `load_examples` leaves their
            records out, unless it is asked for them.
        choices_column: column of a multiple-choice question's choices, rendered into the field
            `choices` as `A. first. B. second.` with the labels as letters. It is a list of
            texts, and the label column then holds an index from 0 or a letter; or an object
            `{"text": […], "label": […]}`, and the label column then holds one of its labels.
        hub: the data set on the hub.
        files: split → path, without suffix, in a local folder, tried after `<name>/<split>`.
        evaluation_split: the published split that test results are reported on.
        members: names of the built-in tasks that a mixture is made of. A mixture has the one
            field `prompt`: each member's full prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    template: str
    messages: tuple[Message, ...] = ()
    answer_cue: str | None = Field(default=None, min_length=1)
    labels: Labels
    labels_by: LabelsBy = Field(default="auto", exclude_if=lambda value: value == "auto")
    columns: TextKeyed = Field(default_factory=dict)
    label_column: str = "label"
    label_values: TextKeyed = Field(default_factory=dict)
    out_of_scope: tuple[str, ...] = Field(default=(), exclude_if=lambda values: not values)
    choices_column: str | None = None
    hub: HubData | None = None
    files: TextKeyed = Field(default_factory=dict)
    evaluation_split: str = "validation"
    members: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.template == CHAT) != bool(self.messages):
            raise ValueError("a chat has both: `template: chat` and messages")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last of the messages must be the user's")
        fields = self.prompt_format.fields
        if self.members and fields != ("prompt",):
            raise ValueError("a mixture's template has exactly one field, {prompt}")
        if self.choices_column is not None and "choices" not in fields:
            raise ValueError("choices_column needs the field {choices} in the template")
        if stray := set(self.columns) - set(fields):
            raise ValueError(f"columns names {min(stray)!r}, which the template does not have")
        if stray := set(self.label_values.values()) - set(self.labels):
            raise ValueError(f"label_values names {min(stray)!r}, which labels does not have")
        if stray := set(self.out_of_scope) & {*self.labels, *self.label_values}:
            raise ValueError(f"out_of_scope names {min(stray)!r}, which a label answers")
        return self

    @cached_property
    def prompt_format(self) -> PromptFormat:
        """Template, cue and labels, as an adapter stores them; of a chat, without its markup."""
        return PromptFormat(
            template="\n".join(turn.content for turn in self.messages) or self.template,
            answer_cue=self.answer_cue,
            labels=self.labels,
            labels_by=self.labels_by,
        )

    def example(self, record: Mapping[str, object], where: str) -> Example:
        """Reads one record of the task's data.

        Args:
            record: column → value.
            where: file and its number there, for messages.

        Raises:
            ConfigError: a column is missing or holds something else than it should.
        """
        read = self.with_choices(record, where)
        if self.choices_column is None:
            return read
        fields = {name: text for name, text in read.texts.items() if name not in self.labels}
        choices = ((name, text) for name, text in read.texts.items() if name in self.labels)
        return Example(
            fields | {"choices": " ".join(f"{a}. {text}." for a, text in choices)}, read.label
        )

    def with_choices(self, record: Mapping[str, object], where: str) -> Example:
        """The same, but each of a multiple-choice question's choices is a field of its own.

        Its name is the letter that stands for it.
        """
        fields = {
            name: _text(record, self.columns.get(name, name), where)
            for name in self.prompt_format.fields
            if self.choices_column is None or name != "choices"
        }
        columns = ", ".join(repr(self.columns.get(name, name)) for name in fields)
        if self.choices_column is None:
            label = self._label(record, where)
        else:
            choices, label = self._choices(record, self.choices_column, where)
            fields |= choices
        if not any(text.strip() for text in fields.values()):
            raise ConfigError(f"{where}: no text in column {columns}: fill it or remove the row")
        return Example(fields, label)

    def _label(self, record: Mapping[str, object], where: str) -> str:
        known = self.label_values or {name: name for name in self.labels}
        value = _canonical(_cell(record, self.label_column, where))
        if value in self.out_of_scope:
            return value
        if value not in known:
            raise ConfigError(
                f"{where}: column {self.label_column!r} holds {value!r}, "
                f"expected one of {_listed(known)}"
            )
        return known[value]

    def _choices(
        self, record: Mapping[str, object], column: str, where: str
    ) -> tuple[dict[str, str], str]:
        """The choices by their letters, and the letter of the right one."""
        cell = _cell(record, column, where)
        letters = tuple(self.labels)
        texts, keys = _texts_and_keys(cell)
        if texts is None:
            raise ConfigError(
                f"{where}: column {column!r} must be a list of texts, or an object with equally "
                "long lists 'text' and 'label'"
            )
        if not 2 <= len(texts) <= len(letters):
            raise ConfigError(
                f"{where}: column {column!r} has {len(texts)} choices, "
                f"expected between 2 and {len(letters)} (labels {_listed(letters)})"
            )
        answer = _canonical(_cell(record, self.label_column, where))
        positions = (
            {key: index for index, key in enumerate(keys)}
            if keys
            else {str(i): i for i in range(len(texts))}
            | {letter: i for i, letter in enumerate(letters[: len(texts)])}
        )
        if answer not in positions:
            raise ConfigError(
                f"{where}: column {self.label_column!r} holds {answer!r}, "
                f"expected one of {_listed(positions)}"
            )
        return dict(zip(letters, texts, strict=False)), letters[positions[answer]]


def _texts_and_keys(cell: object) -> tuple[list[str] | None, list[str]]:
    """Texts of the choices and the data's own labels for them; None when the cell is neither."""
    texts, keys = cell, None
    if isinstance(cell, Mapping):
        texts, keys = cell.get("text"), cell.get("label")
        if not isinstance(keys, list) or not isinstance(texts, list) or len(keys) != len(texts):
            return None, []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None, []
    return texts, [_canonical(key) for key in keys or []]


def _cell(record: Mapping[str, object], column: str, where: str) -> object:
    if column not in record:
        raise ConfigError(f"{where}: no column {column!r}; it has {_listed(record)}")
    value = record[column]
    if value is None:
        raise ConfigError(f"{where}: column {column!r} is empty, expected a value")
    if isinstance(value, Unreadable):
        raise ConfigError(f"{where}: column {column!r} {value.problem}")
    return value


def _text(record: Mapping[str, object], column: str, where: str) -> str:
    value = _cell(record, column, where)
    if not isinstance(value, str):
        raise ConfigError(
            f"{where}: column {column!r} holds {value!r} ({type(value).__name__}), expected text"
        )
    return value


def _canonical(value: object) -> str:
    """A label as text: 1, 1.0, "1" are one label, and so are true and "True"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _listed(names: Mapping[str, object] | tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names)
