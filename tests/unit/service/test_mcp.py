"""The tool over the Model Context Protocol, called by the SDK's own client."""

import asyncio
import builtins
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from mcp.shared.exceptions import MCPError

from dalorra.client.tool import ASK_NAME, TOOL_NAME
from dalorra.errors import ConfigError
from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeBase, FakePredictor, FakeQuestions, expected_prediction
from tests.questions import ASK_POSITIVE, POSITIVE, QUESTIONS, STATE
from tests.serving import over_mcp, serving

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_tool_is_listed_and_answers(mode: str):
    async with serving() as server, over_mcp(server, mode=mode) as client:
        [tool] = (await client.list_tools()).tools
        result = await client.call_tool(TOOL_NAME, {"sentence": "hello"})
        expected = expected_prediction(server.predictor.encode("hello"))
        metrics = await server.metrics()

    assert tool.name == TOOL_NAME
    assert tool.input_schema["required"] == ["sentence"]
    assert "negative, positive" in tool.description
    assert not result.is_error
    assert result.structured_content["probability"] == expected.probability
    assert "sample_probabilities" not in result.structured_content
    Draft202012Validator(tool.output_schema).validate(result.structured_content)
    assert result.structured_content["request_id"]
    [content] = result.content
    assert content.text.startswith(f"{result.structured_content['decision']}: positive")
    assert metrics['dalorra_requests_total{outcome="ok"}'] == 1
    assert metrics["dalorra_inflight_requests"] == 0
    assert sum(v for k, v in metrics.items() if k.startswith("dalorra_decisions_total")) == 1


async def test_the_fields_are_the_adapters():
    predictor = FakePredictor(["claim", "evidence"])
    async with serving(predictor) as server, over_mcp(server) as client:
        [tool] = (await client.list_tools()).tools
        result = await client.call_tool(TOOL_NAME, {"claim": "a", "evidence": "b"})
    assert list(tool.input_schema["properties"]) == ["claim", "evidence"]
    expected = expected_prediction(predictor.encode({"claim": "a", "evidence": "b"}))
    assert result.structured_content["probability"] == expected.probability


@pytest.mark.parametrize(
    ("arguments", "error_type", "said"),
    [
        ({"sentence": ""}, "invalid_input", "empty"),
        ({}, "invalid_input", "fields"),
        ({"text": "a"}, "invalid_input", "fields"),
        ({"sentence": ["a"]}, "invalid_input", "send sentence as a string"),
        ({"sentence": "☠"}, "inference_failed", "failed"),
    ],
)
async def test_a_failure_is_a_result_that_the_model_can_read(
    arguments: dict[str, Any], error_type: str, said: str
):
    async with serving() as server, over_mcp(server) as client:
        await client.call_tool(TOOL_NAME, {"sentence": "known good"})
        result = await client.call_tool(TOOL_NAME, arguments)
        metrics = await server.metrics()
    assert result.is_error
    assert result.content[0].text.startswith(f"{error_type}: ")
    assert said in result.content[0].text
    assert metrics[f'dalorra_request_failures_total{{error_type="{error_type}"}}'] == 1


async def test_a_mistake_of_ours_stays_in_the_log(monkeypatch: pytest.MonkeyPatch):
    def broken(**_: object) -> None:
        raise builtins.ZeroDivisionError("a secret")

    async with serving() as server, over_mcp(server) as client:
        monkeypatch.setattr("service.api.answering.PredictResponse", broken)
        result = await client.call_tool(TOOL_NAME, {"sentence": "a"})
        metrics = await server.metrics()
    assert result.is_error
    assert "secret" not in result.content[0].text
    assert metrics['dalorra_requests_total{outcome="failed"}'] == 1


async def test_another_tool_is_a_protocol_error():
    async with serving() as server, over_mcp(server) as client:
        with pytest.raises(MCPError, match=TOOL_NAME):
            await client.call_tool("other", {})


async def test_before_the_model_is_loaded_it_says_so():
    predictor = FakePredictor()
    predictor.broken = True
    async with serving(predictor) as server, over_mcp(server) as client:
        with pytest.raises(MCPError, match="could not be loaded"):
            await client.list_tools()
        result = await client.call_tool(TOOL_NAME, {"sentence": "a"})
    assert result.is_error
    assert result.content[0].text.startswith("unavailable: ")


async def test_calls_share_the_batcher():
    async with serving() as server, over_mcp(server) as client:
        server.predictor.gate.clear()
        calls = [
            asyncio.create_task(client.call_tool(TOOL_NAME, {"sentence": f"text {n}"}))
            for n in range(6)
        ]
        batches, engine = server.predictor.batches, server.lifecycle.engine
        await server.until(lambda: bool(batches) and sum(map(len, batches)) + engine.waiting == 6)
        caught = len(batches[0])  # by the forward that waits at the gate
        server.predictor.gate.set()
        results = await asyncio.gather(*calls)
    assert not any(result.is_error for result in results)
    assert [len(batch) for batch in batches] == [caught, 6 - caught]


async def test_it_is_behind_the_same_key():
    async with serving(api_keys="k", host="0.0.0.0") as server:  # noqa: S104
        refused = await server.client.post("/mcp", json=INITIALIZE, headers=ACCEPT)
        headers = {"Authorization": "Bearer k", **ACCEPT}
        let_in = await server.client.post("/mcp", json=INITIALIZE, headers=headers)
        async with over_mcp(server, key="k") as client:
            assert len((await client.list_tools()).tools) == 1
    assert (refused.status_code, refused.json()["error_type"]) == (401, "unauthorized")
    assert let_in.status_code == 200
    assert let_in.headers["content-type"] == "application/json"
    assert "mcp-session-id" not in let_in.headers


async def test_its_key_has_a_share_of_the_queue():
    async with serving(api_keys="k", max_queue_requests=2, max_batch_inputs=2) as server:
        server.predictor.gate.clear()
        headers = {"Authorization": "Bearer k"}
        asked = [asyncio.create_task(server.predict("running", headers=headers))]
        await server.until_running()
        asked.append(asyncio.create_task(server.predict("waiting", headers=headers)))
        await server.until(lambda: server.lifecycle.engine.queue_requests == 1)

        async with over_mcp(server, key="k") as client:
            refused = await client.call_tool(TOOL_NAME, {"sentence": "hello"})
        server.predictor.gate.set()
        await asyncio.gather(*asked)

    assert refused.content[0].text.startswith("queue_full: this key holds its share")


async def test_an_open_local_server_does_not_answer_to_other_names():
    """DNS rebinding: a web page makes its own name point to 127.0.0.1."""
    statuses = {}
    for host in ("evil.example", "localhost:8000", "127.0.0.1"):
        async with serving() as server:
            headers = {"Host": host, **ACCEPT}
            response = await server.client.post("/mcp", json=INITIALIZE, headers=headers)
            statuses[host] = response.status_code
    assert statuses == {"evil.example": 421, "localhost:8000": 200, "127.0.0.1": 200}


async def test_the_body_limit_holds():
    async with serving(max_body_bytes=100) as server:
        response = await server.client.post("/mcp", json=INITIALIZE, headers=ACCEPT)
    assert response.json()["error_type"] == "body_too_large"


async def test_it_can_be_turned_off():
    async with serving(mcp=False) as server:
        assert (await server.client.post("/mcp", json=INITIALIZE)).status_code == 404


@pytest.mark.parametrize("wanted", [None, True])
def test_without_the_extra_it_is_left_out_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, wanted: bool | None
):
    monkeypatch.setattr("service.app.find_spec", lambda _: None)
    if wanted:
        with pytest.raises(ConfigError, match=r"dalorra-service\[mcp\]"):
            create_app(Settings(mcp=True), lambda _: FakePredictor())
    else:
        app = create_app(Settings(), lambda _: FakePredictor())
        assert "/mcp" not in {getattr(route, "path", None) for route in app.routes}


async def test_each_adapter_is_a_tool_with_fields_of_its_own():
    base = FakeBase(topic=FakePredictor(["title", "body"]))
    adapters = {"sentiment": "/a/sentiment", "topic": "/a/topic"}
    async with serving(base=base, adapters=adapters) as server, over_mcp(server) as client:
        tools = (await client.list_tools()).tools
        answer = await client.call_tool(f"{TOOL_NAME}_topic", {"title": "a", "body": "b"})
        unknown = await client.call_tool(f"{TOOL_NAME}_x", {"sentence": "a"})
        for name in (f"{TOOL_NAME}_", "", "x"):
            with pytest.raises(MCPError, match="no such tool"):
                await client.call_tool(name, {"sentence": "a"})
    assert [tool.name for tool in tools] == [TOOL_NAME, f"{TOOL_NAME}_topic"]
    assert tools[1].input_schema["required"] == ["title", "body"]
    assert "'topic'" in tools[1].description
    assert answer.structured_content["adapter"] == "topic"
    assert unknown.is_error
    assert unknown.content[0].text.startswith("unknown_adapter: ")


async def test_typed_questions_are_a_tool_where_some_can_be_asked():
    async with serving(FakeQuestions()) as server, over_mcp(server) as client:
        [tool] = (await client.list_tools()).tools
        Draft202012Validator(tool.input_schema).validate({"state": STATE, "questions": QUESTIONS})
        result = await client.call_tool(ASK_NAME, {"state": STATE, "questions": QUESTIONS})
        refused = await client.call_tool(ASK_NAME, {"state": STATE, "questions": {}})
        labelled = await client.call_tool(TOOL_NAME, {"state": STATE})
        metrics = await server.metrics()
    assert tool.name == ASK_NAME
    assert not result.is_error
    Draft202012Validator(tool.output_schema).validate(result.structured_content)
    assert list(result.structured_content["answers"]) == list(QUESTIONS)
    lines = result.content[0].text.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(QUESTIONS)
    assert "yes with probability" in lines[0]
    assert "on the levels 0 to 2" in lines[2]
    assert refused.content[0].text.startswith("invalid_input: questions: ")
    assert "POST /v1/systemone" in labelled.content[0].text
    assert metrics['dalorra_requests_total{outcome="ok"}'] == 1


async def test_registered_questions_are_asked_beside_predictions():
    predictor = FakePredictor()
    predictor.registered = (POSITIVE,)
    async with serving(predictor) as server, over_mcp(server) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        asked = {"state": "a", "questions": {"q": ASK_POSITIVE}}
        result = await client.call_tool(ASK_NAME, asked)
    assert names == [TOOL_NAME, ASK_NAME]
    assert result.structured_content["answers"]["q"]["x_adapter"] == "fake-adapter"
