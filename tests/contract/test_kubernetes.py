"""The manifests are valid, and fit the server and its image."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.app import create_app
from service.run import END_SECONDS
from service.settings import ENV_PREFIX, Settings, load_settings
from tests.contract.programs import run
from tests.contract.promql import ROOT, Series, problems
from tests.fakes import FakePredictor

KUBERNETES = ROOT / "deploy/kubernetes"
BASE = KUBERNETES / "base"
VERSION = kubernetes_validate.latest_version()
NO_SCHEMA = {"PrometheusRule", "ServiceMonitor"}
"""Custom resources of the Prometheus operator, which no schema of Kubernetes describes."""
NOT_RESOURCES = {
    "deploy/kubernetes/base/settings.yaml",
    "deploy/kubernetes/prometheus_adapter.yaml",
}

Manifest = dict[str, Any]


def files() -> Iterator[Path]:
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        if str(path.relative_to(ROOT)) not in NOT_RESOURCES:
            yield path


def resource(name: str) -> Manifest:
    loaded: Manifest = yaml.safe_load((BASE / f"{name}.yaml").read_text())
    return loaded


def rendered(folder: str) -> list[Manifest]:
    done = run("kubectl", "kustomize", str(KUBERNETES / folder), brought_by="Kubernetes")
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture
def pod() -> Manifest:
    spec: Manifest = resource("deployment")["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: Manifest) -> Manifest:
    (only,) = pod["containers"]
    assert isinstance(only, dict)
    return only


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the pod's server reads."""
    for name in os.environ:
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    return load_settings(BASE / "settings.yaml")


@pytest.mark.parametrize("path", list(files()), ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_a_manifest_is_valid(path: Path):
    for manifest in yaml.safe_load_all(path.read_text()):
        if manifest["kind"] in NO_SCHEMA:
            assert manifest["apiVersion"] == "monitoring.coreos.com/v1"
        elif manifest["kind"] in {"Kustomization", "Component"}:
            for name in manifest["resources"]:
                assert (path.parent / name).exists(), name
        elif "overlays" not in path.parts:  # a patch is no whole resource: see the next test
            kubernetes_validate.validate(manifest, VERSION, strict=True)


@pytest.mark.parametrize("folder", ["base", "overlays/gpu"])
def test_a_rendered_folder_is_valid(folder: str):
    kinds = set()
    for manifest in rendered(folder):
        kubernetes_validate.validate(manifest, VERSION, strict=True)
        kinds.add(manifest["kind"])
    assert kinds == {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy",
        "PodDisruptionBudget", "Service",
    }  # fmt: skip


def test_the_validator_refuses_what_is_misspelt():
    manifest = resource("deployment")
    manifest["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_the_gpu_overlay_asks_for_a_gpu_and_changes_nothing_else_of_the_container():
    (deployment,) = [one for one in rendered("overlays/gpu") if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (plain,) = resource("deployment")["spec"]["template"]["spec"]["containers"]

    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    device = {"name": "DALORRA_DEVICE", "value": "cuda"}
    assert [one for one in container["env"] if one not in plain["env"]] == [device]
    changed = {key for key in container if container[key] != plain.get(key)}
    assert changed == {"env", "image", "resources"}


@pytest.mark.parametrize("folder", ["base", "overlays/gpu"])
def test_a_pod_computes_on_as_many_threads_as_it_asks_for_cores(folder: str):
    (deployment,) = [one for one in rendered(folder) if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (threads,) = [one for one in container["env"] if one["name"] == "OMP_NUM_THREADS"]
    assert threads["valueFrom"] == {"resourceFieldRef": {"resource": "requests.cpu"}}
    assert container["resources"]["requests"]["cpu"] == "2"


def test_every_resource_of_the_base_is_in_its_kustomization():
    listed = set(resource("kustomization")["resources"])
    assert listed == {path.name for path in BASE.glob("*.yaml")} - {
        "kustomization.yaml", "settings.yaml",
    }  # fmt: skip


def test_probes_ask_paths_that_exist(container: Manifest):
    paths = create_app(Settings(), lambda _: FakePredictor()).openapi()["paths"]
    probes = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    assert probes == {
        "startup": "/health/ready",
        "readiness": "/health/ready",
        "liveness": "/health/live",
    }
    assert set(probes.values()) <= set(paths)


def test_the_pod_lives_long_enough_to_finish_its_queue(
    pod: Manifest, container: Manifest, settings: Settings
):
    sleep, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    needed = float(seconds) + settings.drain_seconds + END_SECONDS
    assert pod["terminationGracePeriodSeconds"] > needed
    assert pod.get("restartPolicy", "Always") == "Always"


def test_the_server_reads_its_settings_where_they_are_mounted(
    container: Manifest, settings: Settings
):
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    assert container["args"] == ["--config", str(mounts["settings"] / "settings.yaml")]
    assert settings.api_keys_file == mounts["keys"] / "keys.txt"
    assert [port["containerPort"] for port in container["ports"]] == [settings.port]
    assert settings.host == "0.0.0.0"  # noqa: S104


def test_the_pod_may_do_nothing_that_it_does_not_need(pod: Manifest, container: Manifest):
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # or DALORRA_PORT=tcp://… stops the server
    assert pod["securityContext"]["runAsNonRoot"] is True
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert f"\nUSER {user}\n" in (ROOT / "Dockerfile").read_text()
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])


def test_everything_selects_the_same_pods(pod: Manifest):
    labels = resource("deployment")["spec"]["template"]["metadata"]["labels"]
    monitor = yaml.safe_load(
        (KUBERNETES / "components/prometheus-operator/service_monitor.yaml").read_text()
    )
    assert resource("service")["spec"]["selector"] == labels
    for spec, key in (
        (resource("deployment")["spec"], "selector"),
        (resource("disruption")["spec"], "selector"),
        (resource("network")["spec"], "podSelector"),
        (monitor["spec"], "selector"),
    ):
        assert spec[key] == {"matchLabels": labels}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in resource("service")["spec"]["ports"]}


def test_the_autoscaler_looks_at_a_metric_that_exists(running_series: Series):
    (metric,) = resource("autoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in running_series
    adapter = yaml.safe_load((KUBERNETES / "prometheus_adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    query = (
        rule["metricsQuery"]
        .replace("<<.GroupBy>>", "instance")
        .replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
        .replace("<<.LabelMatchers>>", 'instance="a"')
    )
    assert problems(query, running_series) == []
    assert float(metric["pods"]["target"]["averageValue"]) == 2 * Settings().batch_rows
