"""How unlike the training data an input is, from what its forward computed anyway.

An input in the null space of A has no variance whatever the answer is worth (BayesLoRA,
Proposition 1), so doubt has to come from elsewhere: from where the input's hidden state lies among
those of the training examples. It is looked at at the end of the cue after each third of the
layers, averaged over the samples: the last layers may keep little but what tells the labels apart,
and an input of another kind then looks like one of the labels. The score of features h is a sum
over the depths o of squared Mahalanobis distances from the nearest class k of the training data,

    s(h) = Σ_o w_o min_k ‖W_oᵀ (h_o − μ_o,k)‖²,

where μ_o,k is the mean of a class and W_o whitens the first principal components of what is left
within the classes (Lee et al., 2018, with fixed weights w). The last depth counts twice: of many
labels it tells best what is none of them. `benchmarks/novelty.py` compares the score with others
and with single depths.

The score s becomes a conformal p-value against calibration examples that nothing was fitted on:

    p = (1 + #{calibration scores ≥ s}) / (n + 1)

If an input is exchangeable with the calibration examples, P(p < ε) ≤ ε for every ε, whatever the
features and the score are (Vovk et al., 2005; Bates et al., 2023). That is a mean over draws of the
calibration examples, and with a few hundred of them a draw can be off by twice ε. So a policy is
given a level below which usual inputs are at most the share that is promised in nearly every draw
(`Novelty.level`). A larger share finds more inputs of other kinds; texts of many kinds tell how
many, and pick it (`Novelty.pick`). No promise rests on them.

What is not to count as novel, such as spelling, is covered by variants: the training data are spelt
in all of them, and a calibration example scores as the variant of it that is farthest away. The
score of an input is at most that of its own farthest variant, so the bound holds for inputs in any
of the variants, whichever of them the corpus was typed in.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dalorra.decision.atomic_file import write_atomically
from dalorra.decision.intervals import beta_cdf
from dalorra.errors import AdapterError, ConfigError

NOVELTY_FILE: Final = "novelty.safetensors"
"""Name of the features inside an adapter directory."""

DEFAULT_SHARE: Final = 0.01
"""The smallest of `SHARES`: of usual inputs at most 1 % are escalated for novelty."""

SHARES: Final = (DEFAULT_SHARE, 0.02, 0.05, 0.1)
"""Shares of usual inputs that are tried where none is asked for."""

USUAL_TO_FOREIGN: Final = 5
"""Usual inputs for each of another kind in the traffic that a share is picked for: one usual input
more that is escalated weighs as much as five of other kinds that pass, since these are rare."""

COMPONENTS: Final = 128
"""Principal components that are kept at each depth."""

LAST_DEPTH: Final = 2.0
"""Weight of the last depth in the score; that of each other is 1."""

_ROUNDING: Final = 1e-12  # of a confidence: `least_share` must be one that can be promised
_DIMENSIONS: Final = {"mean": 2, "whitening": 3, "calibration": 1, "foreign": 2}
_CENTRES: Final = {"centres": 3}  # only where there are classes


@dataclass(frozen=True, slots=True, eq=False)
class Novelty:
    """Training features and calibration scores of one adapter.

    Attributes:
        mean: of the features at D depths, `[D, d]` float32.
        whitening: principal components over their standard deviations, times the root of the
            depth's weight, `[D, d, q]`.
        calibration: scores of examples that were not trained on, `[c]` float32, ascending.
        foreign: scores of texts of other kinds, `[kinds, texts]`; may be empty.
        adapter_digest: the adapter that computed the features.
        centres: means of C classes, whitened like an input, `[C, D, q]`; None: all training data
            are one class.
    """

    mean: Tensor
    whitening: Tensor
    calibration: Tensor
    foreign: Tensor
    adapter_digest: str
    centres: Tensor | None = None

    @classmethod
    def fit(
        cls,
        training: Tensor,
        calibration: Tensor,
        foreign: Tensor | None = None,
        *,
        adapter_digest: str,
        classes: Sequence[str] | None = None,
        components: int = COMPONENTS,
    ) -> Self:
        """Learns where the training data lie.

        Args:
            training: features of examples that the adapter was trained on, `[n, D, d]`.
            calibration: of others from the same source, `[c, D, d]`; or `[c, v, D, d]`, each in v
                variants, of which the one farthest away counts.
            foreign: of texts of other kinds, `[kinds, texts, D, d]`.
            adapter_digest: the adapter that computed them.
            classes: that of each training example; None, or fewer than two examples for each
                class on average: they are one class.
            components: q; fewer where n or d do not carry as many. Directions without spread are
                left out.

        Raises:
            ValueError: fewer than two training examples, no calibration examples, or another
                number of classes than of training examples.
        """
        n = len(training)
        if n < 2 or not len(calibration):
            raise ValueError("novelty needs two training examples and a calibration example")
        x = training.double().transpose(0, 1)  # [D, n, d]
        mean = x.mean(dim=1)
        member = _membership(classes, n)  # [n, C]
        of_class = member.T @ (x - mean[:, None]) / member.sum(dim=0)[:, None]  # [D, C, d]
        within = x - mean[:, None] - member @ of_class
        _, spread, directions = torch.linalg.svd(within, full_matrices=False)
        free = n - member.shape[1]
        q = min(components, free)
        spread, directions = spread[:, :q], directions[:, :q]
        inverse = torch.where(spread > 1e-6 * spread[:, :1], 1.0 / spread, 0.0)
        whitening = directions.mT * inverse[:, None] * free**0.5
        whitening[-1] *= LAST_DEPTH**0.5
        centres = (of_class @ whitening).transpose(0, 1).float() if member.shape[1] > 1 else None
        unscored = torch.empty(0), torch.empty(0, 0)
        fitted = cls(mean.float(), whitening.float(), *unscored, adapter_digest, centres)
        scores = fitted.scores(calibration.flatten(0, -3)).view(len(calibration), -1)
        fitted = replace(fitted, calibration=scores.amax(dim=1).sort().values)
        if foreign is None:
            return fitted
        by_kind = fitted.scores(foreign.flatten(0, 1)).view(foreign.shape[:2])
        return replace(fitted, foreign=by_kind)

    @property
    def width(self) -> int:
        """Of the hidden states, d."""
        return self.mean.shape[1]

    @property
    def digest(self) -> str:
        """sha256 of the file's content, hexadecimal."""
        return hashlib.sha256(self._content()).hexdigest()

    def scores(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distances, `[B, D, d]` → `[B]` float32 on the CPU."""
        centred = features.to("cpu", torch.float32) - self.mean
        white = torch.einsum("bod,odq->boq", centred, self.whitening)
        if self.centres is None:
            return white.square().sum(dim=(1, 2))
        # Exact differences: by products, small distances would drown in the rounding of large ones.
        mode = "donot_use_mm_for_euclid_dist"
        ways = white.transpose(0, 1), self.centres.transpose(0, 1)
        distances = torch.cdist(*ways, compute_mode=mode)  # [D, B, C]
        return distances.square().amin(dim=2).sum(dim=0)

    def p_values(self, features: Tensor) -> list[float]:
        """Conformal p-values, `[B, D, d]` → B of them; a score that is no number gets the least."""
        found: list[float] = self._p_values(self.scores(features)).tolist()
        return found

    def _p_values(self, scores: Tensor) -> Tensor:
        n = len(self.calibration)
        at_least = n - torch.searchsorted(self.calibration, scores.nan_to_num(nan=torch.inf))
        return (1.0 + at_least.double()) / (n + 1.0)

    def pick(self, confidence: float) -> tuple[float, float]:
        """The one of `SHARES` that suits texts of other kinds best, and its level.

        Best is the least share of wrong verdicts where there are `USUAL_TO_FOREIGN` usual inputs
        for each of another kind: usual ones are counted by the share that is promised, and the
        others by the median kind. An adapter's own kind may be among the texts; the median stands
        for the foreign ones as long as these are most. The confidence is divided among the shares,
        so the promise holds for whichever is picked. Too few calibration examples for any of the
        shares: the least that they can promise.

        Args:
            confidence: see `level`.
        """
        each = 1.0 - (1.0 - confidence) / len(SHARES)
        least = self.least_share(each)
        levels = {share: self.level(share, each) for share in SHARES if share >= least}
        levels = levels or {least: self.level(least, each)}
        p_values = self._p_values(self.foreign)

        def wrong(share: float) -> float:
            missed = (p_values >= levels[share]).double().mean(dim=1)  # of each kind
            return USUAL_TO_FOREIGN * share + (float(missed.quantile(0.5)) if len(missed) else 0.0)

        share = min(levels, key=wrong)
        return share, levels[share]

    def level(self, share: float, confidence: float) -> float:
        """The highest level below which at most `share` of usual inputs fall, with a confidence.

        Inputs beyond the k-th largest of n calibration scores are a share of all that is
        Beta(k, n + 1 − k) distributed over the draw of the calibration examples, and smaller where
        scores can be equal (order statistics; Bates et al., 2023, section 2). So k is the largest
        for which that share is within `share` with the confidence, and the level lies between the
        p-values k / (n + 1), which are below it, and (k + 1) / (n + 1).

        Args:
            share: of usual inputs, in (0, 1).
            confidence: over the draw of the calibration examples, in (0, 1).

        Raises:
            ConfigError: there are too few calibration examples to promise that.
        """
        n = len(self.calibration)
        enough = confidence - _ROUNDING
        k = bisect_left(range(1, n + 1), True, key=lambda k: beta_cdf(share, k, n + 1 - k) < enough)
        if not k:
            needed = math.ceil(math.log(1.0 - confidence) / math.log1p(-share))
            raise ConfigError(
                f"to escalate at most {100 * share:.3g} % of usual inputs for novelty, with "
                f"{100 * confidence:.6g} % confidence, takes {needed:,} held-out examples, and the "
                f"novelty features have {n:,}: the least that can be promised is "
                f"{100 * self.least_share(confidence):.3g} %"
            )
        return (k + 0.5) / (n + 1.0)

    def least_share(self, confidence: float) -> float:
        """The least share of usual inputs that `level` can promise, rounded up to three digits."""
        share: float = 1.0 - (1.0 - confidence) ** (1.0 / len(self.calibration))
        unit: float = 10.0 ** (math.floor(math.log10(share)) - 2)
        return math.ceil(share / unit) * unit

    def _content(self) -> bytes:
        names = _DIMENSIONS if self.centres is None else _DIMENSIONS | _CENTRES
        tensors = {name: getattr(self, name).contiguous() for name in names}
        content: bytes = save(tensors, metadata={"adapter_digest": self.adapter_digest})
        return content

    def save(self, folder: Path) -> Path:
        """Writes `novelty.safetensors` into an adapter's directory, atomically."""
        path = folder / NOVELTY_FILE
        write_atomically(path, self._content())
        return path

    @classmethod
    def load(cls, folder: Path, adapter_digest: str) -> Self:
        """Reads what `save` wrote.

        Args:
            folder: the adapter's directory.
            adapter_digest: of the adapter in it.

        Raises:
            AdapterError: the file is damaged, or its features are another adapter's.
        """
        path = folder / NOVELTY_FILE
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # Copies: the file is mapped, and may be written anew while an adapter is served.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise AdapterError(
                f"{path} is damaged or truncated ({error}): fit it again with `dalorra novelty`"
            ) from error
        if problem := _problem(tensors):
            raise AdapterError(f"{path}: {problem}; fit it again with `dalorra novelty`")
        made_for = metadata.get("adapter_digest", "")
        if made_for != adapter_digest:
            raise AdapterError(
                f"{path} was made for another adapter ({made_for[:12]}…, this is "
                f"{adapter_digest[:12]}…): fit it again with `dalorra novelty`"
            )
        return cls(
            **{name: tensor.float() for name, tensor in tensors.items()}, adapter_digest=made_for
        )


def _membership(classes: Sequence[str] | None, n: int) -> Tensor:
    """Which of C classes each of n examples is in, `[n, C]` of 0 and 1."""
    if classes is not None and len(classes) != n:
        raise ValueError(f"{len(classes)} classes for {n} training examples")
    names = {name: k for k, name in enumerate(sorted(set(classes or ())))}
    if classes is None or n < 2 * len(names):
        return torch.ones(n, 1, dtype=torch.float64)
    ids = torch.tensor([names[name] for name in classes])
    return torch.nn.functional.one_hot(ids, len(names)).double()


def _problem(tensors: dict[str, Tensor]) -> str | None:
    """The first thing wrong with a file's tensors."""
    if tensors.keys() - _CENTRES.keys() != _DIMENSIONS.keys():
        return f"it holds {', '.join(sorted(tensors))} instead of {', '.join(sorted(_DIMENSIONS))}"
    for name, tensor in tensors.items():
        dimensions = (_DIMENSIONS | _CENTRES)[name]
        empty = not tensor.numel() and name != "foreign"
        if tensor.ndim != dimensions or empty or not tensor.is_floating_point():
            return f"{name} has shape {list(tensor.shape)} and type {tensor.dtype}"
        if not torch.isfinite(tensor).all():
            return f"{name} holds a non-finite value"
    depths, width, components = tensors["whitening"].shape
    for name, shape in (("mean", (depths, width)), ("centres", (depths, components))):
        if name in tensors and tensors[name].shape[-2:] != shape:
            return f"its {name} and whitening do not fit each other"
    if (tensors["calibration"].diff() < 0).any():
        return "its calibration scores are not in order"
    return None
