"""Bernoulli masks: divergences, relaxed samples, hard samples, and the uniforms behind those.

Source: DALorRA, section 4. Every module j of the adapter owns one logit φ per rank component;
q(z) is a product of Bernoulli(σ(φ)), the prior a product of Bernoulli(p₀).
"""

import math
from collections.abc import Sequence
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Sampler = Literal["stratified", "iid"]

_NEAR: Final = 1e-12
"""Uniforms are kept so far from 0 and 1, so that their logits are finite."""


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


def bernoulli_kl_between(logits: Tensor, others: Tensor) -> Tensor:
    """KL(Bernoulli(σ(a)) ‖ Bernoulli(σ(b))) of each element in nats; 0 where a is b.

    Args:
        logits: a, finite.
        others: b, likewise, broadcast with a.
    """
    on = torch.sigmoid(logits)
    return on * (logits - others) + F.logsigmoid(-logits) - F.logsigmoid(-others)


def logistic_noise(shape: Sequence[int], samples: int, generator: torch.Generator) -> Tensor:
    """Independent ε = log u − log(1 − u), u ~ Uniform(0, 1): φ + ε > 0 has probability σ(φ).

    Args:
        shape: of one sample.
        samples: how many.
        generator: source of u, on the CPU, so that a seed means the same on every device.

    Returns:
        Float64 `[samples, *shape]`, on the CPU.
    """
    u = torch.rand((samples, *shape), generator=generator, dtype=torch.float64)
    return torch.logit(u, eps=_NEAR)


def relaxed(logits: Tensor, temperature: float) -> Tensor:
    """The Gumbel-sigmoid σ((φ + ε) / τ) of φ + ε (Eq. 3), which tends to φ + ε > 0 as τ → 0.

    Raises:
        ValueError: τ is not positive.
    """
    if temperature <= 0.0:
        raise ValueError(f"temperature {temperature} is not positive")
    return torch.sigmoid(logits / temperature)


def relaxed_masks(
    logits: Tensor, temperature: float, samples: int, generator: torch.Generator
) -> Tensor:
    """Independent Gumbel-sigmoid samples z = σ((φ + ε) / τ) (Eq. 3).

    Args:
        logits: φ, `[modules, r]`.
        temperature: τ > 0; z tends to a hard Bernoulli(σ(φ)) sample as τ → 0.
        samples: how many.
        generator: see `logistic_noise`.

    Returns:
        `[samples, modules, r]`, differentiable in `logits`.
    """
    noise = logistic_noise(logits.shape, samples, generator).to(logits)
    return relaxed(logits + noise, temperature)


def uniforms(
    shape: Sequence[int], samples: int, generator: torch.Generator, sampler: Sampler = "stratified"
) -> Tensor:
    """M samples of independent u ~ Uniform(0, 1), which decide hard masks by u < p.

    `iid` draws all of them independently. `stratified` spaces the M values of each element 1 / M
    apart from a random start and gives them to the samples in random order: each sample alone is
    uniform, and over the bank u is below p in ⌊Mp⌋ or ⌈Mp⌉ samples, whatever p is.

    Args:
        shape: of one sample.
        samples: M ≥ 1.
        generator: CPU generator; the same seed gives the same bank.
        sampler: `stratified` or `iid`.

    Returns:
        Float64 `[M, *shape]`, on the CPU.
    """
    if samples < 1:
        raise ValueError(f"samples {samples} is below 1")
    if sampler == "iid":
        return torch.rand((samples, *shape), generator=generator, dtype=torch.float64)
    start = torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
    ranking = torch.rand((samples, *shape), generator=generator).argsort(dim=0).argsort(dim=0)
    return (ranking + 1.0 - start) / samples


def uniform_noise(u: Tensor) -> Tensor:
    """−logit u, float32: φ + that is above 0 exactly where u < σ(φ)."""
    return -torch.logit(u, eps=_NEAR).float()


def hard_masks(
    probabilities: Tensor, samples: int, generator: torch.Generator, sampler: Sampler = "stratified"
) -> Tensor:
    """Hard samples z ~ Bernoulli(p), the samples of a mask bank.

    `iid` draws them independently, as the paper does. Under `stratified` each bit is on in ⌊Mp⌋ or
    ⌈Mp⌉ of the M samples, in random order and independently of every other bit. Each sample alone
    is still distributed as q, and the bank's mean is p almost exactly, so that fewer samples are
    needed for the same answer.

    Args:
        probabilities: σ(φ), `[modules, r]`.
        samples: M ≥ 1.
        generator: CPU generator; the same seed gives the same bank.
        sampler: `stratified` or `iid`.

    Returns:
        Float32 `[M, modules, r]` of zeros and ones, on the CPU.
    """
    p = probabilities.detach().to("cpu", torch.float64)
    return (uniforms(p.shape, samples, generator, sampler) < p).float()


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
