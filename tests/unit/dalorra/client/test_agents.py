"""The tool as language models see it: LangChain, LangGraph and the schema for the others."""

import asyncio
import gc
import importlib.util
import json
import weakref
from keyword import kwlist, softkwlist
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.unit_tests import ToolsUnitTests
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from pydantic import BaseModel

from dalorra.client import (
    AsyncClient,
    Client,
    Info,
    Prediction,
    QueueFullError,
    Retries,
    _connected,
)
from dalorra.client.langchain import UncertainPredictTool
from dalorra.client.langgraph import predict_node, route_by_decision
from dalorra.client.tool import TOOL_NAME, parameters_schema, sentence
from dalorra.prompts import PromptFormat
from tests.client_script import ANSWER, Script, answering, error
from tests.fakes import FakePredictor
from tests.serving import serving

ROOT = Path(__file__).parents[4]
INFO = Info.model_validate(
    {
        "version": "1",
        "model": "m",
        "adapter": "fact-checks",
        "adapter_digest": "d",
        "method": "dalorra",
        "scope": "answer_tokens",
        "samples": 10,
        "labels": ["refuted", "supported"],
        "fields": ["claim", "source_text"],
        "on_overflow": "truncate",
        "policy": {"min_probability": 0.8, "max_variance": 0.02, "source": "s"},
        "limits": {
            "max_tokens": 1, "max_batch_inputs": 1, "max_body_bytes": 1,
            "max_queue_requests": 1, "max_queue_rows": 1, "request_timeout_seconds": 1,
        },
    }
)  # fmt: skip
VALUES = {"claim": "Water is wet.", "source_text": "It is."}


class TestUncertainPredictTool(ToolsUnitTests):
    """What LangChain asks of every tool."""

    @property
    def tool_constructor(self) -> type[BaseTool]:
        return UncertainPredictTool

    @property
    def tool_constructor_params(self) -> dict[str, Any]:
        return {"info": INFO, "api_key": "secret"}

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return VALUES


def scripted_tool(monkeypatch: pytest.MonkeyPatch, script: Script, **options: Any) -> BaseTool:
    """A tool whose clients talk to the script."""
    transport = httpx.MockTransport(script)
    for kind in (Client, AsyncClient):
        monkeypatch.setattr(
            f"dalorra.client._connected.{kind.__name__}",
            lambda kind=kind, **named: kind(transport=transport, **named),
        )
    retries = Retries(attempts=1)
    return UncertainPredictTool(**({"info": INFO, "retries": retries} | options))


def call(values: dict[str, Any]) -> dict[str, Any]:
    return {"name": TOOL_NAME, "args": values, "id": "1", "type": "tool_call"}


def both(tool: BaseTool, values: dict[str, Any]) -> ToolMessage:
    """What the tool says, which it must say in both ways."""
    said = tool.invoke(call(values))
    awaited = asyncio.run(tool.ainvoke(call(values)))
    assert isinstance(said, ToolMessage)
    assert (said.content, said.artifact, said.status) == (
        awaited.content, awaited.artifact, awaited.status,
    )  # fmt: skip
    return said


def test_the_model_reads_a_sentence_and_the_program_everything(monkeypatch: pytest.MonkeyPatch):
    script = answering(ANSWER | {"novelty": 0.5})
    message = both(scripted_tool(monkeypatch, script, api_key="secret"), VALUES)

    assert message.content == sentence(Prediction.model_validate(ANSWER))
    assert message.artifact == ANSWER | {"novelty": 0.5}
    assert message.status == "success"
    assert script.bodies[0] == {"input": VALUES}
    assert {request.headers["authorization"] for request in script.requests} == {"Bearer secret"}


def test_the_arguments_are_the_adapters_fields(monkeypatch: pytest.MonkeyPatch):
    script = answering(INFO.model_dump())
    tool = scripted_tool(monkeypatch, script, info=None)

    assert [request.url.path for request in script.requests] == ["/info"]
    schema = tool.tool_call_schema.model_json_schema()  # type: ignore[union-attr]
    assert list(schema["properties"]) == schema["required"] == ["claim", "source_text"]
    assert schema["properties"]["source_text"]["description"].startswith("The source text")
    assert "refuted, supported" in tool.description
    assert "fact-checks" in tool.description


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"claim": "a"}, "source_text: field required"),
        (VALUES | {"more": "x"}, "more: extra inputs are not permitted"),
        (VALUES | {"claim": ""}, "claim: string should have at least 1 character"),
        ({"text": "x"}, "claim: field required; source_text: field required; text: extra"),
    ],
)
def test_wrong_arguments_come_back_to_the_model(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], wrong: str
):
    script = answering()
    message = both(scripted_tool(monkeypatch, script), values)
    assert message.status == "error"
    assert f"The arguments do not fit ({wrong}" in message.content
    assert message.content.endswith("send claim, source_text, each as plain text.")
    assert script.requests == []


EVERY_NAME = sorted(
    {*dir(BaseModel), *dir(BaseTool), *kwlist, *softkwlist}
    | {"config", "run_manager", "args", "kwargs", "callbacks", "tool_call_id", "input", "name"}
    | {"values", "value", "type", "object", "title", "runtime", "store", "model_year"}
)


@pytest.mark.filterwarnings("ignore:Field name .* shadows an attribute")
def test_every_field_that_a_template_can_have_is_an_argument(monkeypatch: pytest.MonkeyPatch):
    taken = []
    for name in EVERY_NAME:
        try:
            PromptFormat(template=f"{{{name}}}", answer_cue=":", labels={"a": "a", "b": "b"})
        except ValueError:
            continue
        script = answering()
        info = INFO.model_copy(update={"fields": (name,)})
        tool = scripted_tool(monkeypatch, script, info=info)
        function = convert_to_openai_tool(tool)["function"]
        assert list(function["parameters"]["properties"]) == [name]
        assert parameters_schema((name,))["required"] == [name]
        assert tool.invoke(call({name: "fine"})).status == "success", name
        assert script.bodies[0] == {"input": {name: "fine"}}
        taken.append(name)
    assert {"config", "json", "schema", "model_year", "args", "kwargs", "input"} <= {*taken}


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (error(422, "invalid_input"), ["this is invalid_input", "Change it", "call again"]),
        (error(429, "queue_full", **{"Retry-After": "7"}), ["busy", "in 7 s"]),
        (error(503, "loading"), ["busy", "in a moment"]),
        (error(401, "unauthorized"), ["No prediction", "Go on without it", "request r1"]),
        (error(413, "body_too_large"), ["refused", "Calling again will not help"]),
        (error(500, "inference_failed"), ["No prediction", "request r1"]),
        (httpx.ConnectError("refused"), ["No prediction", "could not be reached"]),
    ],
)
def test_an_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, answer: Any, parts: list[str]):
    message = both(scripted_tool(monkeypatch, Script(answer)), VALUES)
    assert message.status == "error"
    assert message.artifact is None
    for part in parts:
        assert part in message.content


def test_a_tool_serves_one_event_loop_after_another(monkeypatch: pytest.MonkeyPatch):
    tool = scripted_tool(monkeypatch, answering())
    connect, clients = _connected.AsyncClient, list[weakref.ref[AsyncClient]]()

    def remembered(**options: Any) -> AsyncClient:
        client = connect(**options)
        clients.append(weakref.ref(client))
        return client

    monkeypatch.setattr("dalorra.client._connected.AsyncClient", remembered)
    for _ in range(2):
        assert asyncio.run(tool.ainvoke(VALUES)).startswith("accept: positive")
    gc.collect()
    assert [client() for client in clients] == [None, None], "each went with its loop"


def test_in_a_tool_node_the_artifact_is_kept(monkeypatch: pytest.MonkeyPatch):
    tool = scripted_tool(monkeypatch, answering())
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([tool]))
    graph.add_edge(START, "tools")
    asked = AIMessage("", tool_calls=[{"name": tool.name, "args": VALUES, "id": "1"}])
    state = graph.compile().invoke({"messages": [HumanMessage("?"), asked]})
    assert state["messages"][-1].artifact == ANSWER


@pytest.mark.parametrize(
    ("decision", "advice"),
    [("accept", "reliable enough"), ("escalate", "human"), ("clarify", "more information")],
)
def test_the_sentence_says_what_to_do_next(decision: str, advice: str):
    prediction = Prediction.model_validate(ANSWER | {"decision": decision, "truncated": True})
    words = sentence(prediction)
    assert words.startswith(f"{decision}: positive (probability 0.9, variance 0.001).")
    assert advice in words
    assert "because" in words
    assert "cut" in words


async def test_tool_json_is_a_strict_function():
    async with serving(FakePredictor(["claim", "evidence"])) as server:
        body = (await server.client.get("/tool.json")).json()
    async with serving(api_keys="k") as server:
        refused = await server.client.get("/tool.json")
    function = body["function"]
    assert (body["type"], function["name"], function["strict"]) == ("function", TOOL_NAME, True)
    assert "negative, positive" in function["description"]
    validator = Draft202012Validator(function["parameters"])
    validator.check_schema(function["parameters"])
    assert validator.is_valid({"claim": "a", "evidence": "b"})
    for wrong in (
        {"claim": "a"},
        {"claim": "a", "evidence": 1},
        {"claim": "", "x": "", "evidence": ""},
    ):
        assert not validator.is_valid(wrong)
    assert refused.status_code == 401


# ---- LangGraph ----------------------------------------------------------------------------------


def by_text(request: httpx.Request) -> httpx.Response:
    """The decision is the last word of the input."""
    decision = json.loads(request.content)["input"].split()[-1]
    if decision not in ("accept", "escalate", "clarify"):
        return error(422, "invalid_input")
    return httpx.Response(200, json=ANSWER | {"decision": decision})


@pytest.fixture
def client() -> Client:
    return Client(transport=httpx.MockTransport(by_text))


@pytest.fixture(scope="module")
def example() -> Any:
    path = ROOT / "examples" / "langgraph_triage.py"
    spec = importlib.util.spec_from_file_location("langgraph_triage", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


THREAD: Any = {"configurable": {"thread_id": "1"}}


def test_accepted_reviews_need_nobody(example: Any, client: Client):
    state = example.build_graph(client).invoke({"review": "sure: accept"}, THREAD)
    assert (state["label"], state["decided_by"]) == ("positive", "model")
    assert state["prediction"] == ANSWER


def test_escalated_reviews_wait_for_a_human(example: Any, client: Client):
    graph = example.build_graph(client)
    state = graph.invoke({"review": "odd: escalate"}, THREAD)

    [question] = state["__interrupt__"]
    assert question.value["kind"] == "label"
    assert question.value["reason"] == "because"
    assert graph.get_state(THREAD).next == ("escalate",)
    state = graph.invoke(Command(resume="negative"), THREAD)
    assert (state["label"], state["decided_by"]) == ("negative", "human")
    assert graph.get_state(THREAD).next == ()


@pytest.mark.parametrize(("more", "by"), [("accept", "model"), ("escalate", "human")])
def test_unclear_reviews_come_back_with_more(example: Any, client: Client, more: str, by: str):
    asked: list[str] = []

    def answer(question: dict[str, Any]) -> str:
        asked.append(question["kind"])
        return more if question["kind"] == "more" else "negative"

    state = example.triage(example.build_graph(client), "meh: clarify", answer)
    assert state["review"] == f"meh: clarify {more}"
    assert state["decided_by"] == by
    assert asked == (["more"] if by == "model" else ["more", "label"])


def test_who_stays_unclear_gets_a_human(example: Any, client: Client):
    kinds = iter(["more", "label"])

    def answer(question: dict[str, Any]) -> str:
        assert question["kind"] == next(kinds)
        return "clarify" if question["kind"] == "more" else "negative"

    state = example.triage(example.build_graph(client), "meh: clarify", answer)
    assert (state["label"], state["decided_by"], state["questions"]) == ("negative", "human", 1)


async def test_an_async_client_makes_an_async_node_and_the_names_are_free():
    async def served(request: httpx.Request) -> httpx.Response:
        return by_text(request)

    graph = StateGraph(dict)
    async with AsyncClient(transport=httpx.MockTransport(served)) as client:
        node = predict_node(client, reads=lambda s: f"well, {s['word']}", writes="verdict")
        graph.add_node("judge", node)
        graph.add_node("done", lambda state: state | {"done": True})
        graph.add_edge(START, "judge")
        paths = {"accept": "done", "escalate": END, "clarify": END}
        graph.add_conditional_edges("judge", route_by_decision(reads="verdict"), paths)
        graph.add_edge("done", END)
        app = graph.compile(checkpointer=InMemorySaver())
        accepted = await app.ainvoke({"word": "accept"}, THREAD)
        escalated = await app.ainvoke({"word": "escalate"}, {"configurable": {"thread_id": "2"}})
    assert accepted["done"] is True
    assert escalated["verdict"]["decision"] == "escalate"
    assert "done" not in escalated


def test_the_drawn_graph_has_the_three_edges(example: Any, client: Client):
    edges = example.build_graph(client).get_graph().edges
    conditional = {edge.target for edge in edges if edge.source == "predict" and edge.conditional}
    assert conditional == {"accept", "escalate", "clarify"}


def test_a_graph_does_not_go_on_without_a_prediction():
    busy = httpx.MockTransport(lambda _: error(429, "queue_full", **{"Retry-After": "0"}))
    client = Client(transport=busy, retries=Retries(attempts=2))
    with pytest.raises(QueueFullError):
        predict_node(client, reads="review")({"review": "a"})
