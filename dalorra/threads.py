"""How many threads compute, and how long they wait for each other, told to OpenMP in time.

OpenMP reads its variables when its library is loaded, and PyTorch loads it: `settle` comes before
the first import of torch. PyTorch's wheels carry GNU's library, libgomp; another one ignores the
variable for waiting.
"""

import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Final

THREADS: Final = "OMP_NUM_THREADS"
SPINS: Final = "GOMP_SPINCOUNT"
DEFAULT_SPINS: Final = 10_000
"""How often a thread looks for work before it sleeps: 0.25 ms on an AMD EPYC (Zen 4), where a look
takes 24 ns, and 0.4 ms where it takes 140 cycles, as on Intel's. That is longer than most pauses
between the operations of a forward, and shorter than a time slice: on cores with other work, those
who wait for longer, as libgomp does with its own 300,000 looks, take them from the thread that they
wait for (`benchmarks.threads`)."""

_SAYS_THREADS: Final = (THREADS, "MKL_NUM_THREADS")
_SAYS_WAITING: Final = (SPINS, "OMP_WAIT_POLICY")


def settle(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Sets what the operator's own variables leave open.

    The waiting is bounded. The number of threads is set where a quota of processor time allows
    fewer than the cores that this process may run on; else OpenMP's own choice stands, one for each
    of these cores.
    """
    if environment.keys().isdisjoint(_SAYS_WAITING):
        environment[SPINS] = str(DEFAULT_SPINS)
    limit = within_quota(root)
    if limit is not None and environment.keys().isdisjoint(_SAYS_THREADS):
        environment[THREADS] = str(limit)


def operator_decides(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> bool:
    """Whether any of these variables says what `settle` did not."""
    ours = {SPINS: str(DEFAULT_SPINS), THREADS: str(within_quota(root))}
    return any(
        environment[name] != ours.get(name)
        for name in (*_SAYS_THREADS, *_SAYS_WAITING)
        if name in environment
    )


def leave_threads_open(
    environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")
) -> None:
    """Takes the number that `settle` set back, for those who share the cores out themselves."""
    if environment.get(THREADS) == str(within_quota(root)):
        del environment[THREADS]


def within_quota(root: Path = Path("/"), cpus: frozenset[int] | None = None) -> int | None:
    """The threads that a quota of processor time has room for; None: one for each core.

    A team that overdraws its quota is stopped, all of it, until the next period (0.1 s by default):
    so what is left of a core counts for none.

    Args:
        root: of the file system that `proc` and `sys` are read in.
        cpus: that this process may run on; None: ask the system.

    Returns:
        At least 1, and fewer than the cores.
    """
    cores = _cores(root, _affinity() if cpus is None else cpus)
    allowed = max(int(min(_quotas(root), default=cores)), 1)
    return allowed if allowed < cores else None


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _cores(root: Path, cpus: frozenset[int]) -> int:
    """Physical cores among `cpus`: of two threads on one, OpenMP under PyTorch uses one."""
    return len({_siblings(root, cpu) for cpu in cpus})


def _siblings(root: Path, cpu: int) -> str:
    path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return _read(path).strip() or str(cpu)


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in cores, of the control groups that this process is in, and of those above."""
    for mount, version, group in _cpu_groups(root):
        inside = [part for part in group.split("/") if part not in ("", "..")]
        # In a container the path may be the host's: what is not there is passed over.
        for depth in range(len(inside), -1, -1):
            folder = mount.joinpath(*inside[:depth])
            if version == 2:
                words = _read(folder / "cpu.max").split()
            else:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                words = [word for name in names for word in _read(folder / name).split()]
            match words:
                case [quota, period] if quota.isdigit() and period.isdigit() and int(period):
                    yield int(quota) / int(period)


def _cpu_groups(root: Path) -> Iterator[tuple[Path, int, str]]:
    """Where groups of the processor are mounted, the version, and this process's group there."""
    groups = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        groups[controllers] = group
    for line in _read(root / "proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        file_system, _, options = kind.split(" ", 2)
        mount = root / place.split(" ")[4].lstrip("/")
        if file_system == "cgroup2" and "" in groups:
            yield mount, 2, groups[""]
        elif file_system == "cgroup" and "cpu" in options.split(","):
            for controllers, group in groups.items():
                if "cpu" in controllers.split(","):
                    yield mount, 1, group


def _read(path: Path) -> str:
    """Its content; nothing where there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
