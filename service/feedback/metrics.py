"""What feedback says, for Prometheus. Read at scrape time; the clerk worked it out before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dalorra.decision.policy import Decision
from service.feedback.ledger import Ledger
from service.feedback.messages import ServedPolicy


def _promised(served: ServedPolicy) -> float:
    policy = served.policy
    if policy.confidence is None or policy.target_error is None or policy.costs:
        return math.nan
    return policy.target_error


_GAUGES: tuple[tuple[str, str, Callable[[ServedPolicy], float]], ...] = (
    (
        "dalorra_judged_answers",
        "Answers with feedback that are kept, of the policy that is served.",
        lambda served: served.live.judged,
    ),
    (
        "dalorra_live_error_ratio",
        "Share of wrong answers among the accepted with feedback; NaN if there is none.",
        lambda served: served.live.error,
    ),
    (
        "dalorra_live_error_lower_ratio",
        "Lower end of the exact 95 % confidence interval of the live error.",
        lambda served: served.live.lower,
    ),
    (
        "dalorra_live_error_upper_ratio",
        "Upper end of that interval.",
        lambda served: served.live.upper,
    ),
    (
        "dalorra_promised_error_ratio",
        "Largest error among accepted that the policy promises; NaN if it promises no error rate.",
        _promised,
    ),
    (
        "dalorra_live_ece_ratio",
        "Expected calibration error of the answers with feedback; NaN if there is none.",
        lambda served: served.live.ece,
    ),
    (
        "dalorra_promise_e_value",
        "Evidence against the promise: stays about 1 or below while it is kept.",
        lambda served: served.live.e_value,
    ),
    (
        "dalorra_promise_broken",
        "1 once the evidence against the promise has reached the alarm level.",
        lambda served: served.live.broken,
    ),
)


class FeedbackCollector(Collector):
    """Series of the ledger, one for each adapter that is served."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        """All series."""
        judged = CounterMetricFamily(
            "dalorra_feedback",
            "Feedback taken, by the decision on the answer and whether its label was right.",
            labels=["adapter", "decision", "correct"],
        )
        for name, decision, correct in product(
            [served.adapter for served in self._ledger.policies], Decision, (False, True)
        ):
            count = self._ledger.judged.get((name, decision, correct), 0)
            judged.add_metric([name, decision, str(correct).lower()], count)
        yield judged
        yield CounterMetricFamily(
            "dalorra_unkept_answers",
            "Answers that feedback cannot name, because the store did not keep up or failed.",
            self._ledger.lost,
        )
        yield GaugeMetricFamily(
            "dalorra_promise_alarm_e_value",
            "E-value from which the promise counts as broken; NaN if feedback is off.",
            1.0 / self._ledger.alpha,
        )
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["adapter"])
            for served in self._ledger.policies:
                gauge.add_metric([served.adapter], float(value(served)))
            yield gauge
