"""Writes the rules as a resource of the Prometheus operator.

Run it with `python -m deploy.prometheus.as_resource`. The rule files beside it stay the only place
where rules are edited; a test compares the two.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
RULE_FILES = ("recording_rules.yml", "alert_rules.yml")
RESOURCE = FOLDER.parent / "kubernetes/components/prometheus-operator/prometheus_rule.yaml"
_COMMENT = "# Written by deploy/prometheus/as_resource.py out of the rule files there.\n"


def files() -> Iterator[tuple[Path, str]]:
    """Path and content of the one file."""
    groups = [
        group
        for name in RULE_FILES
        for group in yaml.safe_load((FOLDER / name).read_text())["groups"]
    ]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "dalorra", "labels": {"app.kubernetes.io/name": "dalorra"}},
        "spec": {"groups": groups},
    }
    yield RESOURCE, _COMMENT + yaml.dump(resource, Dumper=_Dumper, sort_keys=False, width=200)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)


if __name__ == "__main__":
    for path, content in files():
        path.write_text(content)
