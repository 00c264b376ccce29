"""What the application says of itself: metrics and one log line for each request."""

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from service.api.problems import ERROR_TYPES
from service.telemetry import Outcome
from tests.fakes import POLICY, FakePredictor
from tests.serving import serving


async def test_every_series_exists_before_the_first_request():
    async with serving() as server:
        metrics = await server.metrics()

    for outcome in Outcome:
        assert metrics[f'dalorra_requests_total{{outcome="{outcome}"}}'] == 0
    for error_type in ERROR_TYPES:
        assert metrics[f'dalorra_request_failures_total{{error_type="{error_type}"}}'] == 0
    for decision in ("accept", "escalate", "clarify"):
        labels = f'{{adapter="fake-adapter",decision="{decision}"}}'
        assert metrics[f"dalorra_decisions_total{labels}"] == 0
    for label in ("negative", "positive"):
        assert metrics[f'dalorra_labels_total{{adapter="fake-adapter",label="{label}"}}'] == 0
    for name in ("tokens_total", "coalesced_inputs_total", "queue_requests",
                 "queue_rows", "inflight_requests"):  # fmt: skip
        assert metrics[f"dalorra_{name}"] == 0
    for name in ("request_duration_seconds", "queue_duration_seconds", "batch_rows",
                 "tokenize_duration_seconds", "inference_duration_seconds",
                 "batch_requests"):  # fmt: skip
        assert metrics[f"dalorra_{name}_count"] == 0
    assert metrics['dalorra_mask_samples_total{adapter="fake-adapter"}'] == 0
    for name in ("confidence", "predictive_variance", "novelty_p_value"):
        assert metrics[f'dalorra_{name}_count{{adapter="fake-adapter"}}'] == 0
    [build] = [series for series in metrics if series.startswith("dalorra_build_info{")]
    assert "version=" in build
    [adapter] = [series for series in metrics if series.startswith("dalorra_adapter_info{")]
    assert 'adapter="fake-adapter"' in adapter
    assert 'digest="0123abcd"' in adapter


@pytest.mark.parametrize("known", [True, False])
async def test_what_the_policy_was_picked_with_is_shown_where_it_is_known(known: bool):
    shares = {"accepted": 0.75, "escalated": 0.2} if known else {}
    policy = POLICY.model_copy(update=shares)
    async with serving(FakePredictor(policy=policy)) as server:
        metrics = await server.metrics()
    for name, share in (("acceptance", 0.75), ("escalation", 0.2)):
        shown = metrics[f'dalorra_calibrated_{name}_ratio{{adapter="fake-adapter"}}']
        assert shown == share if known else math.isnan(shown)


async def test_requests_are_counted_by_what_became_of_them():
    async with serving() as server:
        body = (await server.predict("hello")).json()
        await server.predict("")
        await server.predict("☠")
        await server.client.get("/health/ready")
        await server.client.get("/nowhere")
        metrics = await server.metrics()

    assert metrics['dalorra_requests_total{outcome="ok"}'] == 1
    assert metrics['dalorra_requests_total{outcome="invalid"}'] == 1
    assert metrics['dalorra_requests_total{outcome="failed"}'] == 1
    assert metrics['dalorra_request_failures_total{error_type="invalid_input"}'] == 1
    assert metrics['dalorra_request_failures_total{error_type="inference_failed"}'] == 1
    assert metrics['dalorra_request_failures_total{error_type="not_found"}'] == 0
    assert (
        metrics[f'dalorra_decisions_total{{adapter="fake-adapter",decision="{body["decision"]}"}}']
        == 1
    )
    assert metrics[f'dalorra_labels_total{{adapter="fake-adapter",label="{body["label"]}"}}'] == 1
    assert metrics["dalorra_tokens_total"] == 7 + 3
    assert metrics['dalorra_mask_samples_total{adapter="fake-adapter"}'] == 10
    assert metrics["dalorra_request_duration_seconds_count"] == 3
    assert metrics["dalorra_batch_rows_sum"] == (5 + 20) + (1 + 20)
    assert metrics['dalorra_confidence_sum{adapter="fake-adapter"}'] == body["probability"]
    assert metrics['dalorra_predictive_variance_sum{adapter="fake-adapter"}'] == body["variance"]
    assert metrics['dalorra_novelty_p_value_sum{adapter="fake-adapter"}'] == body["novelty"]


async def test_metrics_are_well_formed_in_both_formats():
    async with serving() as server:
        await server.predict("hello")
        plain = await server.client.get("/metrics")
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        openmetrics = await server.client.get("/metrics", headers=accept)

    families = list(text_string_to_metric_families(plain.text))
    assert all(family.documentation for family in families)
    assert {family.name.split("_")[0] for family in families} == {"dalorra", "process"}
    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


async def test_two_apps_in_one_process_do_not_share_metrics():
    async with serving() as one, serving() as other:
        await one.predict("a")
        assert (await other.metrics())['dalorra_requests_total{outcome="ok"}'] == 0


async def test_a_request_is_logged_once_and_never_its_text():
    with capture_logs() as logs:
        async with serving() as server:
            await server.predict("a secret", headers={"X-Request-Id": "r-1"})
            await server.predict({"title": "a secret"})
            await server.client.get("/health/ready")

    requests = [line for line in logs if line["event"] == "request" and line["log_level"] == "info"]
    assert len(requests) == 2
    fine, invalid = requests
    assert fine["outcome"] == "ok"
    assert fine["inputs"] == 1
    assert fine["tokens"] == 10
    assert sum(fine["decisions"].values()) == 1
    assert {"total_ms", "tokenize_ms", "queue_ms", "inference_ms"} <= set(fine)
    assert (invalid["outcome"], invalid["error_type"]) == ("invalid", "invalid_input")
    assert "secret" not in str(logs)


async def test_inputs_are_logged_where_the_operator_asks_for_it():
    with capture_logs() as logs:
        async with serving(log_inputs=True) as server:
            await server.predict("a secret")
            inputs = ["a", {"sentence": "b"}]
            await server.client.post("/predict/batch", json={"inputs": inputs})
    assert [line["texts"] for line in logs if line["event"] == "request"] == [["a secret"], inputs]
