import numpy as np
import pytest
import torch

from dalorra.decision.predictive import PosteriorSamples
from training.temperature import LEAST, choose_temperature, fit_temperature


def answers(n, *, seed, labels=6, sharpness=1.0, noise=0.2, strength=(0.5, 8.0)):
    """Labels drawn from known distributions, and samples of those at another sharpness."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0.0, 0.4, (n, labels))
    logits[np.arange(n), generator.integers(0, labels, n)] += generator.uniform(*strength, n)
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (generator.random(n)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    shown = sharpness * logits[:, None] + noise * generator.normal(size=(n, 10, labels))
    p = torch.tensor(shown).softmax(-1)[:, :, None]
    return PosteriorSamples(p, torch.ones(1, dtype=torch.float64)), label.tolist()


def nll(fresh, temperature):
    samples, label = fresh
    mean = samples.tempered(temperature).by_sample.mean(dim=1)
    return float(-mean[torch.arange(len(label)), label].log().mean())


def chosen(n, runs, **world):
    return [choose_temperature(*answers(n, seed=seed, **world)) for seed in range(runs)]


@pytest.mark.parametrize("n", [LEAST, 64, 300])
@pytest.mark.parametrize("labels", [2, 6, 77])
def test_right_probabilities_are_left_alone(labels, n):
    fresh = answers(4000, seed=99, labels=labels, noise=0.05)
    found = chosen(n, 25, labels=labels, noise=0.05)
    taken = [t for t in found if t != 1.0]
    assert len(taken) <= 3
    plain = nll(fresh, 1.0)
    assert sum(nll(fresh, t) - plain for t in taken) / len(found) <= 0.003


@pytest.mark.parametrize("sharpness", [0.5, 2.5])
@pytest.mark.parametrize("labels", [2, 6, 77])
def test_wrong_probabilities_are_mended(labels, sharpness):
    world = {"labels": labels, "sharpness": sharpness, "noise": 0.05}
    fresh = answers(4000, seed=99, **world)
    found = chosen(150, 12, **world)
    assert sum(t != 1.0 for t in found) >= 11
    lost, best = nll(fresh, 1.0), nll(fresh, sharpness)
    left = np.mean([nll(fresh, t) - best for t in found])
    assert left <= 0.2 * (lost - best)


def test_a_mean_over_samples_that_disagree_is_sharpened():
    # As on Banking77: 61 % sure in the mean where 84 % are right.
    world = {"labels": 77, "sharpness": 0.8, "noise": 1.0, "strength": (4.0, 10.0)}
    fresh = answers(4000, seed=99, **world)
    found = chosen(300, 6, **world)
    assert all(t < 1.0 for t in found)
    assert np.mean([nll(fresh, t) for t in found]) < nll(fresh, 1.0) - 0.1


def test_too_few_examples_ask_for_nothing():
    flat = answers(LEAST - 1, seed=0, labels=77, sharpness=0.3)
    assert choose_temperature(*flat) == 1.0
    assert choose_temperature(*flat, "on") == fit_temperature(*flat) < 0.8
    assert choose_temperature(*answers(LEAST, seed=0, labels=77, sharpness=0.3)) < 0.8


def test_whoever_wants_none_gets_none():
    flat = answers(200, seed=0, sharpness=0.3)
    assert choose_temperature(*flat, "auto") == choose_temperature(*flat, "on") < 0.5
    assert choose_temperature(*flat, "off") == 1.0


def test_the_best_temperature_of_a_case_worked_out_by_hand():
    # One sample, logits ±1, right 3 times of 4. A right one's target is 5/6, a wrong one's 1/6, in
    # the mean 2/3 = σ(2 / T), so T = 2 / log 2.
    p = torch.tensor([[[[1.0, -1.0]]]]).softmax(-1).repeat(4, 1, 1, 1)
    found = fit_temperature(PosteriorSamples(p, torch.ones(1)), [0, 0, 0, 1])
    assert found == pytest.approx(2 / np.log(2), rel=2e-3)


def test_the_other_labels_share_what_the_true_one_leaves():
    # One sample, three labels, logits 1, 0, 0, right twice of 2: 3/4 = e / (e + 2) at 1 / T.
    p = torch.tensor([[[[1.0, 0.0, 0.0]]]]).softmax(-1).repeat(2, 1, 1, 1)
    found = fit_temperature(PosteriorSamples(p, torch.ones(1)), [0, 0])
    assert found == pytest.approx(1 / np.log(6), rel=2e-3)


def test_few_examples_cannot_turn_samples_into_votes():
    # 60 of 64 examples are right in every sample, four in one of ten. Were each sample sharpened by
    # itself, the four would win a vote each and all labels were likelier; a next one, wrong in all
    # ten, would be impossible.
    agreed, contested = [1.0] * 10, [0.5] + [-3.0] * 9
    margins = torch.tensor([agreed] * 60 + [contested] * 4)
    logits = torch.stack([margins, -margins], dim=-1)[:, :, None]
    samples = PosteriorSamples(logits.softmax(-1), torch.ones(1))
    nll = [-samples.tempered(t).mean[:, 0].log().mean() for t in (0.05, 0.5)]
    assert nll[0] > nll[1]
    assert fit_temperature(samples, [0] * 64) > 0.4


def test_labels_that_an_input_does_not_have_count_for_nothing():
    few, many = answers(150, seed=1, labels=3, sharpness=2.5), answers(150, seed=2, labels=9)
    padded = torch.nn.functional.pad(few[0].probabilities, (0, 6))
    alone = fit_temperature(*few)
    assert fit_temperature(PosteriorSamples(padded, few[0].weights), few[1], [3] * 150) == (
        pytest.approx(alone, rel=1e-6)
    )
    both = PosteriorSamples(torch.cat([padded, many[0].probabilities]), few[0].weights)
    options, targets = [3] * 150 + [9] * 150, [*few[1], *many[1]]
    found = choose_temperature(both, targets, "on", options)
    between = sorted((alone, fit_temperature(*many)))
    assert between[0] < found < between[1]
    assert choose_temperature(both, targets, "auto", options) == pytest.approx(found)
