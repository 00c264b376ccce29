"""The variational posterior over rank masks: KL, relaxed samples, hard samples.

Source: DALorRA, section 4. Every module j of the adapter owns one logit φ per rank component;
q(z) is a product of Bernoulli(σ(φ)), the prior a product of Bernoulli(p₀).
"""

import math
from typing import Literal

import torch
from torch import Tensor

Sampler = Literal["stratified", "iid"]


def prior_logit(prior: float) -> float:
    """Initial φ = log(p₀ / (1 − p₀)), so that q starts equal to the prior (Algorithm 1, line 1).

    Raises:
        ValueError: if `prior` is not inside (0, 1).
    """
    if not 0.0 < prior < 1.0:
        raise ValueError(f"prior {prior} is outside (0, 1): the KL of Eq. 4 would be infinite")
    return math.log(prior / (1.0 - prior))


def bernoulli_kl(logits: Tensor, prior: float) -> Tensor:
    """KL(q ‖ p) in nats, summed over every element of `logits` (second term of Eq. 4).

    Args:
        logits: φ, any shape; ±∞ allowed.
        prior: p₀ in (0, 1).

    Returns:
        A float32 scalar; 0 with zero gradient where σ(φ) = p₀.
    """
    logits = logits.float()
    on, off = torch.sigmoid(logits), torch.sigmoid(-logits)
    negative_entropy: Tensor = torch.special.xlogy(on, on) + torch.special.xlogy(off, off)
    return (negative_entropy - on * math.log(prior) - off * math.log1p(-prior)).sum()


def relaxed_masks(
    logits: Tensor, temperature: float, samples: int, generator: torch.Generator
) -> Tensor:
    """Gumbel-sigmoid samples z = σ((φ + log u − log(1 − u)) / τ), u ~ Uniform(0, 1) (Eq. 3).

    Args:
        logits: φ, `[modules, r]`.
        temperature: τ > 0; z tends to a hard Bernoulli(σ(φ)) sample as τ → 0.
        samples: how many independent samples.
        generator: source of u, on the CPU, so that a seed means the same on every device.

    Returns:
        `[samples, modules, r]`, differentiable in `logits`.
    """
    if temperature <= 0.0:
        raise ValueError(f"temperature {temperature} is not positive")
    u = torch.rand((samples, *logits.shape), generator=generator, dtype=torch.float64)
    noise = torch.logit(u, eps=1e-12).to(logits)
    return torch.sigmoid((logits + noise) / temperature)


def hard_masks(
    probabilities: Tensor, samples: int, generator: torch.Generator, sampler: Sampler = "stratified"
) -> Tensor:
    """Hard samples z ~ Bernoulli(p), the samples of a mask bank.

    `iid` draws them independently, as the paper does. `stratified` uses systematic sampling for
    each bit: it is on in ⌊Mp⌋ or ⌈Mp⌉ of the M samples, in random order and independently of
    every other bit. Each sample alone is still distributed as q, and the bank's mean is p almost
    exactly, so that fewer samples are needed for the same answer.

    Args:
        probabilities: σ(φ), `[modules, r]`.
        samples: M ≥ 1.
        generator: CPU generator; the same seed gives the same bank.
        sampler: `stratified` or `iid`.

    Returns:
        Float32 `[M, modules, r]` of zeros and ones, on the CPU.
    """
    if samples < 1:
        raise ValueError(f"samples {samples} is below 1")
    p = probabilities.detach().to("cpu", torch.float64)
    if sampler == "iid":
        u = torch.rand((samples, *p.shape), generator=generator, dtype=torch.float64)
        return (u < p).float()
    start = torch.rand(p.shape, generator=generator, dtype=torch.float64)
    # ⌊Mp + u⌋ is ⌊Mp⌋ or ⌈Mp⌉ with mean Mp; a random ranking then picks which samples are on.
    count = torch.floor(samples * p + start).clamp_(max=samples)
    ranking = torch.rand((samples, *p.shape), generator=generator).argsort(dim=0).argsort(dim=0)
    return (ranking < count).float()


def fixed_count_masks(shape: tuple[int, int, int], off: int, generator: torch.Generator) -> Tensor:
    """Masks with exactly `off` zeros in every row of the last dimension, in random places.

    Args:
        shape: `[samples, modules, r]`.
        off: K, so many components are off; 0 ≤ K < r.
        generator: CPU generator.

    Returns:
        Float32 of zeros and ones, on the CPU.

    Raises:
        ValueError: nothing would be left on.
    """
    if not 0 <= off < shape[-1]:
        raise ValueError(f"{off} of {shape[-1]} components cannot be off: at least one must be on")
    ranking = torch.rand(shape, generator=generator).argsort(dim=-1).argsort(dim=-1)
    return (ranking >= off).float()
