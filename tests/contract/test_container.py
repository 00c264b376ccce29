"""The image and the compose file fit the project they are made of."""

import fnmatch
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.run import END_SECONDS
from service.settings import ENV_PREFIX, Settings
from tests.contract.programs import run
from tests.contract.promql import ROOT
from tests.fakes import FakePredictor

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_FILE = ROOT / "docker-compose.yml"
OTHER_VARIABLES = {"DALORRA_CACHE"}
DEVELOPMENT = "pip install -e '.[dev]'"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what compose and the server are asked for by name


def compose(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(
        "docker-compose",
        *("-f", str(COMPOSE_FILE), *arguments),
        brought_by=DEVELOPMENT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
    )


def configuration(profile: str, **environment: str) -> dict[str, Any]:
    done = compose("--profile", profile, "config", "--format", "json", **environment)
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


def variables(names: Any) -> set[str]:
    """Settings among environment variables."""
    return {
        name.removeprefix(ENV_PREFIX).lower()
        for name in names
        if name.startswith(ENV_PREFIX) and name not in OTHER_VARIABLES
    }


def test_hadolint_finds_nothing():
    done = run("hadolint", "Dockerfile", brought_by=DEVELOPMENT, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "")


def test_everything_copied_from_the_context_is_there_and_not_ignored():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == kept
    assert set(PYPROJECT["tool"]["hatch"]["build"]["only-include"]) <= copied
    for source in copied:
        assert (ROOT / source).exists(), source
    for secret in (".env", "keys.txt", "runs", ".git", "tests"):
        assert not any(fnmatch.fnmatch(secret, pattern) for pattern in kept)


def test_the_image_has_what_the_server_can_use():
    (script,) = re.findall(r'python -c "(.+?)" > requirements.txt', DOCKERFILE, re.DOTALL)
    command = [sys.executable, "-c", script.replace("\\\n", "")]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = [*extras["server"], *extras["mcp"], *extras["otel"], *extras["shared"]]
    assert done.stdout.splitlines() == [*project["dependencies"], *wanted]


def test_the_image_sets_only_what_the_server_knows():
    names = re.findall(rf"\b({ENV_PREFIX}[A-Z_]+)=", DOCKERFILE)
    assert {"host", "port"} <= variables(names) <= set(Settings.model_fields)


def test_the_image_runs_the_server_as_nobody_in_particular():
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert 'ENTRYPOINT ["dalorra", "serve"]' in final
    assert "org.opencontainers.image.licenses" in final


def test_the_health_check_asks_a_path_that_exists():
    (path,) = re.findall(r"/health/\w+", DOCKERFILE)
    app = create_app(Settings(), lambda _: FakePredictor())
    assert path in app.openapi()["paths"]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_tells_ready_from_not_ready(status: int, healthy: bool):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    _, *arguments = json.loads(re.findall(r"^    CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)[0])
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        done = subprocess.run(
            [sys.executable, *arguments],
            check=False,
            stderr=subprocess.DEVNULL,
            env={"DALORRA_PORT": str(server.server_port)},
        )
    assert (asked, done.returncode == 0) == (["/health/ready"], healthy)


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_accepts_the_file(profile: str):
    done = compose("--profile", profile, "config", "-q")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("profile", "name", "device"), [("cpu", "dalorra", "cpu"), ("gpu", "dalorra-gpu", "cuda")]
)
def test_a_profile_runs_one_server_and_what_watches_it(profile: str, name: str, device: str):
    services = configuration(profile)
    server = services[name]

    assert set(services) == {name, "prometheus", "grafana"}
    assert server["build"]["args"]["DEVICE"] == device
    assert server["read_only"]
    assert server["cap_drop"] == ["ALL"]
    assert variables(server["environment"]) <= set(Settings.model_fields)
    minutes, _, seconds = server["stop_grace_period"].removesuffix("s").rpartition("m")
    grace = 60.0 * float(minutes or 0) + float(seconds)
    assert grace > Settings().drain_seconds + END_SECONDS
    assert server["restart"] == "unless-stopped"
    hosts = server["environment"]["DALORRA_ALLOWED_HOSTS"].split(",")
    assert {"localhost", "127.0.0.1", "dalorra"} == set(hosts)
    reserved = server.get("deploy", {}).get("resources", {}).get("reservations", {})
    assert bool(reserved.get("devices")) == (profile == "gpu")


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_prometheus_finds_the_server(profile: str):
    scraping = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    ((target,),) = [one["static_configs"][0]["targets"] for one in scraping["scrape_configs"]]
    host, _, port = target.partition(":")
    services = configuration(profile)
    (server,) = [name for name in services if name.startswith("dalorra")]
    aliases = ((services[server]["networks"]["default"]) or {}).get("aliases", [])

    assert host in {server, *aliases}
    assert port == str(services[server]["ports"][0]["target"])


def test_nothing_is_open_to_others_unless_asked_for():
    for service in configuration("cpu").values():
        assert [port["host_ip"] for port in service["ports"]] == ["127.0.0.1"]
    opened = configuration("cpu", BIND_ADDRESS=EVERYWHERE)
    assert opened["dalorra"]["ports"][0]["host_ip"] == EVERYWHERE
    assert opened["grafana"]["ports"][0]["host_ip"] == "127.0.0.1"


def test_grafana_has_no_password_that_everybody_knows():
    environment = configuration("cpu")["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not [name for name in environment if "PASSWORD" in name]


def test_a_key_of_the_shell_reaches_the_server_and_no_key_is_no_setting():
    """An empty DALORRA_API_KEYS would be refused, so an unset one must stay unset."""
    assert configuration("cpu")["dalorra"]["environment"]["DALORRA_API_KEYS"] is None
    given = configuration("cpu", DALORRA_API_KEYS="one,two")["dalorra"]["environment"]
    assert given["DALORRA_API_KEYS"] == "one,two"


def test_what_is_mounted_is_there():
    for service in configuration("cpu").values():
        for volume in service["volumes"]:
            if volume["type"] == "bind" and volume["target"] != "/adapters":
                assert Path(volume["source"]).is_dir(), volume["source"]
