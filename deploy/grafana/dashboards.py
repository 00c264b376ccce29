"""Writes the dashboards of the service: `python -m deploy.grafana.dashboards`.

The JSON beside this file is committed, so that Grafana needs no Python; a test compares the two.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.latency_and_load import latency_and_load
from deploy.grafana.uncertainty import uncertainty

FOLDER = Path(__file__).parent / "dashboards"


def files() -> Iterator[tuple[Path, str]]:
    """Path and content of every dashboard's file."""
    for dashboard in (uncertainty(), latency_and_load()):
        name = f"{dashboard.uid}.json".removeprefix("dalorra-").replace("-", "_")
        yield FOLDER / name, json.dumps(dashboard, cls=JSONEncoder, indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, content in files():
        path.write_text(content)
