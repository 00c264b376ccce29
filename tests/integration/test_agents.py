"""Clients, tools and protocols over real HTTP: around a fake model, and around the default one."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from mcp import Client as McpClient
from mcp.client.streamable_http import streamable_http_client

from dalorra.client import AsyncClient, Client, InvalidInputError, Retries, TransportError
from dalorra.client.langchain import UncertainPredictTool
from dalorra.client.tool import ASK_NAME, TOOL_NAME
from tests.questions import ASK_POSITIVE
from tests.server_process import HEADERS, KEY, ServerProcess, start

pytestmark = pytest.mark.integration

TEXT = "This movie was fantastic!"
EXAMPLE = Path(__file__).parents[2] / "examples" / "langgraph_triage.py"


@pytest.fixture(scope="module", params=["fake", "model"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with start(request.param, predictor={"seconds": 0.02}) as process:
        yield process.until_ready()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.url, api_key=KEY) as client:
        yield client


class TestUncertainPredictTool(ToolsIntegrationTests):
    """What LangChain asks of every tool, of one that asks a running server."""

    @pytest.fixture(autouse=True)
    def _address(self, server: ServerProcess) -> None:
        self.url = server.url

    @property
    def tool_constructor(self) -> type[BaseTool]:
        return UncertainPredictTool

    @property
    def tool_constructor_params(self) -> dict[str, Any]:
        return {"base_url": self.url, "api_key": KEY}

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"sentence": TEXT}


def test_one_prediction_through_every_door(server: ServerProcess, client: Client):
    prediction = client.predict(TEXT, return_samples=True)
    [batched] = client.predict_batch([TEXT])
    tool = UncertainPredictTool(base_url=server.url, api_key=KEY)
    call = {"name": TOOL_NAME, "args": {"sentence": TEXT}, "id": "1", "type": "tool_call"}
    artifact = asyncio.run(tool.ainvoke(call)).artifact
    structured = asyncio.run(over_mcp(server.url))
    tensors = over_inference_protocol(server.url, client.info().adapter)

    asked = client.ask(TEXT, {"q": ASK_POSITIVE})["q"]

    assert client.health().ready
    assert asked.noul == pytest.approx(prediction.probabilities["positive"], abs=1e-5)
    assert (asked.decision, asked.promise is None) == (
        prediction.decision,
        prediction.decision != "accept" or client.info().policy.confidence is None,
    )
    for other in (batched.model_dump(), artifact, structured):
        assert other["probability"] == pytest.approx(prediction.probability, abs=1e-5)
        assert other["variance"] == pytest.approx(prediction.variance, abs=1e-5)
        assert (other["label"], other["decision"]) == (prediction.label, prediction.decision)
    assert tensors["label"] == [prediction.label]
    assert tensors["decision"] == [prediction.decision]
    assert tensors["probability"] == pytest.approx([prediction.probability], abs=1e-5)
    samples = prediction.sample_probabilities
    assert samples is not None
    assert len(samples) == prediction.samples
    mean = sum(samples) / len(samples)
    assert mean == pytest.approx(prediction.probability, abs=1e-6)
    spread = sum((p - mean) ** 2 for p in samples) / len(samples)
    assert spread <= prediction.variance + 1e-9


async def over_mcp(url: str) -> Any:
    http = httpx2.AsyncClient(headers=HEADERS, timeout=60)
    async with http, McpClient(streamable_http_client(f"{url}/mcp", http_client=http)) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        assert tools == [TOOL_NAME, ASK_NAME]
        failed = await client.call_tool(TOOL_NAME, {"sentence": ""})
        assert failed.is_error
        result = await client.call_tool(TOOL_NAME, {"sentence": TEXT})
    assert not result.is_error
    return result.structured_content


def over_inference_protocol(url: str, model: str) -> dict[str, list[Any]]:
    body = {"inputs": [{"name": "sentence", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]}
    assert httpx2.get(f"{url}/v2/health/ready").json() == {"ready": True}
    response = httpx2.post(f"{url}/v2/models/{model}/infer", json=body, headers=HEADERS, timeout=60)
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def test_connections_are_kept(server: ServerProcess):
    used = []

    class Watching(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            used.append(response.extensions["network_stream"])
            return response

    with Client(server.url, api_key=KEY, transport=Watching()) as client:
        for n in range(5):
            client.predict(f"{TEXT} {n}")
    assert len(used) == 5
    assert len(set(map(id, used))) == 1


async def test_many_at_once(server: ServerProcess):
    async with AsyncClient(server.url, api_key=KEY) as client:
        texts = [f"{TEXT} {n}" for n in range(16)]
        answers = await asyncio.gather(*map(client.predict, texts))
        with pytest.raises(InvalidInputError):
            await client.predict({"no such field": "a"})
    assert len({answer.request_id for answer in answers}) == 16


def test_the_example_runs(server: ServerProcess):
    """Whatever the decision is, a human who answers twice sees it end."""
    command = [sys.executable, str(EXAMPLE), TEXT, "--url", server.url, "--key", KEY]
    done = subprocess.run(
        command, input="and more\npositive\n", capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(EXAMPLE.parents[1])}, timeout=60,
    )  # fmt: skip
    assert "positive, decided by the" in done.stdout


def test_a_client_waits_for_a_place():
    """Two places, six clients: refused ones come back when they were told to."""
    with start(
        "fake", predictor={"seconds": 0.2}, max_queue_requests=2, max_batch_inputs=1
    ) as process:
        process.until_ready()

        async def run() -> list[Any]:
            retries = Retries(attempts=12)
            async with AsyncClient(process.url, api_key=KEY, retries=retries) as client:
                return await asyncio.gather(*(client.predict(f"text {n}") for n in range(6)))

        assert len(asyncio.run(run())) == 6
    refused = [e for e in process.events() if e.get("error_type") == "queue_full"]
    assert refused
    with Client(process.url) as client, pytest.raises(TransportError):
        client.health()
