"""Every dashboard and rule asks for what a running server has."""

import pytest

from tests.contract.promql import Series, expressions, problems, rules

EXPRESSIONS = dict(expressions())


@pytest.fixture(scope="session")
def known(running_series: Series) -> Series:
    """Scraped series and those that rules record."""
    kept = {
        "job_adapter_decision": running_series["dalorra_decisions_total"],
        "job_outcome": running_series["dalorra_requests_total"],
    }
    recorded = {
        name: kept.get(name.partition(":")[0], [{}])
        for rule in rules()
        if (name := rule.get("record"))
    }
    return running_series | recorded


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_an_expression_finds_what_it_asks_for(where: str, known: Series):
    assert problems(EXPRESSIONS[where], known) == []


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("rate(dalorra_decisions[5m])", "metric dalorra_decisions"),
        ("sum by (le) (rate(dalorra_nothing_bucket[5m]))", "metric dalorra_nothing_bucket"),
        (
            'increase(dalorra_decisions_total{decision="refuse"}[1h] offset 5m)',
            'dalorra_decisions_total{decision="refuse"}',
        ),
        ("sum by (shape) (dalorra_ready)", "label shape"),
    ],
)
def test_a_wrong_expression_is_noticed(expr: str, problem: str, known: Series):
    assert problems(expr, known) == [problem]


def test_what_is_not_promql_is_noticed(known: Series):
    with pytest.raises(ValueError, match="parenthes"):
        problems("sum(rate(dalorra_ready[5m])", known)
