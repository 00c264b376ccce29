from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalorra.free_cores import FreeCores, seconds_waited


class Machine:
    """So many cores, of which others use some; threads that find none free wait for one."""

    def __init__(self, cores, threads=None):
        self.cores, self.threads, self.others = cores, threads or cores, 0
        self.now = self.waited = 0.0
        self.free_cores = FreeCores(
            lambda: self.waited,
            clock=lambda: self.now,
            threads=lambda: self.threads,
            use=self.use,
        )

    def use(self, threads):
        self.threads = threads

    def compute(self, seconds=0.1):
        with self.free_cores.computing():
            self.now += seconds
            self.waited += seconds * max(self.threads + self.others - self.cores, 0)
        return self.threads


def test_alone_all_cores_compute():
    machine = Machine(4)
    assert [machine.compute() for _ in range(20)] == [4] * 20


def test_a_neighbour_has_its_core_and_the_core_is_taken_back_when_it_leaves():
    machine = Machine(4)
    machine.others = 1
    assert [machine.compute() for _ in range(4)] == [3, 3, 3, 3]
    machine.others = 0
    machine.now += 0.5
    assert machine.compute() == 4


def test_trying_again_in_vain_becomes_rare():
    machine = Machine(2)
    machine.others = 1
    taken = []
    while machine.now < 100.0:
        with machine.free_cores.computing():
            taken.append(machine.threads)
            machine.now += 0.1
            machine.waited += 0.1 * max(machine.threads - 1, 0)
    assert 10 <= taken.count(2) <= 20  # of about a thousand
    machine.others = 0
    machine.now += 8.0
    assert machine.compute() == 2
    machine.others = 1
    machine.compute()
    machine.others = 0
    machine.now += 0.6  # the pauses are short again
    assert machine.compute() == 2


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(0, 200), st.floats(0.0, 3.0))))
def test_there_is_always_a_thread_and_never_more_than_at_first(cores, changes):
    machine = Machine(cores)
    for others, pause in changes:
        machine.others = others
        machine.now += pause
        assert 1 <= machine.compute() <= cores


def test_moments_are_judged_together():
    machine = Machine(2)
    machine.others = 1
    threads = [machine.compute(0.001) for _ in range(49)]
    assert threads == [2] * 49
    for _ in range(2):
        machine.compute(0.001)
    assert machine.threads == 1


def test_inside_another_one_nothing_is_judged():
    machine = Machine(2)
    machine.others = 1
    with machine.free_cores.computing():
        assert machine.compute() == 2
    assert machine.threads == 1


def test_what_fails_is_counted_too():
    machine = Machine(2)
    machine.others = 1

    def fail():
        with machine.free_cores.computing():
            machine.now, machine.waited = 1.0, 1.0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert machine.threads == 1


def test_waiting_is_summed_over_threads(tmp_path: Path):
    for thread, line in {"7": "5 2000000000 3\n", "8": "9 500000000 1\n"}.items():
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(line)
    (tmp_path / "9").mkdir()  # it has ended
    assert seconds_waited(tmp_path) == 2.5
    assert seconds_waited(tmp_path / "nothing") == 0.0
    (tmp_path / "8" / "schedstat").write_text("")
    assert seconds_waited(tmp_path) == 0.0
