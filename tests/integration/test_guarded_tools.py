"""LangChain's own agent and middleware, whose guard asks a running server."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.decisions import Choice
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from dalorra.client import Client
from dalorra.client.langchain import DalorraDecisionModel, unaccepted
from tests.server_process import KEY, ServerProcess, start

pytestmark = pytest.mark.integration

TEAM = Choice(instructions="Who pays?", criteria={"billing": "invoices", "nobody": None})
Mode = Literal["batched", "per_call"]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with start("fake", predictor={"questions": True}) as process:
        yield process.until_ready()


@pytest.fixture(scope="module")
def orders(server: ServerProcess) -> dict[bool, int]:
    """An order whose refund is accepted, and one whose is not."""
    asked = {"question": TEAM.model_dump(mode="json")}
    with Client(server.url, api_key=KEY) as client:
        found = {}
        for order in range(40):
            state = {"tool": "refund", "arguments": {"order": order}}
            found[client.ask(state, asked)["question"].decision == "accept"] = order
    return found


class ToolCaller(GenericFakeChatModel):
    """Says what it is told to; tools are bound to it in vain."""

    def bind_tools(self, tools: Any, **options: Any) -> "ToolCaller":
        return self


def agent_that_refunds(
    order: int, when: Callable[[Any], bool], mode: Mode, refunded: list[int]
) -> Any:
    @tool
    def refund(order: int) -> str:
        """Refunds an order."""
        refunded.append(order)
        return "done"

    call = ToolCall(name="refund", args={"order": order}, id="call-1", type="tool_call")
    said = [AIMessage("", tool_calls=[call]), AIMessage("That is all.")]
    guarded = {"refund": {"allowed_decisions": ["approve", "reject"], "when": when}}
    return create_agent(
        ToolCaller(messages=iter(said)),
        [refund],
        middleware=[HumanInTheLoopMiddleware(guarded, interrupt_mode=mode)],
        checkpointer=InMemorySaver(),
    )


@pytest.mark.parametrize("mode", ["batched", "per_call"])
@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_a_person_is_asked_about_what_is_not_accepted(
    server: ServerProcess, orders: dict[bool, int], mode: Mode, verdict: str
):
    model = DalorraDecisionModel(base_url=server.url, api_key=KEY)
    thread: Any = {"configurable": {"thread_id": "1"}}
    start_of_talk: Any = {"messages": [("user", "Refund it.")]}

    refunded: list[int] = []
    agent = agent_that_refunds(orders[True], unaccepted(model, TEAM), mode, refunded)
    assert "__interrupt__" not in agent.invoke(start_of_talk, thread)
    assert refunded == [orders[True]]

    refunded.clear()
    agent = agent_that_refunds(orders[False], unaccepted(model, TEAM), mode, refunded)
    [pause] = agent.invoke(start_of_talk, thread)["__interrupt__"]
    assert refunded == []
    decision = {"type": verdict}
    reply = {pause.id: decision} if mode == "per_call" else {"decisions": [decision]}
    done = agent.invoke(Command(resume=reply), thread)
    assert refunded == ([orders[False]] if verdict == "approve" else [])
    assert done["messages"][-1].content == "That is all."
