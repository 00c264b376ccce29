"""What `pip install` brings: one top-level name, and in it all that the checkout has."""

import json
import os
import subprocess
import sys
import sysconfig
import threading
import venv
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.release import build
from service.api.schemas import PredictResponse
from tests.contract.promql import ROOT

APPS = "dalorra/_apps"
EXAMPLE = PredictResponse.model_json_schema()["examples"][0]


def call(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    arguments = list(map(str, command))
    return subprocess.run(arguments, check=False, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of the source distribution, so that this holds all that it needs."""
    _, built = build(tmp_path_factory.mktemp("built"))
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]
    done = call(*pip, "install", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def site_packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


@pytest.fixture(scope="module")
def light(site_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what an install without extras brings beside the wheel."""
    folder = tmp_path_factory.mktemp("light")
    (installed,) = distributions(path=[str(site_packages)])
    for needed in requirements(installed).values():
        for name in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}:
            (folder / name).symlink_to(Path(str(needed.locate_file(name))))
    return folder


def requirements(of: Distribution) -> dict[str, Distribution]:
    """What `of` needs without extras, and what that needs, as it is installed here."""
    found: dict[str, Distribution] = {}
    pending = [of]
    while pending:
        for line in pending.pop().requires or ():
            needed = Requirement(line)
            name = canonicalize_name(needed.name)
            wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if wanted and name not in found:
                found[name] = distribution(name)
                pending.append(found[name])
    return found


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a server that answers everything with the example of the documentation."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(EXAMPLE).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.handle_request, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"


def test_one_top_level_name_is_added(wheel: Path, site_packages: Path):
    name, version, *_ = wheel.name.split("-")
    added = {path.name for path in site_packages.iterdir()} - {"__pycache__"}
    assert added == {"dalorra", f"{name}-{version}.dist-info"}


def test_everything_of_the_checkout_is_in_it(wheel: Path):
    def files(package: str) -> set[str]:
        paths = [path for path in (ROOT / package).rglob("*") if path.is_file()]
        return {str(p.relative_to(ROOT)) for p in paths if p.parent.name != "__pycache__"}

    packed = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    apps = {f"{APPS}/{name}" for package in ("service", "training") for name in files(package)}
    assert packed == files("dalorra") | apps


def test_the_client_needs_no_extra(environment: Path, light: Path, server: str, tmp_path: Path):
    script = """
import sys
from importlib.util import find_spec
from dalorra.client import Client
with Client(sys.argv[1]) as client:
    print(client.predict("fine").model_dump_json(exclude_unset=True))
assert not any(map(find_spec, ("service", "training", "torch", "numpy")))
"""
    python = environment / "bin/python"
    options = {"cwd": tmp_path, "env": {"PYTHONPATH": str(light)}}
    done = call(python, "-c", script, server, **options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == EXAMPLE


def test_the_command_says_in_one_sentence_what_it_needs(environment: Path, light: Path):
    done = call(environment / "bin/dalorra", "--help", env={"PYTHONPATH": str(light)})
    assert done.returncode != 0
    [sentence] = done.stderr.splitlines()
    assert "pip install 'dalorra-service[server]'" in sentence


def test_the_command_finds_the_service_and_the_training(
    environment: Path, site_packages: Path, tmp_path: Path
):
    """With the libraries of this environment, which does not lend its `dalorra`."""
    paths = f"{site_packages}{os.pathsep}{sysconfig.get_path('purelib')}"
    options = {"cwd": tmp_path, "env": {"PYTHONPATH": paths}}
    command = environment / "bin/dalorra"
    assert "method.name=dalorra" in call(command, "methods", **options).stdout
    hashed = call(command, "hash-key", "--stdin", input="a-key-of-decent-length\n", **options)
    assert hashed.stdout.startswith("sha256:")
    script = "import dalorra.cli, service, training; print(service.__file__, training.__file__)"
    found = call(environment / "bin/python", "-c", script, **options).stdout.split()
    assert [Path(path).parents[1] for path in found] == [site_packages / APPS] * 2
