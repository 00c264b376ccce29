"""The comparison of calibrations on few examples."""

import json

import numpy as np
import pytest

from benchmarks.power import PROCEDURES, compared
from benchmarks.promise_section import section
from training.promise import Promise
from training.risk_control import Risk, ScoredExamples


@pytest.fixture(scope="module")
def world():
    """The share p of the answers is right, and three quarters of them are sure."""
    p = np.sort(np.random.default_rng(0).beta(8, 1, 2000))
    wrong = np.random.default_rng(1).random(2000) > p
    return ScoredExamples(p, np.zeros(2000), (Risk(wrong * 1.0, np.ones(2000, bool), 0.1),))


@pytest.fixture(scope="module")
def lines(world):
    return [line for n in (100, 400) for line in compared(world, Promise(0.1), n, draws=20)]


def test_all_procedures_are_judged_on_the_truth(lines, world):
    assert [line["procedure"] for line in lines] == 2 * list(PROCEDURES)
    for few, many in zip(lines[:3], lines[3:], strict=True):
        assert few["accepted"] <= many["accepted"]
        assert 0.0 <= few["accepts_nothing"] <= 1.0
    ours = lines[3]
    assert ours["accepted"] > 0.4
    assert ours["error"] <= 0.1
    assert ours["violations"] <= 0.2
    assert ours["world_error"] == pytest.approx(world.risks[0].loss.mean())


def test_a_target_that_nothing_reaches(world):
    hopeless = ScoredExamples(
        world.probability, world.variance, (Risk(np.ones(2000), np.ones(2000, bool), 0.1),)
    )
    for line in compared(hopeless, Promise(0.1), 100, draws=3):
        assert (line["accepted"], line["accepts_nothing"], line["error"]) == (0.0, 1.0, None)
        assert line["violations"] == 0.0


def test_the_page_has_every_setting(lines, tmp_path):
    named = [{"task": "toy", "split": "test", **line} for line in lines]
    (tmp_path / "power.json").write_text(json.dumps(named))
    page = section(tmp_path)
    assert page.count("| toy | 0.1 |") == 2
    assert f"| toy | 0.1 | 400 | {lines[3]['accepted']:.1%} |" in page
