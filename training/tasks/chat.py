"""A task asked as a conversation, in the markup of the base model's own chat template.

The template is rendered once, with marks for the task's fields, and what comes out is an ordinary
prompt format: an adapter stores it, so that no later chat template, and no date that one writes,
can change what it is asked. The markup is the template's; what an input says is text.
"""

import re
from collections.abc import Sequence
from string import Formatter
from typing import Any, Final, Literal, cast

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from dalorra.errors import ConfigError
from dalorra.prompts import PromptFormat

CHAT: Final = "chat"
"""The template of a task that has messages instead."""

_MARK: Final = re.compile("\ue000([^\ue001]*)\ue001")  # characters of private use


class Message(BaseModel):
    """One turn.

    Attributes:
        content: text with named fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


def chat_format(
    messages: Sequence[Message],
    plain: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
) -> PromptFormat:
    """The prompt format of a conversation with one model.

    Args:
        messages: turns, the last of them the user's.
        plain: cue, which goes on where the tokenizer's generation prompt ends, and labels.
        tokenizer: of the model, with a chat template.
        model: its name, for messages.

    Raises:
        ConfigError: no chat template, or one that these messages do not go with.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            f"task.template: the tokenizer of {model} has no chat template; "
            "name an instruct model, or write the template out"
        )
    turns = [{"role": turn.role, "content": _marked(turn.content)} for turn in messages]
    asked, whole = (_rendered(tokenizer, turns, model, answer=answer) for answer in (False, True))
    if not whole.startswith(asked):
        raise ConfigError(
            f"task.template: the chat template of {model} changes the messages for an answer; "
            "write the template out"
        )
    cue = whole.removeprefix(asked) + (plain.answer_cue or "")
    if not cue:
        raise ConfigError(
            f"task.answer_cue: the chat template of {model} begins an answer with nothing; "
            "set a cue, such as 'Answer:'"
        )
    literals = _MARK.split(_without_bos(asked, tokenizer))
    names = literals[1::2]
    if lost := sorted(set(plain.fields) - set(names)):
        raise ConfigError(
            f"task.messages: the chat template of {model} leaves out the field {lost[0]!r}"
        )
    for at in range(0, len(literals), 2):
        literals[at] = literals[at].replace("{", "{{").replace("}", "}}")
    literals[1::2] = [f"{{{name}}}" for name in names]
    return plain.model_copy(update={"template": "".join(literals), "answer_cue": cue})


def _marked(content: str) -> str:
    parts = Formatter().parse(content)
    return "".join(text + (f"\ue000{name}\ue001" if name else "") for text, name, _, _ in parts)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], model: str, *, answer: bool
) -> str:
    """The conversation, up to where an answer would begin, or with its beginning.

    A label stands where an answer begins, so a model that can think first is told not to.
    """
    try:
        return cast(
            str,
            tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=answer, enable_thinking=False
            ),
        )
    except TemplateError as error:
        raise ConfigError(f"task.messages: the chat template of {model} says: {error}") from error


def _without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Without the beginning-of-sequence token that the tokenizer puts in front of every text."""
    bos: Any = tokenizer.bos_token
    if bos and cast(list[int], tokenizer("").input_ids)[:1] == [tokenizer.bos_token_id]:
        return text.removeprefix(bos)
    return text
