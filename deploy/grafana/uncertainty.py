"""The dashboard *Uncertainty*: what is decided, and how sure the adapter is."""

from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import (
    SELECTED,
    Query,
    heat,
    labels_of,
    lines,
    mean,
    new_dashboard,
    number,
    numbered,
    of_adapters,
    rate,
    share,
    with_adapters,
)

ACCEPT, ESCALATE, CLARIFY = (
    f'decision="{decision}"' for decision in ("accept", "escalate", "clarify")
)


def uncertainty() -> Dashboard:
    """What the adapter decides, and how sure it is."""
    dashboard = with_adapters(
        new_dashboard(
            "DALorRA: Uncertainty",
            "dalorra-uncertainty",
            "What is accepted, escalated and sent back for clarification, and how sure the adapter "
            "is.",
        )
    )
    _add_overview(dashboard)
    _add_decisions(dashboard)
    _add_doubt(dashboard)
    _add_novelty(dashboard)
    _add_truth(dashboard)
    _add_answers(dashboard)
    return numbered(of_adapters(dashboard.build()))


def _of_decisions(matcher: str, window: str = "$__rate_interval", offset: str = "") -> str:
    """Share of one decision, in one series whatever is selected."""
    shift = f" offset {offset}" if offset else ""
    part, whole = (
        f"sum (rate(dalorra_decisions_total{{{SELECTED}{extra}}}[{window}]{shift}))"
        for extra in (f",{matcher}", "")
    )
    return f"{part} / {whole}"


def _add_overview(dashboard: board.Dashboard) -> None:
    for title, description, matcher in (
        ("Accepted", "Share of answers that the policy accepts, over the last hour.", ACCEPT),
        ("Escalated", "Share whose variance is above the policy's, over the last hour.", ESCALATE),
        ("To clarify", "Share of familiar inputs that leave the answer open, last hour.", CLARIFY),
    ):
        dashboard.with_panel(
            number(title, description, "percentunit", _of_decisions(matcher, "1h"))
        )
    dashboard.with_panel(
        number(
            "Answers",
            "Inputs answered in the last hour.",
            "short",
            f"sum (increase(dalorra_decisions_total{{{SELECTED}}}[1h]))",
        )
    ).with_panel(
        labels_of(
            "Adapters served",
            "Two digests at once mean that an adapter is being rolled.",
            "dalorra_adapter_info",
            "adapter, digest, method, scope, samples, model",
        )
    )


def _add_decisions(dashboard: board.Dashboard) -> None:
    dashboard.with_row(board.Row("Decisions")).with_panel(
        lines(
            "Decisions",
            "Answers per second by decision.",
            "reqps",
            [Query(rate("dalorra_decisions_total", "decision"), "{{decision}}")],
            stacked=True,
        )
    ).with_panel(
        lines(
            "Shares of the decisions",
            "Which fraction of the answers gets which decision.",
            "percentunit",
            [Query(share("dalorra_decisions_total", "decision"), "{{decision}}")],
            stacked=True,
            top=1,
        )
    ).with_panel(
        lines(
            "Acceptance against its calibration",
            "Far from the calibrated share, the inputs are not those the policy was picked on.",
            "percentunit",
            [
                Query(_of_decisions(ACCEPT, "1h"), "accepted, last hour"),
                Query(
                    f"max (dalorra_calibrated_acceptance_ratio{{{SELECTED}}})",
                    "accepted when calibrated",
                ),
            ],
            top=1,
        )
    ).with_panel(
        lines(
            "Escalation against its calibration",
            "Above the calibrated share, the adapter knows less of these inputs than of those.",
            "percentunit",
            [
                Query(_of_decisions(ESCALATE, "1h"), "escalated, last hour"),
                Query(
                    f"max (dalorra_calibrated_escalation_ratio{{{SELECTED}}})",
                    "escalated when calibrated",
                ),
            ],
        )
    ).with_panel(
        lines(
            "Escalation against the day before",
            "A gap that stays is new inputs or a new adapter; DalorraEscalationSurge watches it.",
            "percentunit",
            [
                Query(_of_decisions(ESCALATE, "30m"), "escalated, last 30 minutes"),
                Query(_of_decisions(ESCALATE, "1d", "30m"), "escalated, the day before"),
            ],
        )
    )


def _add_doubt(dashboard: board.Dashboard) -> None:
    confidence, variance = "dalorra_confidence", "dalorra_predictive_variance"
    dashboard.with_row(board.Row("Doubt")).with_panel(
        heat(
            "Confidence",
            "Answers by the mean probability of their label; a row is a bucket's upper end.",
            "percentunit",
            confidence,
        )
    ).with_panel(
        heat(
            "Variance",
            "Answers by the variance of that probability over the samples.",
            "none",
            variance,
        )
    )
    for title, description, unit, histogram in (
        (
            "Mean confidence",
            "DalorraConfidenceDrift watches the gap between the hour and the day before.",
            "percentunit",
            confidence,
        ),
        ("Mean variance", "How much the samples disagree on average.", "none", variance),
    ):
        dashboard.with_panel(
            lines(
                title,
                description,
                unit,
                [
                    Query(mean(histogram, "1h"), "last hour"),
                    Query(mean(histogram, "1d", "1h"), "the day before"),
                ],
            )
        )


def _add_novelty(dashboard: board.Dashboard) -> None:
    novelty = "dalorra_novelty_p_value"
    rare = rate(f"{novelty}_bucket", matchers='le="0.01"')
    dashboard.with_row(board.Row("Novelty")).with_panel(
        heat(
            "Novelty",
            "Answers by their input's p-value among those like the training data; low is novel.",
            "none",
            novelty,
        )
    ).with_panel(
        lines(
            "Novel inputs",
            "Share with a p-value of at most 0.01; of familiar inputs, one in a hundred has it.",
            "percentunit",
            [Query(f"{rare} / {rate(f'{novelty}_count')}", "p-value at most 0.01")],
        )
    )


def _add_truth(dashboard: board.Dashboard) -> None:
    def each(metric: str, name: str) -> Query:
        return Query(f"{metric}{{{SELECTED}}}", f"{name}, {{{{adapter}}}} {{{{instance}}}}")

    dashboard.with_row(board.Row("Truth, where feedback tells it")).with_panel(
        lines(
            "Live error",
            "Share of wrong answers among the accepted with feedback, and its 95 % interval.",
            "percentunit",
            [
                each("dalorra_live_error_ratio", "error"),
                each("dalorra_live_error_lower_ratio", "at least"),
                each("dalorra_live_error_upper_ratio", "at most"),
                Query(
                    f"max by (adapter) (dalorra_promised_error_ratio{{{SELECTED}}})",
                    "promised, {{adapter}}",
                ),
            ],
        )
    ).with_panel(
        lines(
            "Evidence against the promise",
            "An e-value: about 1 or below while the promise is kept; the alarm stays once reached.",
            "none",
            [
                each("dalorra_promise_e_value", "e-value"),
                Query(f"max (dalorra_promise_alarm_e_value{{{SELECTED}}})", "alarm"),
            ],
            logarithmic=True,
        )
    ).with_panel(
        lines(
            "Live calibration error",
            "Expected calibration error of the answers with feedback, in 15 bins.",
            "percentunit",
            [each("dalorra_live_ece_ratio", "ECE")],
        )
    ).with_panel(
        lines(
            "Feedback",
            "Judged answers per second, by the decision on them and whether they were right.",
            "reqps",
            [
                Query(
                    rate("dalorra_feedback_total", "adapter, decision, correct"),
                    "{{adapter}}, {{decision}}, correct: {{correct}}",
                )
            ],
            stacked=True,
        )
    )


def _add_answers(dashboard: board.Dashboard) -> None:
    dashboard.with_row(board.Row("Answers")).with_panel(
        lines(
            "Labels",
            "Answers per second by predicted label.",
            "reqps",
            [Query(rate("dalorra_labels_total", "label"), "{{label}}")],
            stacked=True,
        )
    ).with_panel(
        lines(
            "Shares of the labels",
            "A shift without a cause in the world is a shift in the inputs.",
            "percentunit",
            [Query(share("dalorra_labels_total", "label"), "{{label}}")],
            stacked=True,
            top=1,
        )
    ).with_panel(
        lines(
            "Samples per answer",
            "Posterior samples averaged in one answer.",
            "none",
            [
                Query(
                    f"{rate('dalorra_mask_samples_total')} / {rate('dalorra_decisions_total')}",
                    "samples",
                )
            ],
            width=24,
        )
    )
