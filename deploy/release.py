"""Makes what is published: builds wheel and sdist, checks them, and asks a server of the wheel.

    python -m deploy.release [FOLDER]        # make dist; dist/ by default

The wheel is built from the sdist, so that this holds all that it needs. It is installed into a
clean environment, which borrows the libraries of the one that runs this and nothing else of it:
neither the checkout nor an installed `dalorra`. There its command starts a server with the bundled
adapter, and its client asks it.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
START_SECONDS: Final = 300

_ASK: Final = """
import sys
from dalorra.client import Client
with Client(sys.argv[1]) as client:
    print(client.predict("This movie was fantastic!").model_dump_json(exclude_unset=True))
"""


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist of the checkout and the wheel of the sdist, in an empty folder."""
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    _run(sys.executable, "-m", "pip", "wheel", *offline, "-w", folder, sdist)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def install(wheel: Path, folder: Path) -> Path:
    """A virtual environment with the wheel, and the libraries of this one; its folder of commands.

    pip then checks that these are what the extra `server` asks for.
    """
    venv.create(folder)
    commands = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    install_there = (*pip, "--python", commands / "python", "install", "--no-index")
    _run(*install_there, "--no-deps", wheel, env=_clean())
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # A path alone: what pip has made editable there, the checkout, is not found through it.
    (site_packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    _run(*install_there, "dalorra-service[server]", env=_clean())
    return commands


def ask(commands: Path) -> str:
    """The answer of a server that these commands start, and that is stopped afterwards."""
    serve = [str(commands / "dalorra"), "serve", "--port", "0", "--log-format", "json"]
    with (
        tempfile.TemporaryDirectory() as elsewhere,
        subprocess.Popen(
            serve, cwd=elsewhere, env=_clean(), stderr=subprocess.PIPE, text=True
        ) as server,
    ):
        late = threading.Timer(START_SECONDS, server.kill)
        late.start()
        try:
            port = _port_when_ready(server.stderr or ())
            url = f"http://127.0.0.1:{port}"
            return _run(commands / "python", "-c", _ASK, url, cwd=Path(elsewhere), env=_clean())
        finally:
            late.cancel()
            server.terminate()


def _clean() -> dict[str, str]:
    """The environment's variables, without those that bring other Python code."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _port_when_ready(lines: Iterable[str]) -> int:
    said, port = [], 0
    for line in lines:
        said.append(line)
        event = json.loads(line) if line.startswith("{") else {}
        port = int(event.get("port", port))
        if event.get("event") == "ready":
            return port
    raise SystemExit("the server did not become ready:\n" + "".join(said[-20:]))


def _run(*command: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """See the module."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "dist").resolve()
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: make clean, or name another folder")
    sdist, wheel = build(folder)
    _run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    with tempfile.TemporaryDirectory() as clean:
        answer = ask(install(wheel, Path(clean)))
    sys.stdout.write(f"a server of the wheel answers:\n{answer}{sdist}\n{wheel}\n")


if __name__ == "__main__":
    main()
