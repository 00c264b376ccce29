"""What the dashboards and rules ask Prometheus, and what is wrong with it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
RULES = ROOT / "deploy/prometheus"

Series = dict[str, list[dict[str, str]]]
"""Labels of every series, by name."""

TARGET_LABELS = {"job", "instance"}
VARIABLES = {
    "$__rate_interval": "1m",
    "$job": "dalorra",
    "$instance": ".*",
    "$adapter": ".*",
}
"""What Grafana puts in the place of each."""


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """Panels of a dashboard, rows left out."""
    return [p for p in json.loads(dashboard.read_text())["panels"] if p["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    """All recording and alert rules."""
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*_rules.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Where each expression stands, and the expression as Prometheus gets it."""
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                expr = target["expr"]
                for variable, value in VARIABLES.items():
                    expr = expr.replace(variable, value)
                yield f"{path.stem}/{panel['title']}/{target['refId']}", expr
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]


def problems(expr: str, known: Series) -> list[str]:
    """Names, labels and label values in an expression that no running server has.

    Raises:
        ValueError: the expression is not PromQL.
    """
    found: list[str] = []
    labels = TARGET_LABELS | {label for every in known.values() for one in every for label in one}

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.extend(_unknown_in(node, known))
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.extend(f"label {name}" for name in node.modifier.labels if name not in labels)

    promql_parser.walk(promql_parser.parse(expr), visit)
    return found


def _unknown_in(selector: promql_parser.VectorSelector, known: Series) -> Iterator[str]:
    if selector.name not in known:
        yield f"metric {selector.name}"
        return
    for matcher in selector.matchers.matchers:
        if matcher.name in TARGET_LABELS or matcher.op != promql_parser.MatchOp.Equal:
            continue
        if not any(one.get(matcher.name) == matcher.value for one in known[selector.name]):
            yield f'{selector.name}{{{matcher.name}="{matcher.value}"}}'
