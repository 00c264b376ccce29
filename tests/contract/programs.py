"""Programs that are not Python, run by the tests."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def find(name: str, brought_by: str) -> str:
    """Path of a program, from this environment or the system; skips the test without it."""
    beside_python = str(Path(sys.executable).parent)
    found = shutil.which(name, path=beside_python) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing: {brought_by} brings it")
    return found


def run(
    name: str,
    *arguments: str,
    brought_by: str,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, whatever that is."""
    return subprocess.run(
        [find(name, brought_by), *arguments],
        check=False,
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
    )
