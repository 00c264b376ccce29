"""A bank whose answers have the right mean and the right variance, not only those of lucky draws.

M samples estimate a variance poorly: over the draw of ten, its standard deviation is half its mean.
But a label's log-odds are nearly linear in the masks (DALorRA's masks each do little). To first
order, with g_i their gradient for example i at the mean mask π,

    log-odds_i(z) − log-odds_i(π) ≈ g_i · (z − π),    variance = Σ_j g_ij² π_j (1 − π_j)

so that a bank's error in both moments is known for every example without one more forward, and can
be made small: the samples of a stratified bank exchange bits until, over the training examples, the
bank's mean is 0 and its variance the one above. An exchange of bit j between two samples leaves it
on in as many of them. The gradients of other inputs lie mostly in the span of these.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dalorra.adapter.layer import StochasticPeftModel, module_tensors
from dalorra.posteriors.bank import BankSpec, MaskBank, NoiseBank
from dalorra.posteriors.posterior import Posterior
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt
from training.answers import padded_samples
from training.objective import Objective

EXAMPLES: Final = 1000
"""Training examples that a bank is matched on, at most."""

EXCHANGES: Final = 40_000
"""Exchanges that are tried."""

MEASURED: Final = 100
"""Held-out examples that `error_ratio` is measured on, at most."""

REFERENCE_BANKS: Final = 16
"""Independent banks whose mean stands for that of the whole posterior in `error_ratio`."""

_BATCH: Final = 16

FloatArray = NDArray[np.float64]


def log_odds_gradients(
    model: StochasticPeftModel, objective: Objective, prompts: Sequence[Prompt]
) -> Tensor:
    """Gradients of the predicted label's log-odds by the masks, at the mean mask.

    Args:
        model: the base with an adapter of learned rank masks.
        objective: of its run.
        prompts: B inputs.

    Returns:
        `[B, modules, r]` float32 on the CPU.
    """
    mean = MaskBank.mean(torch.stack([m["mask_logits"] for m in module_tensors(model)]))
    found = []
    for start in range(0, len(prompts), _BATCH):
        part = prompts[start : start + _BATCH]
        masks = mean.masks.repeat(len(part), 1, 1).requires_grad_()  # each input its own
        own = torch.arange(len(part))[:, None]
        with torch.enable_grad():
            logits = objective.logits(model, part, own, MaskBank(masks))[0][:, 0]  # [B, K]
            best = logits.argmax(dim=1, keepdim=True)
            others = logits.scatter(1, best, -torch.inf).logsumexp(dim=1)
            log_odds = logits.gather(1, best)[:, 0] - others
            found.append(torch.autograd.grad(log_odds.sum(), masks)[0].cpu())
    return torch.cat(found)


def matched(masks: Tensor, on: Tensor, gradients: Tensor, seed: int) -> Tensor:
    """A bank with both moments matched, by exchanges that bring them closer.

    Args:
        masks: a stratified bank, `[M, J]` of zeros and ones.
        on: q(z = 1), `[J]`.
        gradients: of n examples, `[n, J]`; one that is zero everywhere says nothing.
        seed: of the exchanges that are tried.

    Returns:
        `[M, J]`; every bit is on in as many samples as before.
    """
    p = on.double().numpy()
    g = gradients.double().numpy()
    deviation = np.sqrt((g**2 * p * (1.0 - p)).sum(axis=1, keepdims=True))
    g = (g / np.where(deviation > 0.0, deviation, np.inf)).T  # [J, n]: linear variance 1
    z = masks.double().numpy().copy()
    movable = np.flatnonzero((z.min(axis=0) < z.max(axis=0)) & g.any(axis=1))
    if not len(movable):
        return masks
    rng = np.random.default_rng(seed)
    values = (z - p) @ g  # [M, n]
    mean, square = values.mean(axis=0), (values**2).mean(axis=0)
    present = _mismatch(mean, square)
    samples = len(z)
    for j in rng.choice(movable, EXCHANGES):
        giver = rng.choice(np.flatnonzero(z[:, j] == 1.0))
        taker = rng.choice(np.flatnonzero(z[:, j] == 0.0))
        # (a − g)² + (b + g)² − a² − b² = 2 g (b − a + g); the mean stays.
        change = 2.0 * g[j] * (values[taker] - values[giver] + g[j]) / samples
        mismatch = _mismatch(mean, square + change)
        if mismatch < present:
            present, square = mismatch, square + change
            values[giver] -= g[j]
            values[taker] += g[j]
            z[giver, j], z[taker, j] = 0.0, 1.0
    return torch.from_numpy(z).to(masks)


def _mismatch(mean: FloatArray, square: FloatArray) -> float:
    """Mean squared error of the variances, which should be 1."""
    return float(np.mean((square - mean**2 - 1.0) ** 2))


def matched_spec(
    model: StochasticPeftModel,
    objective: Objective,
    prompts: Sequence[Prompt],
    spec: BankSpec,
) -> BankSpec:
    """The spec of a bank that is matched on training examples.

    Args:
        model: the base with an adapter of learned rank masks.
        objective: of its run.
        prompts: of training examples.
        spec: a matched one, whose masks are not known yet.
    """
    logits = torch.stack([m["mask_logits"] for m in module_tensors(model)]).detach().cpu()
    drawn = MaskBank.draw(logits, spec.model_copy(update={"sampler": "stratified"})).masks
    gradients = log_odds_gradients(model, objective, prompts)
    if spec.head == "integrated":
        gradients[:, -1] = 0.0  # all of its masks are tried
    flat = matched(drawn.flatten(1), logits.sigmoid().flatten(), gradients.flatten(1), spec.seed)
    return spec.with_masks(flat.view_as(drawn))


def error_ratio(
    predictor: Predictor,
    posterior: Posterior,
    model: StochasticPeftModel,
    spec: BankSpec,
    prompts: Sequence[Prompt],
) -> float:
    """How far the bank's mean is off, in units of what as many independent samples would be.

    The root of the mean over the prompts of (p̄ − p̄*)², over that of u / (M − 1): p̄ is the
    predicted label's probability by the bank, u its variance over the samples, and p̄* the mean of
    `REFERENCE_BANKS` others, whose own error is taken off.

    Args:
        predictor: answers by the bank.
        posterior: that the bank is of.
        model: its adapter.
        spec: of the bank.
        prompts: that neither the adapter nor the bank was fitted on.
    """
    own = padded_samples(predictor, prompts).by_sample.double()  # [B, M, K]
    if own.shape[1] < 2:
        return 1.0
    best = own.mean(dim=1).argmax(dim=1)[:, None]
    chosen = own.gather(2, best[:, None].expand(-1, own.shape[1], 1))[..., 0]  # [B, M]
    others = []
    for number in range(REFERENCE_BANKS):
        bank = _other_bank(posterior, model, spec, number)
        mean = padded_samples(predictor, prompts, bank).by_sample.double().mean(dim=1)
        others.append(mean.gather(1, best)[:, 0])
    reference = torch.stack(others)  # [R, B]
    off = (chosen.mean(dim=1) - reference.mean(dim=0)).square()
    off -= reference.var(dim=0) / REFERENCE_BANKS
    independent = chosen.var(dim=1, correction=0) / (own.shape[1] - 1)
    if not float(independent.mean()):
        return 1.0
    return float((off.mean().clamp_min(0.0) / independent.mean()).sqrt())


def _other_bank(
    posterior: Posterior, model: StochasticPeftModel, spec: BankSpec, number: int
) -> NoiseBank:
    sampler = "stratified" if spec.sampler == "matched" else spec.sampler
    other = BankSpec(
        samples=spec.samples, seed=spec.seed + 1 + number, sampler=sampler, head=spec.head
    )
    return posterior.bank(module_tensors(model), other)
