"""The whole ASGI application around a fake predictor, without a socket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
from fastapi import FastAPI
from mcp import Client as McpClient
from mcp.client.streamable_http import streamable_http_client

from service.api.problems import ERROR_TYPES
from service.app import create_app
from service.settings import Settings
from service.tracing import Tracing
from tests.fakes import FakePredictor

JSON = {"Content-Type": "application/json"}


class RunningServer:
    """An application, its predictor, and a client that talks to it."""

    def __init__(self, app: FastAPI, predictor: FakePredictor, client: httpx.AsyncClient) -> None:
        self.app = app
        self.predictor = predictor
        self.client = client
        self.lifecycle = app.state.lifecycle
        self.ledger = app.state.ledger

    async def predict(
        self, value: Any, *, headers: dict[Any, Any] | None = None, **options: Any
    ) -> httpx.Response:
        """`options` are further fields of the body."""
        body = {"input": value, **options}
        return await self.client.post("/predict", json=body, headers=headers)

    async def predict_batch(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """The answers, of which there must be some."""
        body = {"inputs": inputs, **options}
        response = await self.client.post("/predict/batch", json=body)
        assert response.status_code == 200, response.text
        predictions: list[dict[str, Any]] = response.json()["predictions"]
        return predictions

    async def metrics(self) -> dict[str, float]:
        """Series, as Prometheus writes them, and their values."""
        text = (await self.client.get("/metrics")).text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {series: float(value) for series, _, value in lines}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - nothing inside tells us when
                await asyncio.sleep(0.001)

    async def until_metric(self, series: str, value: float) -> None:
        async with asyncio.timeout(10):
            while (await self.metrics())[series] != value:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.001)

    async def until_running(self, batches: int = 1) -> None:
        """Returns once so many batches have reached the predictor."""
        await self.until(lambda: len(self.predictor.batches) == batches)


@asynccontextmanager
async def serving(
    predictor: FakePredictor | None = None,
    *,
    ready: bool = True,
    tracing: Tracing | None = None,
    base: Any = None,
    **settings: Any,
) -> AsyncIterator[RunningServer]:
    """`async with serving(max_body_bytes=10) as server`: settings by name, any predictor or base.

    Enters once the model is loaded, or at once where it is not to be `ready`.
    """
    predictor = predictor or FakePredictor()
    app = create_app(Settings(**settings), lambda _: base or predictor, tracing=tracing)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        if ready:
            await app.state.lifecycle.loading
        yield RunningServer(app, predictor, client)


@asynccontextmanager
async def over_mcp(
    server: RunningServer, *, mode: str = "auto", key: str = ""
) -> AsyncIterator[McpClient]:
    """The SDK's own client, connected to a server's /mcp."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=server.app), headers=headers)
    url = "http://127.0.0.1:8000/mcp"
    async with http, McpClient(streamable_http_client(url, http_client=http), mode=mode) as client:
        yield client


def error_sentence(response: httpx.Response, status: int, error_type: str) -> str:
    """Checks what all errors have in common; returns the sentence."""
    body = response.json()
    assert (response.status_code, body["error_type"]) == (status, error_type)
    assert set(body) == {"error", "error_type", "request_id"}
    assert body["request_id"] == response.headers["x-request-id"]
    assert error_type in ERROR_TYPES
    assert body["error"]
    assert "\n" not in body["error"]
    return str(body["error"])
