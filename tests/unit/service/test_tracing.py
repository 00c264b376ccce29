"""Traces: into the log always, into spans where OpenTelemetry is on."""

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from structlog.testing import capture_logs

from dalorra.client.tool import TOOL_NAME
from dalorra.errors import ConfigError
from service.api.middleware.trace import trace_of
from service.app import create_app
from service.settings import Settings
from service.tracing import Tracing
from tests.fakes import FakePredictor
from tests.serving import over_mcp, serving

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


@pytest.mark.parametrize(
    ("traceparent", "valid"),
    [
        (f"00-{TRACE}-{CALLER}-01", True),
        (f"00-{TRACE}-{CALLER}-00", True),
        (f"cc-{TRACE}-{CALLER}-01-what-comes-later", True),
        (f"00-{TRACE}-{CALLER}-01-more", False),
        (f"ff-{TRACE}-{CALLER}-01", False),
        (f"00-{'0' * 32}-{CALLER}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{CALLER}-01", False),
        (f"00-{TRACE}-{CALLER}", False),
        (f"00-{TRACE[1:]}-{CALLER}-01", False),
        ('00-{"x": "y"}-\n-01', False),
        ("", False),
    ],
)
def test_a_traceparent_is_read_as_the_recommendation_says(traceparent: str, valid: bool):
    assert trace_of(traceparent) == ({"trace_id": TRACE, "parent_id": CALLER} if valid else {})


async def lines_of(headers: dict[str, str], **options: Any) -> list[Any]:
    """What is logged about one request, with what is bound to each line."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        async with serving(**options) as server:
            await server.predict("☠", headers=headers)
    return [line for line in logs if line["event"] == "request"]


async def test_the_log_names_the_trace_without_opentelemetry():
    [line] = await lines_of(PARENT)
    assert (line["trace_id"], line["parent_id"]) == (TRACE, CALLER)
    [line] = await lines_of({"traceparent": "nonsense"})
    assert not {"trace_id", "parent_id", "span_id"} & set(line)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def by_name(spans: Sequence[ReadableSpan]) -> dict[str, ReadableSpan]:
    found = {span.name: span for span in spans}
    assert len(found) == len(spans)
    return found


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_request_is_a_span_of_its_callers_trace_and_its_stages_are_its_children(
    tracing: Tracing, exporter: InMemorySpanExporter
):
    async with serving(FakePredictor(seconds=0.03), tracing=tracing) as server:
        began = time.time_ns()
        await server.predict("hello", headers=PARENT | {"X-Request-Id": "r-1"})
        ended = time.time_ns()
        for path in ("/health/ready", "/metrics", "/"):
            await server.client.get(path)

    spans = by_name(exporter.get_finished_spans())
    request = spans.pop("POST /predict")
    assert request.kind is SpanKind.SERVER
    assert format_trace_id(request.context.trace_id) == TRACE
    assert request.parent is not None
    assert format_span_id(request.parent.span_id) == CALLER
    assert attributes(request) == {
        "http.request.method": "POST",
        "url.path": "/predict",
        "url.scheme": "http",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "dalorra.request_id": "r-1",
    }
    assert list(spans) == ["tokenize", "queue", "inference"]
    for stage in spans.values():
        assert stage.parent is not None
        assert stage.parent.span_id == request.context.span_id
        assert began <= stage.start_time <= stage.end_time <= ended
    tokenize, queue, inference = spans.values()
    assert attributes(tokenize) == {"dalorra.inputs": 1, "dalorra.tokens": 7}
    assert attributes(inference) == {"dalorra.batch_requests": 1}
    assert tokenize.end_time <= queue.start_time + 1_000
    assert abs(queue.end_time - inference.start_time) <= 1_000
    assert inference.end_time - inference.start_time >= 30e6


async def test_a_batch_has_one_inference_for_each_of_its_forwards(
    tracing: Tracing, exporter: InMemorySpanExporter
):
    async with serving(FakePredictor(batch_rows=70), tracing=tracing) as server:
        inputs = [f"text number {n}" for n in range(4)]  # 33 rows each
        await server.client.post("/predict/batch", json={"inputs": inputs})
        forwards = [len(batch) for batch in server.predictor.batches]

    spans = exporter.get_finished_spans()
    inferences = [span for span in spans if span.name == "inference"]
    assert [attributes(span)["dalorra.batch_requests"] for span in inferences] == forwards
    assert len(forwards) == 2
    [tokenize] = [span for span in spans if span.name == "tokenize"]
    assert attributes(tokenize)["dalorra.inputs"] == 4


async def test_a_failure_is_marked_and_never_quotes_the_input(
    tracing: Tracing, exporter: InMemorySpanExporter
):
    async with serving(tracing=tracing) as server:
        await server.predict("a secret")
        await server.predict("a secret ☠")
        await server.predict({"secret": ""})
        await server.client.get("/nowhere")

    server_spans = [s for s in exporter.get_finished_spans() if s.kind is SpanKind.SERVER]
    shown = [(s.name, s.status.status_code, attributes(s).get("error.type")) for s in server_spans]
    assert shown == [
        ("POST /predict", StatusCode.UNSET, None),
        ("POST /predict", StatusCode.ERROR, "inference_failed"),
        ("POST /predict", StatusCode.UNSET, "invalid_input"),
        ("GET", StatusCode.UNSET, "not_found"),
    ]
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_the_log_and_the_exemplars_name_the_span(
    tracing: Tracing, exporter: InMemorySpanExporter
):
    [line] = await lines_of({}, tracing=tracing)
    [request] = exporter.get_finished_spans()
    assert line["span_id"] == format_span_id(request.context.span_id)
    assert line["trace_id"] == format_trace_id(request.context.trace_id)
    assert "parent_id" not in line


async def test_who_is_not_sampled_costs_no_stages(tracing: Tracing, exporter: InMemorySpanExporter):
    async with serving(tracing=tracing) as server:
        await server.predict("a", headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    assert exporter.get_finished_spans() == ()


async def test_a_tool_call_has_stages_too(tracing: Tracing, exporter: InMemorySpanExporter):
    async with serving(tracing=tracing) as server, over_mcp(server) as client:
        assert not (await client.call_tool(TOOL_NAME, {"sentence": "hello"})).is_error
    spans = exporter.get_finished_spans()
    paths = {s.context.span_id: attributes(s).get("url.path") for s in spans}
    [inference] = [span for span in spans if span.name == "inference"]
    assert inference.parent is not None
    assert paths[inference.parent.span_id] == "/mcp"


async def test_the_standard_variables_say_where_spans_go(monkeypatch: pytest.MonkeyPatch):
    """A collector over HTTP gets them, under the name that the environment gives, at the end."""
    got: list[tuple[str, bytes]] = []

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        [length] = [
            int(line.split(":")[1])
            for line in head.splitlines()
            if line.lower().startswith("content-length")
        ]
        got.append((head.splitlines()[0], await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(collect, "127.0.0.1", 0) as collector:
        port = collector.sockets[0].getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "judge")
        async with serving(otel=True) as server:
            assert (await server.predict("hello")).status_code == 200
    [(request_line, body)] = got
    assert request_line.startswith("POST /v1/traces")
    for name in (b"judge", b"POST /predict", b"tokenize", b"queue", b"inference"):
        assert name in body
    assert b"hello" not in body


def test_wanted_but_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "service.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"dalorra-service\[otel\]"):
        create_app(Settings(otel=True), lambda _: FakePredictor())


async def test_off_it_is_not_even_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "service.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    async with serving() as server:
        assert (await server.predict("a", headers=PARENT)).status_code == 200
    assert "service.tracing" not in sys.modules
