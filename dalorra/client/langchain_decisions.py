"""Typed questions as a decision model of LangChain, and as a guard in front of tools.

```python
from langchain_core.decisions import Noul
from dalorra.client.langchain import DalorraDecisionModel, unaccepted

model = DalorraDecisionModel(base_url="http://localhost:8000")
response = model.invoke({"state": text, "questions": {"refund": Noul(instructions="…")}})
response.answers["refund"].decision

HumanInTheLoopMiddleware(
    interrupt_on={
        "refund": {
            "allowed_decisions": ["approve", "reject"],
            "when": unaccepted(model, Noul(instructions="Is this refund justified?")),
        }
    }
)
```

Needs the `langchain` extra; no torch, no server code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Protocol

from langchain_core.decisions import (
    BaseDecisionModel,
    Box,
    ChoiceAnswer,
    ClassifierResponse,
    NoulAnswer,
    Question,
    ScoreAnswer,
    State,
)
from langchain_core.messages import BaseMessage, convert_to_openai_messages
from pydantic import BaseModel, Field

from dalorra.client import Answers, Decision, Promise
from dalorra.client._connected import Connected


class Doubt(BaseModel):
    """What an answer says of itself; see `dalorra.client.NoulAnswer`."""

    decision: Decision
    reason: str
    variance: float
    standard_error: float | None
    novelty: float | None
    promise: Promise | None
    samples: int
    adapter: str
    request_id: str


class DoubtfulNoul(NoulAnswer, Doubt):
    """`NoulAnswer`, and how far to believe it."""


class DoubtfulChoice(ChoiceAnswer, Doubt):
    """`ChoiceAnswer`, and how far to believe it."""


class DoubtfulScore(ScoreAnswer, Doubt):
    """`ScoreAnswer`, and how far to believe it."""


DoubtfulAnswer = Annotated[
    DoubtfulNoul | DoubtfulChoice | DoubtfulScore, Field(discriminator="type")
]


class DoubtfulResponse(ClassifierResponse):
    """`ClassifierResponse` whose answers say how far to believe them."""

    answers: dict[str, DoubtfulAnswer]  # type: ignore[assignment]  # narrower: a dict is invariant


class DalorraDecisionModel(Connected, BaseDecisionModel):
    """Asks a DALorRA server typed questions about a state.

    Args:
        model: which adapter answers; the server's questions adapter by default.
        base_url: address of the server.
        api_key: bearer key, if the server wants one.
        timeout: seconds for one attempt.
        retries: what to do when the server is busy.

    Invoking it raises a `ClientError` when there is no answer, and `ValueError` for a question or a
    state that only a model with eyes could answer.
    """

    model: str = "jev-latest"

    @property
    def _provider(self) -> str:
        return "dalorra"

    def _classify(self, state: State, questions: dict[str, Question]) -> DoubtfulResponse:
        return _response(self._client.ask(_plain(state), _asked(questions), model=self.model))

    async def _aclassify(self, state: State, questions: dict[str, Question]) -> DoubtfulResponse:
        return _response(
            await self._async_client().ask(_plain(state), _asked(questions), model=self.model)
        )


_KEPT_CALLS: Final = 10_000


class ToolCallRequest(Protocol):
    """The part of LangChain's type of that name that a guard looks at."""

    @property
    def tool_call(self) -> Mapping[str, Any]: ...


def unaccepted(
    model: DalorraDecisionModel,
    question: Question,
    *,
    reads: Callable[[ToolCallRequest], State] | None = None,
) -> Callable[[ToolCallRequest], bool]:
    """A `when` for `HumanInTheLoopMiddleware`: whether a person should look at a tool's call.

    One should, unless the answer is accepted; of a noul, the answer must be yes, too.

    The middleware asks again when the run resumes, and lets a tool run that a person has rejected
    if the answer is another one then. So the guard keeps what it found of the last 10,000 calls,
    whatever becomes of the server. One that resumes in another process asks the server again.

    Args:
        model: whose answers have a decision.
        question: what must be so before the tool runs on its own.
        reads: what the question is about; name and arguments of the call by default.
    """
    read = reads or _name_and_arguments
    found: dict[str, bool] = {}

    def when(request: ToolCallRequest) -> bool:
        state = read(request)
        call = repr((request.tool_call.get("id"), _plain(state)))
        if call not in found:
            found[call] = doubtful(state)
            if len(found) > _KEPT_CALLS:
                del found[next(iter(found))]
        return found[call]

    def doubtful(state: State) -> bool:
        response = model.invoke({"state": state, "questions": {"question": question}})
        answer = response.answers["question"]
        if not isinstance(answer, DoubtfulNoul | DoubtfulChoice | DoubtfulScore):
            raise TypeError("a guard needs a DalorraDecisionModel, whose answers have a decision")
        if answer.decision != "accept":
            return True
        return isinstance(answer, DoubtfulNoul) and answer.noul < 0.5

    return when


def _name_and_arguments(request: ToolCallRequest) -> State:
    return {"tool": request.tool_call["name"], "arguments": request.tool_call["args"]}


def _asked(questions: Mapping[str, Question]) -> dict[str, dict[str, Any]]:
    for name, question in questions.items():
        if isinstance(question, Box):
            raise ValueError(
                f"question {name!r} is about an image, and the server reads text alone"
            )
    return {
        name: question.model_dump(mode="json", exclude_none=True)
        | ({"criteria": question.criteria} if question.type == "choice" else {})
        for name, question in questions.items()
    }


def _plain(state: Any) -> Any:
    """A state as JSON; messages are objects with a role and a content.

    Raises:
        ValueError: it has something else inside.
    """
    match state:
        case BaseMessage():
            return _text_alone(convert_to_openai_messages(state))
        case str() | int() | float() | None:
            return state
        case Mapping():
            return {str(name): _plain(value) for name, value in state.items()}
        case Sequence():
            return [_plain(value) for value in state]
    raise ValueError(f"the state holds a {type(state).__name__}, which JSON does not have")


def _text_alone(message: Any) -> Any:
    for block in message["content"] if isinstance(message["content"], list) else ():
        if block.get("type") != "text":
            raise ValueError(f"a message has a part of type {block.get('type')!r}: send text alone")
    return message


def _response(answers: Answers) -> DoubtfulResponse:
    first = next(iter(answers.answers.values()))
    return DoubtfulResponse.model_validate(
        {
            "model": answers.model,
            "answers": {name: one.model_dump() for name, one in answers.answers.items()},
            "usage": answers.usage.model_dump(),
            "request_id": first.request_id.rpartition("-")[0],
        }
    )
