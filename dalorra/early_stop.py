"""Leaving the rest of a bank out, once it can change neither the label nor the decision.

After n of M members, with p the probability of the label in front: A is the sum over the members
of its mean over the head's masks, B that of p². Each of the R = M − n members to come adds some
a in [0, 1] to A and some b in [a², a] to B, whatever the network computes. With α their mean a,

    p̄ = (A + Rα) / M                        from A/M to (A + R)/M
    v ≥ (B + Rα²) / M − p̄²                  least at α = A/n: n/M of the variance so far
    v ≤ (B + Rα) / M − p̄²                   greatest where p̄ is nearest to 1/2

and another label catches up only if it is at most R behind. The decision is certain when the
policy's rule says the same everywhere within these bounds. Members that go on as those before did
are within them, so the moments of the n members lead to that decision, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from dalorra.decision.policy import Policy
from dalorra.decision.predictive import PosteriorSamples, Prediction, summarise
from dalorra.prompts import Prompt

Run = Callable[[Sequence[Prompt], range], PosteriorSamples]
"""Runs prompts under some members of the bank."""

_SLACK: Final = 1e-9
"""Far above the rounding of double precision, far below any threshold."""


def stages(members: int) -> list[range]:
    """Parts of the bank, one forward each; certainty is looked for after every one of them.

    A label leads by n at most while R = M − n members can still vote for another one, so nothing
    is certain before most of the bank has been used; what is left then is halved.
    """
    ends = [members // 2 + 1]
    while ends[-1] < members:
        ends.append(ends[-1] + (members - ends[-1] + 1) // 2)
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def certain(samples: PosteriorSamples, members: int, deciders: Sequence[Policy | None]) -> Tensor:
    """Whether label and decision are the same whatever the members to come are, `[B]` bool.

    Args:
        samples: of B inputs under the first n members.
        members: M.
        deciders: the policy that decides on each input; None, or one that asks for novelty: it
            is never certain.
    """
    p = samples.probabilities.double()  # [B, n, S, K]
    weights = samples.weights.double()
    weights = weights / weights.sum()
    used = p.shape[1]
    rest = members - used
    votes = torch.einsum("bmsk,s->bk", p, weights)
    (front, second), best = votes.topk(2).values.unbind(dim=1), votes.argmax(dim=1)
    own = p.gather(3, best[:, None, None, None].expand(*p.shape[:3], 1)).squeeze(3)  # [B, n, S]
    spread = (own - (front / used)[:, None, None]).square()

    least_p, most_p = front / members, (front + rest) / members
    least_v = torch.einsum("bms,s->b", spread, weights) / members
    squares = torch.einsum("bms,s->b", own.square(), weights)
    middle = least_p.clamp_min(0.5).minimum(most_p)
    most_v = (squares - front) / members + middle * (1.0 - middle)

    tau_p, tau_v = _thresholds(deciders)
    steady = most_v <= tau_v - _SLACK
    accept = steady & (least_p >= tau_p + _SLACK)
    clarify = steady & (most_p < tau_p - _SLACK)
    escalate = least_v > tau_v + _SLACK
    return (front - second > rest + _SLACK) & (accept | clarify | escalate)


def _thresholds(deciders: Sequence[Policy | None]) -> tuple[Tensor, Tensor]:
    """τ_p and τ_v, `[B]` each; not a number where nothing is ever certain."""
    pairs = [
        (policy.min_probability, policy.max_variance)
        if policy is not None and not policy.min_novelty_p
        else (torch.nan, torch.nan)
        for policy in deciders
    ]
    tau_p, tau_v = torch.tensor(pairs, dtype=torch.float64).view(-1, 2).unbind(dim=1)
    return tau_p, tau_v


def predict_in_stages(
    run: Run,
    prompts: Sequence[Prompt],
    deciders: Sequence[Policy | None],
    *,
    members: int,
    labels: Sequence[str],
) -> list[Prediction]:
    """Predictive moments of each prompt over the members that it needed; order kept.

    All prompts share the forward of a stage; those that need no more are left out of the next.

    Args:
        run: runs prompts under members.
        prompts: B prompts.
        deciders: see `certain`.
        members: M.
        labels: K names.
    """
    answers: dict[int, Prediction] = {}
    waiting = list(range(len(prompts)))
    so_far: PosteriorSamples | None = None
    for stage in stages(members):
        fresh = run([prompts[i] for i in waiting], stage)
        p = fresh.probabilities
        if so_far is not None:
            p = torch.cat([so_far.probabilities, p], dim=1)
        so_far = replace(fresh, probabilities=p)
        done = certain(so_far, members, [deciders[i] for i in waiting])
        if stage.stop == members:
            done = torch.ones_like(done)
        finished = summarise(replace(so_far, probabilities=p[done]), labels)
        indices = [i for i, is_done in zip(waiting, done.tolist(), strict=True) if is_done]
        answers.update(zip(indices, finished, strict=True))
        waiting = [i for i in waiting if i not in answers]
        so_far = replace(so_far, probabilities=p[~done])
        if not waiting:
            break
    return [answers[i] for i in range(len(prompts))]
