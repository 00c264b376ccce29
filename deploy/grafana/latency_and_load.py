"""The dashboard *Latency and load*: how fast, how full, what fails."""

from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import (
    SELECTED,
    Query,
    labels_of,
    lines,
    mean,
    new_dashboard,
    number,
    numbered,
    quantile,
    quantiles,
    rate,
)


def latency_and_load() -> Dashboard:
    """How fast the service answers, how much it is asked, and what goes wrong."""
    dashboard = new_dashboard(
        "DALorRA: Latency and load",
        "dalorra-latency-and-load",
        "How fast requests are answered, stage by stage, how full the server is, what fails.",
    )
    _add_overview(dashboard)
    _add_latency(dashboard)
    _add_throughput(dashboard)
    _add_queue(dashboard)
    _add_errors(dashboard)
    return numbered(dashboard.build())


def _add_overview(dashboard: board.Dashboard) -> None:
    failed = rate("dalorra_requests_total", matchers='outcome="failed"')
    for title, description, unit, expr in (
        (
            "Ready",
            "Instances that take requests.",
            "none",
            f"sum (dalorra_ready{{{SELECTED}}})",
        ),
        (
            "Requests",
            "Prediction requests per second, whatever became of them.",
            "reqps",
            rate("dalorra_requests_total"),
        ),
        (
            "p99",
            "99 of 100 requests are faster; 10 s is the last bucket.",
            "s",
            quantile(0.99, "dalorra_request_duration_seconds"),
        ),
        (
            "Failed",
            "Share of requests that failed by the server's fault (500, 504).",
            "percentunit",
            f"{failed} / {rate('dalorra_requests_total')}",
        ),
    ):
        dashboard.with_panel(number(title, description, unit, expr))


def _add_latency(dashboard: board.Dashboard) -> None:
    dashboard.with_row(board.Row("Latency by stage"))
    for title, description, histogram in (
        (
            "Request",
            "From first byte to last; the dots are single requests, with their id.",
            "request",
        ),
        ("Queue", "From tokenised to the start of its batch; grows first under load.", "queue"),
        ("Tokenise", "Tokenising one input.", "tokenize"),
        ("Inference", "One batch on the model thread.", "inference"),
    ):
        dashboard.with_panel(
            lines(
                title,
                description,
                "s",
                quantiles(f"dalorra_{histogram}_duration_seconds"),
                exemplars=histogram == "request",
            )
        )


def _add_throughput(dashboard: board.Dashboard) -> None:
    coalesced = f"{rate('dalorra_coalesced_inputs_total')} / {rate('dalorra_decisions_total')}"
    dashboard.with_row(board.Row("Throughput"))
    for title, description, unit, queries, stacked in (
        (
            "Requests by outcome",
            "Prediction requests per second; a batch request is one.",
            "reqps",
            [Query(rate("dalorra_requests_total", "outcome"), "{{outcome}}")],
            True,
        ),
        (
            "Tokens and rows",
            "Prompt tokens tokenised, and packed rows that went through the model, per second.",
            "cps",
            [
                Query(rate("dalorra_tokens_total"), "tokens"),
                Query(rate("dalorra_batch_rows_sum"), "packed rows"),
            ],
            False,
        ),
        (
            "Answers",
            "Inputs answered per second.",
            "reqps",
            [Query(rate("dalorra_decisions_total"), "answers")],
            False,
        ),
        (
            "Answered by an identical input in flight",
            "Share of answers that cost nothing; high when clients repeat themselves.",
            "percentunit",
            [Query(coalesced, "coalesced")],
            False,
        ),
    ):
        dashboard.with_panel(lines(title, description, unit, queries, stacked=stacked))


def _add_queue(dashboard: board.Dashboard) -> None:
    busy = f"rate(dalorra_inference_duration_seconds_sum{{{SELECTED}}}[$__rate_interval])"
    dashboard.with_row(board.Row("Load"))
    for title, description, unit, queries in (
        (
            "Busy",
            "Fraction of the time the model thread computes; near 1, only replicas help.",
            "percentunit",
            [Query(busy, "{{instance}}")],
        ),
        (
            "Queue, rows",
            "Packed rows that wait, by instance; what the autoscaler looks at.",
            "short",
            [Query(f"dalorra_queue_rows{{{SELECTED}}}", "{{instance}}")],
        ),
        (
            "Queue and in flight, requests",
            "Inputs that wait for the model, and requests that wait for their answer.",
            "short",
            [
                Query(f"sum (dalorra_queue_requests{{{SELECTED}}})", "inputs waiting"),
                Query(f"sum (dalorra_inflight_requests{{{SELECTED}}})", "requests in flight"),
            ],
        ),
        (
            "Batch size, inputs",
            "Inputs of one batch.",
            "short",
            [
                Query(mean("dalorra_batch_requests"), "mean"),
                Query(quantile(0.95, "dalorra_batch_requests"), "p95"),
            ],
        ),
        (
            "Batch size, rows",
            "Packed rows of one batch; the setting batch_rows is their limit.",
            "short",
            [
                Query(mean("dalorra_batch_rows"), "mean"),
                Query(quantile(0.95, "dalorra_batch_rows"), "p95"),
            ],
        ),
        (
            "Memory",
            "Resident memory of the process, without the accelerator's.",
            "bytes",
            [Query(f"process_resident_memory_bytes{{{SELECTED}}}", "{{instance}}")],
        ),
    ):
        dashboard.with_panel(lines(title, description, unit, queries))


def _add_errors(dashboard: board.Dashboard) -> None:
    failures = rate("dalorra_request_failures_total", "error_type")
    dashboard.with_row(board.Row("Errors")).with_panel(
        lines(
            "Errors by type",
            "Requests per second that got an error, by the error_type of its body.",
            "reqps",
            [Query(f"{failures} > 0", "{{error_type}}")],
        )
    ).with_panel(
        lines(
            "Ready",
            "1 while an instance takes requests, 0 while it loads, drains or is broken.",
            "none",
            [Query(f"dalorra_ready{{{SELECTED}}}", "{{instance}}")],
            top=1,
        )
    ).with_panel(
        labels_of(
            "Versions",
            "Two versions at once mean a roll-out that has not ended.",
            "dalorra_build_info",
            "version, python",
        )
    )
