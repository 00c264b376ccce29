"""The input of `/v1/decisions`: a text, or messages, calls of tools and what these returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag

from dalorra.questions import as_text
from service.errors import Fault, InvalidBodyError


class _Part(BaseModel):
    # Marks for a prompt cache and the like are not needed here.
    model_config = ConfigDict(frozen=True, extra="ignore")


class TextPart(_Part):
    """A piece of text, of whoever says it."""

    type: Literal["input_text", "output_text"]
    text: str


class JsonPart(_Part):
    """An object, or an array of objects."""

    type: Literal["input_json"]
    data: dict[str, JsonValue] | list[dict[str, JsonValue]]


class RefusalPart(_Part):
    """What an assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


def _no_image(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "input_image":
        raise ValueError("this server reads text alone: leave images out")
    return value


Part = Annotated[
    Annotated[TextPart | JsonPart | RefusalPart, Field(discriminator="type")],
    BeforeValidator(_no_image),
]
Parts = Annotated[list[Part], Field(min_length=1)]


def _kind_of_words(value: Any) -> str:
    return "text" if isinstance(value, str) else "parts"


Words = Annotated[
    Annotated[str, Tag("text")] | Annotated[Parts, Tag("parts")], Discriminator(_kind_of_words)
]
"""Text, in one piece or in several."""


class Message(_Part):
    """What somebody says."""

    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system", "assistant"]
    content: Words


class FunctionCall(_Part):
    """A tool that an assistant calls, with arguments in JSON."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CustomToolCall(_Part):
    """A tool that an assistant calls, with a text."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str


class ToolOutput(_Part):
    """What a tool returned."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Words


_BY_TYPE = {
    "message": "message",
    "function_call": "function_call",
    "custom_tool_call": "custom_tool_call",
    "function_call_output": "output",
    "custom_tool_call_output": "output",
}


def _kind_of_item(value: Any) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else None
    return _BY_TYPE.get(kind) if isinstance(kind, str) else None


Item = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[CustomToolCall, Tag("custom_tool_call")]
    | Annotated[ToolOutput, Tag("output")],
    Discriminator(
        _kind_of_item,
        custom_error_type="no_item",
        custom_error_message="must be a message, a call of a tool, or the output of one",
    ),
]
Items = Annotated[list[Item], Field(min_length=1)]


def _kind_of_input(value: Any) -> str:
    return "text" if isinstance(value, str) else "items"


Conversation = Annotated[
    Annotated[str, Tag("text")] | Annotated[Items, Tag("items")], Discriminator(_kind_of_input)
]
"""What `/v1/decisions` takes as its input."""


def rendered(
    conversation: str | Sequence[Message | FunctionCall | CustomToolCall | ToolOutput],
) -> str:
    """The text that a model reads: who says what, a line for each; a lone user's words alone.

    No chat template is involved: what a client writes is text to the model, and its control tokens
    would be, too.

    Raises:
        InvalidBodyError: an output is of no call before it.
    """
    if isinstance(conversation, str):
        return conversation
    match conversation:
        case [Message(role="user") as alone]:
            return spoken(alone.content)
    called: dict[str, str] = {}
    lines = []
    for place, item in enumerate(conversation):
        match item:
            case Message():
                lines.append(f"{item.role}: {spoken(item.content)}")
            case FunctionCall() | CustomToolCall():
                called[item.call_id] = item.name
                given = item.arguments if isinstance(item, FunctionCall) else item.input
                lines.append(f"assistant calls {item.name}: {given}")
            case ToolOutput():
                if item.call_id not in called:
                    message = "is the output of no call before it: name the call_id of one"
                    raise InvalidBodyError(
                        Fault(("input", place, "call_id"), message, "value_error")
                    )
                lines.append(f"{called[item.call_id]} returns: {spoken(item.output)}")
    return "\n".join(lines)


def spoken(words: str | Sequence[TextPart | JsonPart | RefusalPart]) -> str:
    """What several parts say together."""
    if isinstance(words, str):
        return words
    return "".join(map(_said, words))


def _said(part: TextPart | JsonPart | RefusalPart) -> str:
    match part:
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
        case JsonPart():
            return as_text(part.data)
