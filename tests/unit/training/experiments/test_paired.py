"""Methods compared on answers that their runs kept."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dalorra.decision import metrics
from dalorra.decision.predictive import Prediction, summarise
from dalorra.errors import ConfigError
from training.experiments import Runner
from training.experiments.paired import by_nll, differences
from training.experiments.predictions import KEPT_FILE, read_kept_answers, write_kept_answers
from training.experiments.report import write_report
from training.tasks import Example

LABELS = ("a", "b", "c")


def examples(n: int, first: int = 0) -> list[Example]:
    return [Example({"text": str(i)}, LABELS[i % 3]) for i in range(first, first + n)]


def answers(logits: np.ndarray) -> list[Prediction]:
    probabilities = torch.softmax(torch.from_numpy(logits), dim=-1)
    return summarise(probabilities[:, None], LABELS)


def run(folder: Path, logits: np.ndarray, seed: int, asked: list[Example]) -> dict[str, Any]:
    folder.mkdir()
    write_kept_answers(folder, asked, {"test": answers(logits)})
    kept = read_kept_answers(folder)
    return {"seed": seed, "kept": kept, "test": {"nll": kept.losses("test")[0].mean()}}


@pytest.fixture
def made(tmp_path):
    """`made(seeds, lead=…)`: a method whose true labels have that much more of a logit."""
    number = itertools.count()
    hard = np.random.default_rng(0).normal(0.0, 2.0, (300, 1))  # shared by all methods

    def make(seeds, lead: float = 0.0, asked=None) -> list[dict[str, Any]]:
        asked = asked or examples(300)
        true = np.eye(3)[[LABELS.index(e.label) for e in asked]]
        found = []
        for seed in seeds:
            n = next(number)
            noise = np.random.default_rng(n).normal(0.0, 0.1, (len(asked), 3))
            logits = true * (1.0 + lead + hard[: len(asked)]) + noise
            found.append(run(tmp_path / str(n), logits, seed, asked))
        return found

    return make


def test_kept_answers_have_the_scores_of_the_answers_in_some_kilobytes(tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 4.0, (872, 3))
    logits[0] = (800.0, 0.0, 0.0)  # certain beyond float16, and once beyond float64
    logits[1] = (800.0, 0.0, 0.0)
    asked, given = examples(872), answers(logits)
    write_kept_answers(tmp_path, asked, {"test": given, "tempered": answers(logits / 2)})
    assert (tmp_path / KEPT_FILE).stat().st_size < 20_000
    kept = read_kept_answers(tmp_path)
    probabilities = [list(p.probabilities.values()) for p in given]
    targets = [LABELS.index(e.label) for e in asked]
    nll, brier = kept.losses("test").mean(axis=1)
    exact = metrics.negative_log_likelihood(probabilities, targets)
    assert nll == pytest.approx(exact, rel=1e-4)
    assert brier == pytest.approx(metrics.brier_score(probabilities, targets), abs=1e-4)
    assert kept.losses("test")[0, 1] == pytest.approx(708.4, abs=0.1), "as the metric counts it"
    assert kept.losses("tempered")[0].mean() < nll
    assert read_kept_answers(tmp_path / "elsewhere") is None


def test_a_difference_is_the_mean_over_common_seeds_with_its_interval(made):
    ours, theirs = made((1, 2, 3)), made((2, 3, 4), lead=0.2)
    found = differences(ours, theirs, "test")
    assert found is not None
    of_ours, of_theirs = (
        np.mean([one["kept"].losses("test") for one in runs], axis=(0, 2))
        for runs in (ours[1:], theirs[:2])
    )
    assert (found["nll"].mean, found["brier"].mean) == pytest.approx(tuple(of_ours - of_theirs))
    assert 0.0 < found["nll"].low < found["nll"].mean < found["nll"].high
    assert found == differences(ours, theirs, "test"), "it has no luck"
    reverse = differences(theirs, ours, "test")
    assert reverse["nll"].low == pytest.approx(-found["nll"].high)
    assert str(found["nll"]).count("+") == 3


def test_the_same_examples_tell_apart_what_others_could_not(made):
    ours, theirs = made((1,)), made((1,), lead=0.05)
    found = differences(ours, theirs, "test")["nll"]
    assert found.low > 0.0
    spread = np.std(ours[0]["kept"].losses("test")[0]) / np.sqrt(300)
    assert found.high - found.low < spread, "unpaired it would be 5.5 of these wide"


def test_seeds_that_differ_widen_it(made):
    alike = differences(made((1, 2, 3)), made((1, 2, 3)), "test")["nll"]
    unlike = [run for lead in (-0.3, 0.0, 0.3) for run in made((1,), lead=lead)]
    for seed, one in enumerate(unlike, 1):
        one["seed"] = seed
    varied = differences(unlike, made((1, 2, 3)), "test")["nll"]
    assert varied.high - varied.low > 2 * (alike.high - alike.low)


def test_answers_to_other_examples_or_in_another_order_are_refused(made):
    usual = made((1, 2))
    for asked in (examples(300)[::-1], examples(300, first=1), examples(299)):
        with pytest.raises(ConfigError, match="answer different test examples, or the same in"):
            differences(made((1, 2), asked=asked), usual, "test")
    mixed = [usual[0], *made((2,), asked=examples(300)[::-1])]
    with pytest.raises(ConfigError, match=r"test\.npz"):
        differences(mixed, mixed, "test")  # one order for each seed


def test_without_answers_or_common_seeds_there_is_no_interval(made):
    ours, theirs = made((1, 2)), made((3,))
    assert differences(ours, theirs, "test") is None
    missing = [{**one, "kept": None} for one in made((1, 2))]
    assert differences(missing, ours, "test") is None
    assert differences(ours, missing, "test") is None
    assert differences(ours, [missing[0], *made((2,))], "test") is not None


def test_methods_are_ranked_by_nll(made):
    variants = {"worse": made((1, 2)), "better": made((1, 2), lead=0.5)}
    assert list(by_nll(variants, "test")) == ["better", "worse"]


def test_the_report_has_the_intervals_of_what_was_kept_and_says_where_none_was(
    experiment, tmp_path
):
    results, out = tmp_path / "results", tmp_path / "results.md"
    paths = Runner(experiment, results, {}).run()
    page = write_report(results, out).read_text()
    interval = r"[+-]\d\.\d{3} \([+-]\d\.\d{3} to [+-]\d\.\d{3}\)"
    assert len(re.findall(interval, page)) == 2, "NLL and Brier of the second"
    assert "these runs were not kept" not in page
    for path in paths:
        (path.parent / KEPT_FILE).unlink()
    page = write_report(results, out).read_text()
    (tables,) = (path.read_text() for path in results.glob("*/TABLES.md"))
    assert "The answers of these runs were not kept: the gaps have no intervals." in tables
    assert "| − first |" not in page + tables
    assert "| NLL | Brier | ECE % | by chance |" in page
