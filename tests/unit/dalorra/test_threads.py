"""Threads and waiting, on trees like /proc and /sys."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalorra.threads import (
    DEFAULT_SPINS,
    leave_threads_open,
    operator_decides,
    settle,
    within_quota,
)

ROOT = Path(__file__).parents[3]
PERIOD = 100_000
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OTHERS = """20 1 0:20 / / rw - overlay overlay rw
33 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def tree(
    root: Path, mount: str, group: str, quotas: dict[str, str], *, siblings: dict[int, str] | None
) -> Path:
    """A file system with `quotas`: folder below the mount → content of cpu.max, or quota of v1."""
    write(root / "proc/self/mountinfo", f"{OTHERS}\n{mount}")
    write(root / "proc/self/cgroup", group)
    where = root / mount.split()[4].lstrip("/")
    for folder, quota in quotas.items():
        if "cgroup2" in mount:
            write(where / folder / "cpu.max", f"{quota} {PERIOD}")
        else:
            write(where / folder / "cpu.cfs_quota_us", quota)
            write(where / folder / "cpu.cfs_period_us", str(PERIOD))
    for cpu, those in (siblings or {}).items():
        write(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", those)
    return root


IN_V2, IN_V1 = "0::/kube/pod", "3:cpu,cpuacct:/kube/pod\n2:cpuset:/other\n0::/kube/pod"
CASES = {
    "no quota": (V2, IN_V2, {"": "max", "kube/pod": "max"}, None),
    "its own": (V2, IN_V2, {"kube/pod": "200000"}, 2),
    "that of a group above": (V2, IN_V2, {"kube": "300000", "kube/pod": "800000"}, 3),
    "the container sees its own group alone": (V2, IN_V2, {"": "200000"}, 2),
    "outside of what it sees": (V2, "0::/../other", {"": "200000"}, 2),
    "a part of a core is none": (V2, IN_V2, {"kube/pod": "299000"}, 2),
    "less than a core is one": (V2, IN_V2, {"kube/pod": "20000"}, 1),
    "as many as there are": (V2, IN_V2, {"kube/pod": "1600000"}, None),
    "more than there are": (V2, IN_V2, {"kube/pod": "9900000"}, None),
    "unreadable": (V2, IN_V2, {"kube/pod": "many"}, None),
    "version 1": (V1, IN_V1, {"": "-1", "kube/pod": "200000"}, 2),
    "version 1, above": (V1, IN_V1, {"kube": "400000", "kube/pod": "-1"}, 4),
    "version 1, no quota": (V1, IN_V1, {"": "-1", "kube/pod": "-1"}, None),
    "version 1, the host's path": (V1, IN_V1, {"": "200000"}, 2),
    "both, by version 1": (f"{V1}\n{V2.replace('cgroup ', 'cgroup/unified ', 1)}", IN_V1, {}, None),
}


@pytest.mark.parametrize(("mount", "group", "quotas", "expected"), CASES.values(), ids=CASES)
def test_quotas_of_both_versions(tmp_path, mount, group, quotas, expected):
    root = tree(tmp_path, mount, group, quotas, siblings=None)
    assert within_quota(root, frozenset(range(16))) == expected


def test_both_versions_at_once_and_the_stricter_counts(tmp_path):
    tree(tmp_path, V1, IN_V1, {"kube/pod": "800000"}, siblings=None)
    tree(tmp_path, V2, IN_V2, {"kube/pod": "500000"}, siblings=None)
    write(tmp_path / "proc/self/mountinfo", f"{V1}\n{V2}")
    write(tmp_path / "proc/self/cgroup", IN_V1)
    assert within_quota(tmp_path, frozenset(range(16))) == 5


def test_two_threads_of_one_core_are_one(tmp_path):
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    root = tree(tmp_path, V2, IN_V2, {"": "500000"}, siblings=siblings)
    assert within_quota(root, frozenset(range(8))) is None  # of 4 cores
    assert within_quota(root, frozenset({0, 4})) is None  # of 1
    write(root / "sys/fs/cgroup/cpu.max", f"300000 {PERIOD}")
    assert within_quota(root, frozenset(range(8))) == 3


def test_elsewhere_than_on_linux_nothing_is_chosen(tmp_path):
    assert within_quota(tmp_path, frozenset(range(8))) is None


@given(
    cpus=st.frozensets(st.integers(0, 300), min_size=1, max_size=64),
    quota=st.one_of(st.just("max"), st.integers(1000, 10**8).map(str)),
    above=st.one_of(st.just("max"), st.integers(1000, 10**8).map(str)),
)
def test_never_more_than_affinity_or_quota_allow_never_less_than_one(
    tmp_path_factory, cpus, quota, above
):
    root = tree(
        tmp_path_factory.mktemp("tree"),
        V2, IN_V2, {"kube": above, "kube/pod": quota}, siblings=None,
    )  # fmt: skip
    allowed = min(int(q) / PERIOD if q != "max" else float("inf") for q in (quota, above))
    found = within_quota(root, cpus)
    if found is None:
        assert allowed >= len(cpus) or len(cpus) == 1
    else:
        assert 1 <= found < len(cpus)
        assert found == 1 or found <= allowed < found + 1


# --- what is said to OpenMP ---


@pytest.fixture
def half_a_core(tmp_path) -> Path:
    return tree(tmp_path, V2, IN_V2, {"": "50000"}, siblings=None)


@pytest.fixture(autouse=True)
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_what_the_operator_leaves_open_is_chosen(half_a_core, tmp_path_factory):
    environment = {"HOME": "/"}
    settle(environment, half_a_core)
    assert environment == {
        "HOME": "/", "GOMP_SPINCOUNT": str(DEFAULT_SPINS), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    settle(environment := {}, tmp_path_factory.mktemp("no quota"))
    assert environment == {"GOMP_SPINCOUNT": str(DEFAULT_SPINS)}


@pytest.mark.parametrize(
    "own",
    [
        {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "6"},
        {"GOMP_SPINCOUNT": "infinity", "MKL_NUM_THREADS": "6"},
    ],
    ids=str,
)
def test_an_operators_own_variables_win(half_a_core, own):
    settle(environment := dict(own), half_a_core)
    assert environment == own


def test_a_variable_leaves_the_other_question_open(half_a_core):
    settle(environment := {"OMP_WAIT_POLICY": "passive"}, half_a_core)
    assert environment == {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}


def test_the_number_is_left_open_for_those_who_share_the_cores_out(half_a_core):
    settle(environment := {}, half_a_core)
    leave_threads_open(environment, half_a_core)
    assert environment == {"GOMP_SPINCOUNT": str(DEFAULT_SPINS)}
    leave_threads_open(environment := {"OMP_NUM_THREADS": "6"}, half_a_core)
    assert environment == {"OMP_NUM_THREADS": "6"}


SETTLED_FIRST = """
import os, sys
import {module}
assert "torch" not in sys.modules
print(os.environ["GOMP_SPINCOUNT"])
"""


@pytest.mark.parametrize("module", ["dalorra.cli", "tests.conftest"])
def test_it_is_said_before_torch_is_imported(module):
    unsaid = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", SETTLED_FIRST.format(module=module)],
        env={**unsaid, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(DEFAULT_SPINS), done.stderr


def test_an_actor_of_ray_settles_before_it_unpickles_what_imports_torch():
    code = """
import pickle, sys
from dalorra.scoring.on_ray import WindowScorer
assert "torch" not in sys.modules
class Load:
    def __reduce__(self):
        return eval, ("lambda: print(__import__('os').environ['GOMP_SPINCOUNT'])",)
WindowScorer(pickle.dumps(Load()))
"""
    unsaid = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**unsaid, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(DEFAULT_SPINS), done.stderr


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"])
def test_what_an_operator_says_is_told_from_what_is_settled(tmp_path, name):
    environment: dict[str, str] = {}
    settle(environment, tmp_path)
    assert not operator_decides(environment, tmp_path)
    assert operator_decides(environment | {name: "3"}, tmp_path)
    assert operator_decides(environment | {"GOMP_SPINCOUNT": "7"}, tmp_path)
