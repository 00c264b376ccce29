"""The committed dashboards are what the generators write, and each panel can be read."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import dashboards
from deploy.prometheus import as_resource
from tests.contract.promql import DASHBOARDS, ROOT, panels

EVERY_PANEL = [
    pytest.param(panel, id=f"{path.stem}/{panel['title']}")
    for path in DASHBOARDS
    for panel in panels(path)
]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        pytest.param(path, content, id=path.name)
        for path, content in (*dashboards.files(), *as_resource.files())
    ],
)
def test_what_is_committed_is_what_is_generated(path: Path, content: str):
    assert path.read_text() == content, "run `make generate`"


def test_no_dashboard_is_committed_that_nothing_generates():
    assert sorted(path for path, _ in dashboards.files()) == DASHBOARDS


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_a_panel_says_what_it_shows(panel: dict[str, Any]):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert "\n" not in panel["description"]
    assert len(panel["description"]) <= 100
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    references = [target["refId"] for target in panel["targets"]]
    assert references == sorted(set(references))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_their_own_number_and_place(path: Path):
    everything = json.loads(path.read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for one, other in combinations([panel["gridPos"] for panel in everything], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in everything) <= 24


def test_dashboards_have_their_own_address_and_title():
    read = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({dashboard["uid"] for dashboard in read}) == len(read)
    assert len({dashboard["title"] for dashboard in read}) == len(read)
    assert all(not dashboard["editable"] for dashboard in read)


def test_grafana_is_provisioned_with_what_the_compose_file_mounts():
    provisioning = ROOT / "deploy/grafana/provisioning"
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in compose["volumes"])
    (provider,) = yaml.safe_load((provisioning / "dashboards/dalorra.yml").read_text())["providers"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]

    assert provider["options"]["path"] == mounts["./deploy/grafana/dashboards"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    home = compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in {f"{provider['options']['path']}/{path.name}" for path in DASHBOARDS}
    assert source["url"] == "http://prometheus:9090"
    scraping = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]
