"""Evidence that a mean exceeds what was promised, valid whenever one looks at it.

H₀: every loss in [0, 1] has, given all losses before it, a mean of at most m. A gambler who pays
a stake of λ ≥ 0 on "the next loss x is above m" multiplies his money by 1 + λ(x − m). Under H₀ no
such game is in his favour, and while λ ≤ 1/m he cannot go bankrupt: his wealth is a non-negative
supermartingale that starts at 1. By Ville's inequality (1939) the probability that it ever reaches
1/α is at most α, for every α, however often and for whatever reason one looks (Waudby-Smith and
Ramdas, 2024, "Estimating means of bounded random variables by betting", sections 4 and 5).

How badly the promise is broken, and since when, nobody knows. So the wealth is divided in advance,
and a mixture of supermartingales is one:

* over stakes: λ = (q − m) / (m(1 − m)) makes 1 + λ(x − m) the likelihood ratio q^x (1 − q)^(1 − x)
  to that of m for a loss of 0 or 1, and its expected growth is largest when q is the true mean.
  The odds of q are those of m times one of `ODDS`.
* over starts: a share 1 / (s(s + 1)) of the wealth waits for the s-th loss before it is staked,
  which leaves 1 / (t + 1) unstaked after t losses. What a long good time costs the gambler is then
  logarithmic in its length, and a promise that breaks late is noticed (the idea of mixing over
  change points is from Shin, Ramdas and Rinaldo, 2024, "E-detectors").
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

ODDS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""How many times the odds of m the odds of the means that are bet on are."""

_MOST = 1e300
"""Wealth above it is given away: less is still evidence, and infinity is no number in JSON."""


@dataclass(frozen=True, slots=True)
class EProcess:
    """The gambler against "the mean loss is at most `target`".

    Attributes:
        target: m, strictly between 0 and 1.
        count: losses that were seen.
        staked: wealth in play, for each of `ODDS`.
    """

    target: float
    count: int = 0
    staked: tuple[float, ...] = (0.0,) * len(ODDS)

    def __post_init__(self) -> None:
        if not 0.0 < self.target < 1.0:
            raise ValueError(f"target must lie strictly between 0 and 1, got {self.target}")
        if len(self.staked) != len(ODDS):
            raise ValueError(f"there are {len(ODDS)} bets, not {len(self.staked)}")

    @classmethod
    def after(cls, target: float, losses: Sequence[float]) -> Self:
        """The gambler after these losses, in their order."""
        process = cls(target)
        for loss in losses:
            process = process.observe(loss)
        return process

    @property
    def e_value(self) -> float:
        """The wealth: its expectation is at most 1 under H₀, at every stopping time."""
        return sum(self.staked) + 1.0 / (self.count + 1)

    def observe(self, loss: float) -> Self:
        """The gambler after one more loss, which must lie in [0, 1]."""
        if not 0.0 <= loss <= 1.0:
            raise ValueError(f"a loss must lie between 0 and 1, got {loss}")
        m, count = self.target, self.count + 1
        entering = 1.0 / (count * (count + 1)) / len(ODDS)
        staked = []
        for odds, wealth in zip(ODDS, self.staked, strict=True):
            q = odds * m / (1.0 - m + odds * m)
            stake = (q - m) / (m * (1.0 - m))
            staked.append(min((wealth + entering) * (1.0 + stake * (loss - m)), _MOST))
        return replace(self, count=count, staked=tuple(staked))
