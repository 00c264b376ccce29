"""How unlike the training data an input is, from what its forward computed anyway.

An input in the null space of A has no variance whatever the answer is worth (BayesLoRA,
Proposition 1), so doubt has to come from elsewhere: from where the input's hidden state lies among
those of the training examples. The hidden state is the one at the end of the cue, averaged
over the samples; the score is its squared Mahalanobis distance from the mean of the training data,
in their first principal components (Lee et al., 2018, without classes). `benchmarks/novelty.py`
compares it with other scores and with the hidden state at the end of the prompt.

The score s becomes a conformal p-value against calibration examples that nothing was fitted on:

    p = (1 + #{calibration scores ≥ s}) / (n + 1)

If an input is exchangeable with the calibration examples, P(p < ε) ≤ ε for every ε, whatever the
features and the score are (Vovk et al., 2005; Bates et al., 2023).

What is not to count as novel, such as spelling, is covered by variants: the training data are spelt
in all of them, and a calibration example scores as the variant of it that is farthest away. The
score of an input is at most that of its own farthest variant, so the bound holds for inputs in any
of the variants, whichever of them the corpus was typed in.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dalorra.decision.atomic_file import write_atomically
from dalorra.errors import AdapterError

NOVELTY_FILE: Final = "novelty.safetensors"
"""Name of the features inside an adapter directory."""

DEFAULT_LEVEL: Final = 0.01
"""ε that calibration uses unless told otherwise: of usual inputs at most 1 % are escalated."""

COMPONENTS: Final = 128
"""Principal components that are kept."""

_DIMENSIONS: Final = {"mean": 1, "whitening": 2, "calibration": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Novelty:
    """Training features and calibration scores of one adapter.

    Attributes:
        mean: of the features, `[d]` float32.
        whitening: principal components over their standard deviations, `[d, q]`.
        calibration: scores of examples that were not trained on, `[c]` float32, ascending.
        adapter_digest: the adapter that computed the features.
    """

    mean: Tensor
    whitening: Tensor
    calibration: Tensor
    adapter_digest: str

    @classmethod
    def fit(
        cls,
        training: Tensor,
        calibration: Tensor,
        *,
        adapter_digest: str,
        components: int = COMPONENTS,
    ) -> Self:
        """Learns where the training data lie.

        Args:
            training: features of examples that the adapter was trained on, `[n, d]`.
            calibration: of others from the same source, `[c, d]`; or `[c, v, d]`, each in v
                variants, of which the one farthest away counts.
            adapter_digest: the adapter that computed them.
            components: q; fewer where n or d do not carry as many.

        Raises:
            ValueError: fewer than two training examples, or no calibration examples.
        """
        if len(training) < 2 or not len(calibration):
            raise ValueError("novelty needs two training examples and a calibration example")
        x = training.double()
        mean = x.mean(dim=0)
        _, spread, directions = torch.linalg.svd(x - mean, full_matrices=False)
        kept = min(components, int((spread > 1e-6 * spread[0]).sum()), len(x) - 1)
        deviation = spread[:kept] / (len(x) - 1) ** 0.5
        whitening = directions[:kept].T / deviation
        fitted = cls(mean.float(), whitening.float(), torch.empty(0), adapter_digest)
        scores = fitted.scores(calibration.flatten(0, -2)).view(len(calibration), -1)
        return replace(fitted, calibration=scores.amax(dim=1).sort().values)

    @property
    def width(self) -> int:
        """D."""
        return len(self.mean)

    @property
    def digest(self) -> str:
        """sha256 of the file's content, hexadecimal."""
        return hashlib.sha256(self._content()).hexdigest()

    def scores(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distances, `[B, d]` → `[B]` float32 on the CPU."""
        whitened = (features.to("cpu", torch.float32) - self.mean) @ self.whitening  # [B, q]
        return whitened.square().sum(dim=1)

    def p_values(self, features: Tensor) -> list[float]:
        """Conformal p-values, `[B, d]` → B of them; a score that is not finite gets the least."""
        scores = self.scores(features).nan_to_num(nan=torch.inf)
        n = len(self.calibration)
        at_least = n - torch.searchsorted(self.calibration, scores)
        return ((1.0 + at_least.double()) / (n + 1.0)).tolist()

    def _content(self) -> bytes:
        tensors = {name: getattr(self, name).contiguous() for name in _DIMENSIONS}
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
        return cls(**{name: tensors[name].float() for name in _DIMENSIONS}, adapter_digest=made_for)


def _problem(tensors: dict[str, Tensor]) -> str | None:
    """The first thing wrong with a file's tensors."""
    if tensors.keys() != _DIMENSIONS.keys():
        return f"it holds {', '.join(sorted(tensors))} instead of {', '.join(sorted(_DIMENSIONS))}"
    for name, dimensions in _DIMENSIONS.items():
        tensor = tensors[name]
        if tensor.ndim != dimensions or not tensor.numel() or not tensor.is_floating_point():
            return f"{name} has shape {list(tensor.shape)} and type {tensor.dtype}"
        if not torch.isfinite(tensor).all():
            return f"{name} holds a non-finite value"
    if len(tensors["mean"]) != len(tensors["whitening"]):
        return "its mean and whitening do not fit each other"
    if (tensors["calibration"].diff() < 0).any():
        return "its calibration scores are not in order"
    return None
