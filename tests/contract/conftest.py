import asyncio

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.settings import Settings
from tests.contract.promql import Series
from tests.fakes import FakePredictor


@pytest.fixture(scope="session")
def running_series() -> Series:
    """What a running server tells Prometheus before it has been asked anything."""
    return asyncio.run(_scrape())


async def _scrape() -> Series:
    app = create_app(Settings(), lambda _: FakePredictor())
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        await app.state.lifecycle.loading
        text = (await client.get("/metrics")).text
    series: Series = {"up": [{}]}  # which Prometheus adds to every target
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(dict(sample.labels))
    return series
