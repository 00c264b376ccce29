"""Which answers break a law, and how doubtful they are."""

import random
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.broken_laws import DOUBTS, Noted, Tried, among, by_thirds, judged
from benchmarks.coherence import doubt, scores
from benchmarks.coherence_section import section
from benchmarks.report import write_json

KEPT = Tried("a law", "case 0", broken=False, accepted=True, variance=0.01, unsure=0.1)


def test_a_mapping_tells_what_was_looked_at():
    seen: list[str] = []
    noted = Noted({"a": 1, "b": 2, "c": 3}, seen.append)
    assert list(noted) == ["a", "b", "c"]
    assert seen == []
    assert noted["b"] + noted.get("a", 0) == 3
    assert seen == ["b", "a"]
    assert dict(noted.items()) == {"a": 1, "b": 2, "c": 3}
    assert seen[2:] == ["a", "b", "c"]


@pytest.fixture(scope="module")
def biased() -> Any:
    """A model that breaks many laws, with what our answers say beyond the protocol."""
    jevbench = pytest.importorskip("jevbench")
    model = jevbench.fake("biased")

    def ask(state: Any, questions: Any) -> Any:
        return {
            name: answer | {"x_variance": 1 / (2 + len(name)), "x_decision": "accept"}
            for name, answer in model.ask(state, questions).items()
        }

    return ask


def test_laws_are_broken_as_the_suite_finds_them(biased: Any, tmp_path):
    import jevbench

    suite = jevbench.suites.load_suite("jevbench-mini")
    domains = ["finance_ops", "logistics", "agent_logs"]
    model = jevbench.from_callable(biased, name="biased")
    report = jevbench.evaluate(model, suite, domains=domains, cache=None)
    tests = judged(suite, biased, set(report.result["cases"]))

    assert len(tests) == 6 * len(report.relations)
    for law, score in report.relations.items():
        of_law = [test.broken for test in tests if test.law == law]
        assert 1 - sum(of_law) / len(of_law) == pytest.approx(score)
    for test in tests:
        assert 0 < test.variance <= 1 / 3
        assert 0 <= test.unsure <= 1
        assert test.accepted
    lines = scores(report)
    assert lines[0]["n"] == len(tests) == sum(x["n"] for x in lines if "." in x["name"])
    assert lines[0]["score"] == pytest.approx(report.overall)


@pytest.mark.parametrize("name", DOUBTS)
def test_doubt_that_knows_has_an_auroc_of_1(name: str):
    tests = [
        replace(KEPT, law=f"law {n % 3}", case=f"case {n % 7}", broken=n % 2 == 0, unsure=doubtful,
                variance=doubtful)
        for n in range(60)
        for doubtful in [n % 3 + (0.5 if n % 2 == 0 else 0.1) + n / 1000]
    ]  # fmt: skip
    found = by_thirds(tests, name)
    assert found["auroc"] == 1
    assert found["interval"] == (1, 1)
    assert [third["share"] for third in found["thirds"]] == pytest.approx([0, 0.5, 1], abs=0.1)
    assert sum(third["n"] for third in found["thirds"]) == 60


def test_a_hard_law_is_no_doubt():
    """Between laws doubt tells, and within none: that counts for nothing."""
    rng = random.Random(0)
    tests = [
        replace(KEPT, law=law, case=f"case {n}", broken=rng.random() < hard,
                variance=hard + rng.random() / 10)
        for law, hard in (("easy", 0.1), ("hard", 0.9))
        for n in range(1000)
    ]  # fmt: skip
    found = by_thirds(tests, "variance")
    low, high = found["interval"]
    assert found["auroc"] == pytest.approx(0.5, abs=0.08)
    assert low < found["auroc"] < high < low + 0.2


def test_without_a_pair_there_is_no_auroc_and_of_none_no_share():
    assert by_thirds([KEPT], "variance")["auroc"] is None
    assert among([])["share"] is None
    assert among([KEPT, replace(KEPT, case="case 1", broken=True)])["share"] == 0.5


@pytest.mark.parametrize("accepts", [True, False])
def test_the_section_says_what_was_found(tmp_path, accepts: bool):
    tests = [
        replace(KEPT, case=f"case {n}", broken=n % 2 == 0, accepted=accepts and n < 5)
        for n in range(30)
    ]
    overall = {"name": "overall", "title": "Overall", "n": 30, "score": 0.5, "interval": (0.4, 0.6)}
    found = [{"measure": "score", **overall}]
    context = {"suite": "jevbench-mini", "jevbench": "0.1.0", "cases": 30}
    write_json(tmp_path / "coherence.json", [{**x, **context} for x in (*found, *doubt(tests))])
    others = [{"model": "theirs", "overall": 0.838, "accuracy": 0.884, "source": "https://where"}]
    write_json(tmp_path / "coherence_published.json", others)

    text = section(tmp_path)

    assert "| **Overall** | 30 | 50.0 | 83.8 |" in text
    assert "overall 50.0 (40.0 to 60.0" in text
    assert "(https://where)" in text
    assert ("accepts none" in text) is not accepts
    assert ("Where all answers of a test are accepted, 60.0 (" in text) is accepts
