"""Exemplars lead from a series to a request, in OpenMetrics only."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.serving import RunningServer, serving

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
LINKED = {
    "dalorra_request_duration_seconds",
    "dalorra_decisions",
    "dalorra_confidence",
    "dalorra_predictive_variance",
    "dalorra_novelty_p_value",
}


async def exemplars(server: RunningServer) -> dict[str, list[dict[str, str]]]:
    """Labels of the exemplars by family; parsing fails where one is malformed."""
    text = (await server.client.get("/metrics", headers=OPENMETRICS)).text
    found = {
        family.name: [sample.exemplar.labels for sample in family.samples if sample.exemplar]
        for family in text_string_to_metric_families(text)
    }
    return {name: labels for name, labels in found.items() if labels}


def linked(labels: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """One exemplar in each family that has any."""
    return {name: [labels] for name in LINKED}


async def test_a_request_can_be_found_from_its_series():
    async with serving() as server:
        await server.predict("hello", headers={"X-Request-Id": "r-1"})
        found = await exemplars(server)
        plain = (await server.client.get("/metrics")).text
    assert found == linked({"request_id": "r-1"})
    assert "r-1" not in plain


async def test_the_trace_is_named_where_there_is_one():
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"X-Request-Id": "r-1", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    async with serving() as server:
        await server.predict("hello", headers=headers)
        found = await exemplars(server)
    assert found == linked({"request_id": "r-1", "trace_id": trace})


@pytest.mark.parametrize(("length", "named"), [(118, True), (119, False), (128, False)])
async def test_an_id_that_is_too_long_for_one_is_left_out(length: int, named: bool):
    request_id = "r" * length
    async with serving() as server:
        response = await server.predict("hello", headers={"X-Request-Id": request_id})
        found = await exemplars(server)
    assert response.status_code == 200
    assert found == (linked({"request_id": request_id}) if named else {})


async def test_a_failed_request_is_linked_from_its_duration_alone():
    async with serving() as server:
        await server.predict("hello", headers={"X-Request-Id": "fine"})
        await server.predict("☠", headers={"X-Request-Id": "failed"})
        found = await exemplars(server)
    assert {"request_id": "failed"} in found.pop("dalorra_request_duration_seconds")
    assert set(found) == LINKED - {"dalorra_request_duration_seconds"}
    assert all(labels == [{"request_id": "fine"}] for labels in found.values())
