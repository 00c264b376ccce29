"""What calibrated adapters accept of far inputs, level by level."""

import torch

from benchmarks.far_inputs import section, taken
from dalorra.decision.novelty import SHARES, Novelty
from dalorra.decision.policy import Policy
from tests.tiny import answer


def test_levels_refuse_far_inputs_and_the_thresholds_stay():
    scores = torch.arange(1000.0)
    novelty = Novelty(torch.zeros(1, 1), torch.ones(1, 1, 1), scores, torch.empty(0, 0), "")
    policy = Policy(
        min_probability=0.8, max_variance=0.25, source="a test", min_novelty_p=0.003,
        confidence=0.95,
    )  # fmt: skip
    far = [answer(0.9, 0.0, p) for p in (0.001, 0.004, 0.03, 0.5)] + [answer(0.7, 0.0, 0.5)]
    answers = {
        "usual": [answer(0.9, 0.0, 0.5)] * 4,
        "ag_news": far,
        "off domain: code": far[:1],
        "off domain: chat": far[3:4],
    }
    lines = list(taken(answers, policy, novelty, "tickets"))
    news = [line["accepted"] for line in lines if line["inputs"] == "ag_news"]
    shares = [line["share"] for line in lines if line["inputs"] == "ag_news"]
    assert shares == [None, 0.0, *SHARES]
    assert news == [0.6, 0.8, 0.4, 0.4, 0.2, 0.2]
    assert all(line["accepted"] == 1.0 for line in lines if line["inputs"] == "usual")

    table = section(lines)
    assert "| adapter | accepted of | as calibrated | no level | 1% | 2% | 5% | 10% |" in table
    assert "| tickets | news (ag_news) | 60% | 80% | 40% | 40% | 20% | 20% |" in table
    assert "| tickets | texts of 16 kinds, mean | 50% | 100% | 50% | 50% | 50% | 50% |" in table
    assert "| tickets | *usual inputs that are novel* | 0.0% | 0.0% |" in table
    assert "questions (trec)" not in table
