"""The rules load, fire when they should, and say what to do."""

import re
from typing import Any

import pytest
import yaml

from tests.contract.programs import run
from tests.contract.promql import ROOT, RULES, rules

ALERTS = [pytest.param(rule, id=rule["alert"]) for rule in rules() if "alert" in rule]
OPERATIONS = ROOT / "docs/operations.md"


def anchors() -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", OPERATIONS.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_to_do(alert: dict[str, Any]):
    document, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert document == "docs/operations.md"
    assert anchor == alert["alert"].lower()
    assert anchor in anchors()
    assert alert["annotations"]["summary"]
    assert alert["labels"]["severity"] in {"warning", "critical"}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(alert: dict[str, Any]):
    written = yaml.safe_load((RULES / "rules_test.yml").read_text())["tests"]
    cases = [
        bool(case.get("exp_alerts"))
        for test in written
        for case in test["alert_rule_test"]
        if case["alertname"] == alert["alert"]
    ]
    assert set(cases) == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "rules_test.yml"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_agrees(arguments: list[str]):
    done = run("promtool", *arguments, cwd=RULES, brought_by="make system-deps")
    assert done.returncode == 0, done.stdout + done.stderr
