import pytest
import torch

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.layer import module_tensors
from dalorra.errors import ConfigError
from dalorra.posteriors.bank import BankSpec, MaskBank
from dalorra.predictor import Predictor
from training.config import read_config
from training.matched_bank import error_ratio, log_odds_gradients, matched
from training.run import Run, train

pytestmark = pytest.mark.usefixtures("no_figures")

MODULES, RANK, DIRECTIONS = 12, 8, 6


def gradients(n: int, seed: int) -> torch.Tensor:
    """Of n inputs, `[n, modules · r]`; all of them lie near a few directions."""
    shared = torch.randn(DIRECTIONS, MODULES * RANK, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, DIRECTIONS, generator=generator) @ shared
    return mixed + 0.3 * torch.randn(n, MODULES * RANK, generator=generator)


def variance_ratios(masks: torch.Tensor, on: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Variance of the log-odds over the bank in units of the posterior's, to first order, `[n]`."""
    values = (masks - on).double() @ of.double().T
    return values.var(dim=0, correction=0) / (of.double() ** 2 @ (on * (1 - on)).double())


@pytest.mark.parametrize("samples", [5, 10, 20])
def test_the_variance_of_unseen_inputs_is_closer_and_no_bit_is_on_more_often(samples):
    logits = torch.randn(MODULES, RANK, generator=torch.Generator().manual_seed(1))
    on = logits.sigmoid().flatten()
    before, after = [], []
    for seed in range(4):
        drawn = MaskBank.draw(logits, BankSpec(samples=samples, seed=seed)).masks.flatten(1)
        found = matched(drawn, on, gradients(300, seed=7), seed)
        assert set(found.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(found.sum(dim=0), drawn.sum(dim=0))
        before.append(variance_ratios(drawn, on, gradients(200, seed=8)))
        after.append(variance_ratios(found, on, gradients(200, seed=8)))
    error = [(torch.stack(part) - 1).square().mean().sqrt() for part in (before, after)]
    assert error[1] < 0.6 * error[0]


def test_nothing_to_go_by_leaves_the_bank_as_it_was():
    certain = torch.full((MODULES, RANK), torch.inf)
    drawn = MaskBank.draw(certain, BankSpec(samples=4)).masks.flatten(1)
    assert torch.equal(matched(drawn, certain.sigmoid().flatten(), gradients(5, 0), 0), drawn)
    drawn = MaskBank.draw(torch.zeros(MODULES, RANK), BankSpec(samples=4)).masks.flatten(1)
    none = torch.zeros(5, MODULES * RANK)
    assert torch.equal(matched(drawn, torch.full((MODULES * RANK,), 0.5), none, 0), drawn)


@pytest.fixture
def run(configure) -> Run:
    run = Run(read_config(configure(bank={"sampler": "matched"})))
    run.fit()
    return run


def test_gradients_are_those_of_finite_differences(run):
    predictor = run.evaluable()
    assert isinstance(predictor, Predictor)
    prompts = [prompt for prompt, _ in run.labelled_prompts(run.data.holdout[:3])]
    found = log_odds_gradients(run.model, run.model.objective, prompts)
    mean = MaskBank.mean(mask_logits(run))
    step = 1e-2
    for module, component in ((0, 0), (1, 1), (len(found[0]) - 1, 1)):
        moved = []
        for sign in (-1, 1):
            masks = mean.masks.clone()
            masks[0, module, component] += sign * step
            moved.append(log_odds(predictor, prompts, MaskBank(masks)))
        best = log_odds(predictor, prompts, mean).argmax(dim=1)[:, None]
        slope = (moved[1] - moved[0]).gather(1, best)[:, 0] / (2 * step)
        torch.testing.assert_close(
            found[:, module, component].double(), slope, rtol=0.05, atol=2e-4
        )


def mask_logits(run: Run) -> torch.Tensor:
    return torch.stack([module["mask_logits"] for module in module_tensors(run.model)]).detach()


def log_odds(predictor: Predictor, prompts, bank) -> torch.Tensor:
    p = predictor.posterior_samples(prompts, bank).by_sample[:, 0].double()
    return p.log() - (1 - p).log()


def test_the_bank_of_a_run_is_stored_and_drawn_again(configure):
    adapter = read_adapter(train(configure(bank={"sampler": "matched"}), overrides={}))
    spec = adapter.manifest.bank
    assert spec.sampler == "matched"
    assert spec.masks
    assert 0.0 <= spec.error_ratio < 2.0
    logits = torch.stack([t for n, t in adapter.tensors.items() if n.endswith("mask_logits")])
    masks = MaskBank.draw(logits, spec).masks
    assert masks.shape == (spec.samples, *logits.shape)
    assert spec.with_masks(masks) == spec
    assert spec.identity.keys() == {"samples", "seed", "sampler", "head", "masks"}


def test_only_learned_rank_masks_are_matched(configure):
    with pytest.raises(ConfigError, match=r"bank\.sampler: dropout cannot be matched"):
        train(configure(bank={"sampler": "matched"}, method={"name": "mc_dropout"}), overrides={})


@pytest.mark.parametrize("sampler", ["iid", "stratified"])
def test_the_error_of_a_mean_is_what_many_banks_show(run, sampler):
    prompts = [prompt for prompt, _ in run.labelled_prompts(run.data.train)]
    logits, posterior = mask_logits(run), run.inference.posterior
    ratios, means, independent = [], [], []
    for seed in range(100, 112):
        run.bank = BankSpec(samples=6, seed=seed, sampler=sampler)
        predictor = run.evaluable()
        assert isinstance(predictor, Predictor)
        ratios.append(error_ratio(predictor, posterior, run.model, run.bank, prompts))
        found = predictor.posterior_samples(prompts, MaskBank.draw(logits, run.bank))
        p = found.by_sample[..., 0].double()
        means.append(p.mean(dim=1))
        independent.append(p.var(dim=1) / run.bank.samples)
    true = torch.stack(means).var(dim=0).mean() / torch.stack(independent).mean()
    told = torch.tensor(ratios).square().mean()
    assert 0.6 < float((told / true).sqrt()) < 1.6
    if sampler == "stratified":
        assert float(told.sqrt()) < 0.8, "a stratified bank is better than independent samples"
