import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from service.tracing import Tracing
from tests.fakes import FakeBase, FakePredictor


class Running:
    """An app with a fake predictor, and a client that talks to it without a socket."""

    def __init__(self, app: FastAPI, predictor: FakePredictor, client: httpx.AsyncClient) -> None:
        self.app = app
        self.predictor = predictor
        self.client = client
        self.lifecycle = app.state.lifecycle

    async def predict(self, value: Any, **options: Any) -> httpx.Response:
        return await self.client.post("/predict", json={"input": value}, **options)

    async def metrics(self) -> dict[str, float]:
        """Series, as Prometheus writes them, and their values."""
        text = (await self.client.get("/metrics")).text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {series: float(value) for series, _, value in lines}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - nothing inside tells us when
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True, scope="session")
def plain_logs() -> Iterator[None]:
    """Tracebacks without local variables: those take seconds to draw."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, renderer])
    yield
    structlog.reset_defaults()


Serving = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serving() -> Serving:
    """`async with serving(max_body_bytes=10) as server`: settings by name, any predictor."""

    @asynccontextmanager
    async def start(
        predictor: FakePredictor | None = None,
        *,
        ready: bool = True,
        tracing: Tracing | None = None,
        base: FakeBase | None = None,
        **settings: Any,
    ) -> AsyncIterator[Running]:
        predictor = predictor or FakePredictor()
        app = create_app(Settings(**settings), lambda _: base or predictor, tracing=tracing)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            running = Running(app, predictor, client)
            if ready:
                await running.lifecycle.loading
            yield running

    return start
