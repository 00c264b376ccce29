"""Scores of how unlike the training data an input is, and what tells one score from another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from dalorra.decision.intervals import percentile_interval, resampled_means
from dalorra.decision.metrics import auroc
from dalorra.decision.novelty import COMPONENTS, DEFAULT_SHARE, LAST_DEPTH, Novelty
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import Prediction

Part = dict[str, Tensor]
"""Of one set of n inputs: its features `[n, d]`, and `[n]` per doubt; higher: doubtful."""

Score = Callable[[Part], Tensor]
"""The score of each input of a part, `[n]`; higher: more doubtful."""

FEATURES: Final[dict[str, Score]] = {
    "one third": lambda part: part["thirds"][:, 0],
    "two thirds": lambda part: part["thirds"][:, 1],
    "answer": lambda part: part["thirds"][:, -1],
    "prompt": lambda part: part["prompt"],
    "ranks": lambda part: part["ranks"],
}
"""Hidden state at the end of the cue after a third of the layers, two thirds and all, and at the
end of the prompt; all rank activations at the cue's end. Of n inputs `[n, d]`."""

DOUBTS: Final = ("variance", "entropy", "mutual_information", "max_probability")
LAST_DEPTHS: Final = (1.0, 2.0, 4.0)
"""Weights of the last depth that are tried."""

_THIRDS: Final = ("one third", "two thirds", "answer")
_SIZES: Final = (32, 64, 128)
_NEIGHBOURS: Final = 5


def candidates(train: Part) -> dict[str, Score]:
    """Name of each score of the features → the score, fitted on training data."""
    scores: dict[str, Score] = {}
    for feature in FEATURES:
        for q in _SIZES:
            scores |= _fitted(train, feature, q)
    for q in _SIZES:
        parts = [scores[_mahalanobis(feature, q)] for feature in _THIRDS]
        scores[_mahalanobis("thirds", q)] = partial(_sum, parts)
        by_label = by_depth(train["thirds"], [str(int(label)) for label in train["label"]], q)
        for last in LAST_DEPTHS:
            name = f"thirds, nearest label, last depth × {last:g}, {q}"
            scores[name] = partial(_weighted, by_label, last)
    return scores


def by_depth(
    training: Tensor, classes: Sequence[str] | None, q: int = COMPONENTS
) -> Callable[[Tensor], Tensor]:
    """Squared Mahalanobis distances from the nearest class at each depth alone.

    Args:
        training: features, `[n, D, d]`.
        classes: of each; None: all are one class.
        q: components.

    Returns:
        features `[B, D, d]` → distances `[B, D]`.
    """
    alone = [
        Novelty.fit(one, one[:1], adapter_digest="", classes=classes, components=q)
        for one in training.split(1, dim=1)
    ]

    def distances(features: Tensor) -> Tensor:
        at_depths = zip(alone, features.split(1, dim=1), strict=True)
        return torch.stack([one.scores(x) / LAST_DEPTH for one, x in at_depths], dim=1)

    return distances


def summed(distances: Tensor, last: float) -> Tensor:
    """Over the depths, `[B, D]` → `[B]` float64; the last one counts `last` times."""
    found = distances.double()
    return found.sum(dim=1) + (last - 1.0) * found[:, -1]


def _weighted(distances: Callable[[Tensor], Tensor], last: float, part: Part) -> Tensor:
    return summed(distances(part["thirds"]), last)


def _mahalanobis(feature: str, q: int) -> str:
    return f"{feature}, Mahalanobis, {q}"


def _sum(scores: Sequence[Score], part: Part) -> Tensor:
    return torch.stack([score(part) for score in scores]).sum(dim=0)


def _fitted(train: Part, feature: str, q: int) -> dict[str, Score]:
    """Three scores in the whitened first q principal components of a feature."""
    read = FEATURES[feature]
    x = read(train).double()
    mean, labels = x.mean(dim=0), train["label"]
    _, spread, directions = torch.linalg.svd(x - mean, full_matrices=False)
    whitening = directions[:q].T / spread[:q] * (len(x) - 1) ** 0.5

    def white(part: Part) -> Tensor:
        centred: Tensor = read(part).double() - mean
        return centred @ whitening

    near = white(train)
    centres = torch.stack([near[labels == k].mean(dim=0) for k in labels.unique()])

    def mahalanobis(part: Part) -> Tensor:
        return white(part).square().sum(dim=1)

    def relative(part: Part) -> Tensor:
        return torch.cdist(white(part), centres).square().amin(dim=1) - mahalanobis(part)

    def neighbours(part: Part) -> Tensor:
        return torch.cdist(white(part), near).kthvalue(_NEIGHBOURS, dim=1).values

    return {
        _mahalanobis(feature, q): mahalanobis,
        f"{feature}, relative Mahalanobis, {q}": relative,
        f"{feature}, {_NEIGHBOURS} nearest neighbours, {q}": neighbours,
    }


def chosen_on(parts: dict[str, Part], shifts: Iterable[str]) -> list[dict[str, Any]]:
    """Every candidate on every shift: AUROC, and detection where 2 % of usual inputs are above."""
    results = []
    for name, score in candidates(parts["reference"]).items():
        usual = score(parts["usual"])
        limit = usual.quantile(0.98)
        for shift in shifts:
            outside = score(parts[shift])
            results.append(
                {
                    "score": name,
                    "shift": shift,
                    "auroc": _auroc(usual, outside),
                    "detected_at_2": float((outside > limit).double().mean()),
                    "n": {
                        "in": len(usual),
                        "out": len(outside),
                        "train": len(parts["train"]["label"]),
                    },
                }
            )
    return results


def spelling_cost(parts: dict[str, Part], level: float = 0.05) -> list[dict[str, Any]]:
    """Share of usual inputs below a level, as written and as sentences, by what was fitted on."""
    results = []
    for name, train in (("none", "train"), ("orthography", "reference")):
        fitted = Novelty.fit(
            parts[train]["thirds"],
            parts["held_out"]["thirds"],
            adapter_digest="",
            classes=[str(int(label)) for label in parts[train]["label"]],
        )
        for shift in ("usual", "respelt"):
            p = torch.tensor(fitted.p_values(parts[shift]["thirds"]))
            results.append(
                {
                    "score": f"thirds, {COMPONENTS}; augment: {name}",
                    "shift": shift,
                    "level": level,
                    "escalated": float((p < level).double().mean()),
                    "n": {"in": len(p), "train": len(parts[train]["label"])},
                }
            )
    return results


def compared(
    parts: dict[str, Part], shifts: Iterable[str], novelty: Novelty, policy: Policy
) -> list[dict[str, Any]]:
    """Every doubt, novelty, and both together, on every shift.

    `fpr_at_95` is the share of usual inputs among those at least as doubtful as 95 % of the shift.
    `accepted` is the share that a policy accepts: the adapter's own, the same without its novelty
    level, and, for the variance alone, the threshold that accepts as many usual inputs as the
    adapter's own does. `ahead` is an interval for the lead of both together in AUROC over the best
    of the others.
    """
    scores = _doubts(novelty, policy)
    accept = _policies(parts["usual"], novelty, policy)
    results = []
    for shift in shifts:
        for name, score in scores.items():
            inside, outside = score(parts["usual"]), score(parts[shift])
            cut = outside.kthvalue(len(outside) // 20 + 1).values  # 95 % are at least this
            result: dict[str, Any] = {
                "shift": shift,
                "score": name,
                "auroc": _auroc(inside, outside),
                "fpr_at_95": float((inside >= cut).double().mean()),
                "n": {"in": len(inside), "out": len(outside)},
            }
            if name in accept:
                result["accepted"] = float(accept[name](parts[shift]).mean())
                result["accepted_in_distribution"] = float(accept[name](parts["usual"]).mean())
            if name == "combined":
                result["ahead"] = lead_over_best(scores, parts["usual"], parts[shift])
            results.append(result)
    return results


def _doubts(novelty: Novelty, policy: Policy) -> dict[str, Score]:
    def doubt(name: str) -> Score:
        return lambda part: part[name].double()

    def novel(part: Part) -> Tensor:
        return -torch.tensor(novelty.p_values(part["thirds"])).double()

    def combined(part: Part) -> Tensor:
        return leniency_needed(part, novelty, policy)

    named = {name: doubt(name) for name in DOUBTS}
    return named | {"novelty": novel, "combined": combined}


def leniency_needed(part: Part, novelty: Novelty, policy: Policy) -> Tensor:
    """How lenient the policy has to become until it accepts each input, `[n]`; above 2: never.

    Calibration moves a policy along p ≥ τ, v ≤ κ τ (1 − τ) with a fixed κ, and leaves the novelty
    level where it is (`training.risk_control.Strictness`). An input of probability p and variance
    v is accepted up to the τ where τ = p or τ (1 − τ) = v / κ, whichever comes first; its doubt is
    1 − τ. One whose novelty p-value is below the level no τ accepts.
    """
    tau = policy.min_probability
    kappa = policy.max_variance / (tau * (1.0 - tau))
    probability, variance = 1.0 - part["max_probability"].double(), part["variance"].double()
    room = 0.25 - variance / kappa  # negative: more variance than any τ allows for
    by_variance = 0.5 + torch.where(room >= 0.0, room.clamp(min=0.0).sqrt(), room / (1.0 - room))
    p_value = torch.tensor(novelty.p_values(part["thirds"])).double()
    refused = p_value < (policy.min_novelty_p or DEFAULT_SHARE)
    return torch.where(refused, 3.0 - p_value, 1.0 - torch.minimum(probability, by_variance))


def predictions(part: Part, p_values: Sequence[float]) -> list[Prediction]:
    """Of each input of a part what a policy looks at, with these novelty p-values."""
    seen = zip(part["max_probability"].tolist(), part["variance"].tolist(), p_values, strict=True)
    return [
        Prediction("", 1.0 - doubt, variance, {}, 0.0, 0.0, samples=1, novelty=p)
        for doubt, variance, p in seen
    ]


def lead_over_best(scores: Mapping[str, Score], usual: Part, shifted: Part) -> list[float]:
    """95 % interval for the lead of `combined` in AUROC over the best other score.

    Over the draw of both sets of inputs (paired bootstrap). Which other score is the best is found
    anew in each redraw, as it was found on the inputs themselves.
    """
    kernels = {
        name: _more_doubtful(score(usual), score(shifted)).numpy() for name, score in scores.items()
    }
    others = np.stack([kernel for name, kernel in kernels.items() if name != "combined"])
    leads = resampled_means(kernels["combined"] - others).min(axis=0)
    return [round(limit, 4) for limit in percentile_interval(leads)]


def _more_doubtful(inside: Tensor, outside: Tensor) -> Tensor:
    """Whether each input outside is the more doubtful of a pair, ½ if equal; its mean is AUROC."""
    return torch.sign(outside[None, :] - inside[:, None]) / 2 + 0.5


def _policies(usual: Part, novelty: Novelty, policy: Policy) -> dict[str, Score]:
    """Which inputs are accepted, `[n]` 0 or 1, by the name of the doubt that a policy rests on."""

    def by(level: float | None) -> Score:
        own = policy.model_copy(update={"min_novelty_p": level})

        def accepts(part: Part) -> Tensor:
            p_values = novelty.p_values(part["thirds"])
            verdicts = [own.decide(one) for one in predictions(part, p_values)]
            return torch.tensor([float(v.decision == "accept") for v in verdicts])

        return accepts

    combined = by(policy.min_novelty_p or DEFAULT_SHARE)
    share = float(combined(usual).mean())
    limit = usual["variance"].double().quantile(share)
    return {
        "variance": lambda part: (part["variance"].double() <= limit).double(),
        "max_probability": by(None),
        "combined": combined,
    }


def _auroc(inside: Tensor, outside: Tensor) -> float:
    both = torch.cat([inside, outside]).numpy()
    return auroc(both, torch.arange(len(both)).numpy() < len(inside))
