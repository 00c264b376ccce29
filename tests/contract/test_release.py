"""`make dist`: what is published answers, installed where nothing of the checkout is."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.promql import ROOT


def release(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.release", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_what_was_built_before_is_not_mixed_with_it(tmp_path):
    (tmp_path / "dalorra_service-0.0.1.tar.gz").touch()
    done = release(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path} is not empty: make clean, or name another folder\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_of_the_wheel_answers(tmp_path):
    done = release(tmp_path / "dist")
    assert done.returncode == 0, done.stderr
    _, answer, sdist, wheel = done.stdout.splitlines()
    assert '"label":"positive"' in answer
    assert {Path(sdist), Path(wheel)} == set((tmp_path / "dist").iterdir())
