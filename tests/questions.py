"""Typed questions for tests, and what is known of any answer to them."""

from typing import Any

import pytest

from dalorra.adapter.registered import RegisteredQuestion
from dalorra.decision.policy import Decision

STATE = "I was charged twice and nobody answers. Refund me today."
NOUL = {"type": "noul", "instructions": "Is the customer asking for money back?"}
CHOICE = {
    "type": "choice",
    "instructions": "Which team should handle this?",
    "criteria": {"Billing": "invoices and refunds", "Technical": None, "환불 🙂": ["a", {"b": 1}]},
}
SCORE = {
    "type": "score",
    "instructions": "How angry is the customer?",
    "criteria": ["calm", {"label": "annoyed"}, "furious"],
}
QUESTIONS = {"refund": NOUL, "team": CHOICE, "anger": SCORE}
POSITIVE = RegisteredQuestion(instructions="Is this review positive?", yes="positive")
ASK_POSITIVE = {"type": "noul", "instructions": " is this REVIEW positive? "}


def check_own_fields(answer: dict[str, Any], adapter: str) -> None:
    """What every answer of this server says beside its protocol's fields."""
    own = {name for name in answer if name.startswith("x_")} - {"x_sample_probabilities"}
    assert own == {
        "x_decision", "x_reason", "x_variance", "x_standard_error", "x_novelty", "x_promise",
        "x_samples", "x_adapter", "x_request_id",
    }  # fmt: skip
    assert answer["x_decision"] in set(Decision)
    assert answer["x_adapter"] == adapter
    assert 0 <= answer["x_variance"] <= 0.25
    assert answer["x_samples"] == 10


def check_distribution(probabilities: list[float]) -> None:
    assert all(0 <= p <= 1 for p in probabilities)
    assert sum(probabilities) == pytest.approx(1)
