"""Predictions and typed questions as tools for language models: one name, one description, one
way to read each.

LangChain, MCP and `GET /tool.json` show the same tool.
"""

from collections.abc import Sequence
from typing import Any, Protocol

TOOL_NAME = "predict_with_uncertainty"
"""The tool that asks the default adapter."""

ASK_NAME = "ask_with_uncertainty"
"""The tool that asks typed questions."""

ASK_DESCRIPTION = (
    "Answers typed questions about a state, which is text or JSON: noul (is it so?), choice (which "
    "option?) and score (which level?). Each answer has calibrated probabilities, their variance, "
    "and a decision. accept: act on the answer. escalate: the model does not know, involve a "
    "human. clarify: the state leaves the answer open, ask for more information."
)
"""What that tool does, for the model that chooses it."""

_ADVICE = {
    "accept": "This is reliable enough to act on.",
    "escalate": "The model does not know: do not act on this, hand the case to a human or to a "
    "stronger model.",
    "clarify": "The input leaves the answer open: get more information, add it to the input and "
    "ask again.",
}


class Answer(Protocol):
    """The part of a prediction that is put into words."""

    @property
    def label(self) -> str: ...
    @property
    def probability(self) -> float: ...
    @property
    def variance(self) -> float: ...
    @property
    def decision(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def truncated(self) -> bool: ...


def tool_name(adapter: str | None) -> str:
    """The tool that asks an adapter by its name, or the default one."""
    return f"{TOOL_NAME}_{adapter}" if adapter else TOOL_NAME


def adapter_of(tool: str) -> str | None:
    """The adapter that a tool asks; None is the default.

    Raises:
        ValueError: there is no such tool.
    """
    adapter = tool.removeprefix(TOOL_NAME).removeprefix("_")
    if tool not in (TOOL_NAME, tool_name(adapter or None)):
        raise ValueError(f"there is no such tool: call {TOOL_NAME}")
    return adapter or None


def tool_description(adapter: str, labels: Sequence[str]) -> str:
    """What the tool does, for the model that chooses it."""
    return (
        f"Decides which label fits the input ({', '.join(labels)}; adapter {adapter!r}), and says "
        "how far to trust that: a calibrated probability, the variance of that probability, and a "
        "decision. accept: act on the label. escalate: the model does not know, involve a human. "
        "clarify: the input leaves the answer open, ask for more information."
    )


def field_description(field: str) -> str:
    """What belongs into one field of the adapter's template."""
    return f"The {field.replace('_', ' ')} to judge, as plain text."


def parameters_schema(fields: Sequence[str]) -> dict[str, Any]:
    """JSON schema of the tool's arguments: the fields of the adapter's template, all needed."""
    return {
        "type": "object",
        "properties": {
            name: {"type": "string", "description": field_description(name)} for name in fields
        },
        "required": list(fields),
        "additionalProperties": False,
    }


def function_schema(
    adapter: str, labels: Sequence[str], fields: Sequence[str], *, name: str = TOOL_NAME
) -> dict[str, Any]:
    """The tool as OpenAI's function calling and whoever copied it take it, in strict mode."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": tool_description(adapter, labels),
            "parameters": parameters_schema(fields),
            "strict": True,
        },
    }


def sentence(prediction: Answer) -> str:
    """An answer as a language model should read it: what, how sure, and what to do next."""
    cut = " The input was cut to fit, its end was not read." if prediction.truncated else ""
    return (
        f"{prediction.decision}: {prediction.label} (probability {prediction.probability:.3g}, "
        f"variance {prediction.variance:.3g}). {_ADVICE[prediction.decision]} "
        f"Reason: {prediction.reason}.{cut}"
    )


def answer_sentence(name: str, said: str, decision: str, reason: str) -> str:
    """An answer to a typed question, likewise.

    Args:
        name: of the question.
        said: the answer in words.
        decision: what to do with it.
        reason: why.
    """
    return f"{name}: {decision}: {said}. {_ADVICE[decision]} Reason: {reason}."
