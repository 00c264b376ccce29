"""Thresholds by the empirical error on labelled examples, without a promise for new data."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dalorra.decision.policy import NEVER, Policy


def pick_thresholds(
    probability: ArrayLike,
    variance: ArrayLike,
    correct: ArrayLike,
    *,
    target_error: float,
    source: str = "labelled examples",
    adapter_digest: str | None = None,
) -> Policy:
    """The pair (τ_p, τ_v) that accepts the most with an error rate among accepted within target.

    All pairs of observed values are considered, at the cost of O(n · wrong answers). Among pairs
    that accept equally many, the one with the higher τ_p, then the lower τ_v. Both are then as
    strict as they can be without accepting less: the smallest probability and the largest
    variance among the accepted. When no pair qualifies the policy never accepts.

    The error rate is the empirical one on these examples, which the thresholds were chosen to
    satisfy: on new data it may be higher.

    Args:
        probability: `[n]` mean probability of the predicted label.
        variance: `[n]` its variance over the samples.
        correct: `[n]` whether the predicted label is the true one.
        target_error: largest acceptable share of errors among accepted answers.
        source: what the examples are, for the policy.
        adapter_digest: the adapter that produced them.

    Raises:
        ValueError: wrong shapes, no examples, non-finite numbers, or a target outside [0, 1].
    """
    p = np.asarray(probability, dtype=np.float64)
    v = np.asarray(variance, dtype=np.float64)
    wrong = ~np.asarray(correct, dtype=np.bool_)
    if p.ndim != 1 or not len(p) or p.shape != v.shape or p.shape != wrong.shape:
        raise ValueError("probability, variance and correct must be vectors of one length n ≥ 1")
    if not (np.isfinite(p).all() and np.isfinite(v).all()):
        raise ValueError("probability and variance must be finite")
    if not 0.0 <= target_error <= 1.0:
        raise ValueError(f"target_error must lie between 0 and 1, got {target_error}")
    accepted = _largest_acceptance(p, v, wrong, target_error)
    count = int(accepted.sum())
    return Policy(
        min_probability=float(p[accepted].min()) if count else NEVER,
        max_variance=float(v[accepted].max()) if count else 0.0,
        source=source,
        target_error=float(target_error),
        n=len(p),
        accepted=count / len(p),
        error=float(wrong[accepted].mean()) if count else None,
        adapter_digest=adapter_digest,
    )


def _largest_acceptance(
    p: NDArray[np.float64], v: NDArray[np.float64], wrong: NDArray[np.bool_], target: float
) -> NDArray[np.bool_]:
    """Which examples the best pair of thresholds accepts, `[n]`; all false when there is none.

    Only some τ_p can be best. If the next lower probability below τ_p (within τ_v) held right
    answers only, accepting those too would accept more at a lower error rate. So the best set is
    "p above that of some wrong answer", or everything.
    """
    order = np.argsort(v, kind="stable")
    p_sorted, wrong_sorted = p[order], wrong[order]
    # A threshold on the variance falls between distinct values only.
    last_of_tie = np.append(np.diff(v[order]) > 0.0, True)
    best, best_count, best_key = np.zeros(len(p), dtype=np.bool_), 0, (0.0, 0.0)
    for floor in (-np.inf, *np.unique(p[wrong])):  # ascending: every step accepts fewer at most
        above = p_sorted > floor
        if int(above.sum()) < best_count:
            break
        taken = np.cumsum(above)
        errors = np.cumsum(above & wrong_sorted)
        valid = last_of_tie & (taken >= max(best_count, 1))
        valid[valid] = errors[valid] / taken[valid] <= target
        if not valid.any():
            continue
        count = int(taken[valid].max())
        index = int(np.flatnonzero(valid & (taken == count))[0])
        chosen = (p > floor) & (v <= v[order[index]])
        key = (float(p[chosen].min()), -float(v[chosen].max()))
        if (count, key) > (best_count, best_key):
            best, best_count, best_key = chosen, count, key
    return best
