"""The Fisher information of an adapter's weights, one Kronecker product for each of A and B.

The exact Fisher, an expectation over the labels that the model itself predicts, is for the
softmax the same as the generalised Gauss–Newton matrix:

    F = Σ_n Jₙᵀ (diag pₙ − pₙ pₙᵀ) Jₙ = Σ_n Σ_c g_nc g_ncᵀ                              J = ∂f / ∂θ

where g_nc is the gradient along the c-th column of a root of the K × K matrix in the middle. One of
its eigenvalues is zero (all logits may grow together), so K − 1 backwards are exact.

KFAC (Martens and Grosse, 2015) keeps a block for each weight and writes it as a product of the
second moments of the weight's inputs and of the gradients of its outputs. Its forms differ in what
they do with the several rows of an example, see `Kfac`.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dalorra.errors import AdapterError
from dalorra.prompts import Prompt
from training.laplace.gradients import LabelGradients, WeightRows

Kfac = Literal["examples", "expand"]
"""How the rows of an example enter, Σ_r g_r x_rᵀ being its gradient.

`examples`: from the gradients G of whole examples, F ≈ Σ G Gᵀ ⊗ Σ Gᵀ G / Σ ‖G‖². It has the trace
of the exact F, and every row and example weighs what its gradient does.

`expand` (Eschenhagen et al., 2023; the authors' code): every row is an example of its own,
F ≈ Σ g_r g_rᵀ ⊗ Σ x_r x_rᵀ / (number of rows). Products of different rows are left out, and the
input of a row, or of an example, without a gradient counts as much as one that decides. Of the k
rows of a cue the last ones decide; the inputs of the first ones, the same words every time, point
in other directions.
"""

ROW_BUDGET = 512
"""Most rows, times the directions C, of one differentiated forward."""

TOKEN_BUDGET = 4096
"""Most tokens of the prompts whose keys and values one such forward holds."""


class SecondMoment:
    """Σ v vᵀ, exactly, or by its leading eigenvectors where d × d numbers are too many.

    Args:
        limit: how many eigenvectors are kept; None: all. They are updated batch by batch (an
            incremental singular value decomposition), so memory is limit × d.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._sum: Tensor | None = None  # [d, d], or [≤ limit, d] with Σ v vᵀ ≈ sumᵀ sum

    def add(self, vectors: Tensor) -> None:
        """Adds `[n, d]` vectors."""
        if self._limit is None or self._limit >= vectors.shape[-1]:
            product = vectors.T @ vectors
            self._sum = product if self._sum is None else self._sum + product
            return
        stacked = vectors if self._sum is None else torch.cat([self._sum, vectors])
        _, scales, directions = torch.linalg.svd(stacked, full_matrices=False)
        self._sum = scales[: self._limit, None] * directions[: self._limit]

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors `[d, n]` and eigenvalues `[n]`, ascending, none negative."""
        if self._sum is None:
            raise ValueError("nothing was added")
        if self._limit is None or self._limit >= self._sum.shape[-1]:
            values, vectors = torch.linalg.eigh(self._sum.double())
            return vectors.float(), values.clamp_min(0.0).float()
        norms = self._sum.norm(dim=1)
        kept = norms > 0
        return (self._sum[kept] / norms[kept, None]).T.flip(1), norms[kept].square().flip(0)


@dataclass(frozen=True, slots=True, eq=False)
class KroneckerBlock:
    """F ≈ (U diag(t) Uᵀ) ⊗ (V diag(s) Vᵀ) of one weight `[d_out, d_in]`, zero outside U and V.

    Attributes:
        out_vectors, out_values: U `[d_out, n_out]`, t `[n_out]`, of the gradients.
        in_vectors, in_values: V `[d_in, n_in]`, s `[n_in]`, of the inputs.
    """

    out_vectors: Tensor
    out_values: Tensor
    in_vectors: Tensor
    in_values: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        """Outer product t sᵀ, `[n_out, n_in]`; the others are zero."""
        return torch.outer(self.out_values, self.in_values)

    def covariance(self, jacobian: Tensor, precision: float) -> Tensor:
        """J (F + λ I)⁻¹ Jᵀ for each example.

        Args:
            jacobian: `[C, B, d_out, d_in]`.
            precision: λ, of the prior.

        Returns:
            `[B, C, C]`.
        """
        rotated = self.out_vectors.T @ jacobian @ self.in_vectors  # [C, B, n_out, n_in]
        covariance = _inner(rotated * (self.eigenvalues + precision).rsqrt())
        if rotated.shape[2:] != jacobian.shape[2:]:  # outside U and V only the prior counts
            covariance += (_inner(jacobian) - _inner(rotated)) / precision
        return covariance


_PARTS: Final = ("out_vectors", "out_values", "in_vectors", "in_values")


@dataclass(frozen=True, slots=True, eq=False)
class Curvature:
    """KFAC of all weights of an adapter.

    Attributes:
        blocks: one for each weight, by its name, in the order of `LabelGradients`.
    """

    blocks: dict[str, KroneckerBlock]

    @property
    def eigenvalues(self) -> Tensor:
        """All that may differ from zero, `[n]` float64."""
        return torch.cat([b.eigenvalues.double().flatten() for b in self.blocks.values()])

    def covariance(self, weights: Iterable[WeightRows], precision: float) -> Tensor:
        """J Σ Jᵀ `[B, C, C]`, Σ = (F + λ I)⁻¹ the posterior's covariance."""
        parts = zip(self.blocks.values(), weights, strict=True)
        return sum(
            (block.covariance(rows.jacobian, precision) for block, rows in parts),
            start=torch.zeros(()),
        )

    @property
    def digest(self) -> str:
        """The sha256 over names and values of all factors, hexadecimal."""
        digest = hashlib.sha256()
        for name, tensor in self._tensors():
            digest.update(f"{name}{tuple(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Writes the factors."""
        save_file(dict(self._tensors()), path)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, block in self.blocks.items():
            for part in _PARTS:
                yield f"{name}.{part}", getattr(block, part).cpu().contiguous()

    @classmethod
    def load(cls, path: Path, weights: Sequence[tuple[str, Tensor]]) -> "Curvature":
        """Reads what `save` wrote, for these weights.

        Raises:
            AdapterError: missing, damaged, or of other weights.
        """
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise AdapterError(f"{path} is missing or damaged ({error}): copy it again") from error
        blocks = {}
        for name, weight in weights:
            parts = [tensors.get(f"{name}.{part}") for part in _PARTS]
            found = [part.to(weight.device) for part in parts if part is not None]
            if len(found) < len(_PARTS) or (len(found[0]), len(found[2])) != weight.shape:
                raise AdapterError(f"{path} holds no factors that fit {name}: copy it again")
            blocks[name] = KroneckerBlock(*found)
        return cls(blocks)


class _BlockSum:
    """The two second moments of one weight, while they are summed up."""

    def __init__(self, kfac: Kfac, limit: int | None) -> None:
        self._kfac = kfac
        self._outputs, self._inputs = SecondMoment(limit), SecondMoment(limit)
        self._normaliser = 0.0

    def add(self, rows: WeightRows) -> None:
        if self._kfac == "expand":
            self._inputs.add(rows.inputs[rows.valid])
            self._outputs.add(rows.gradients[:, rows.valid].flatten(0, 1))
            self._normaliser += float(rows.valid.sum())
        else:
            gradient = rows.jacobian  # [C, B, d_out, d_in]
            self._inputs.add(gradient.flatten(0, 2))
            self._outputs.add(gradient.mT.flatten(0, 2))
            self._normaliser += float(gradient.square().sum())

    def block(self) -> KroneckerBlock:
        out_vectors, out_values = self._outputs.eigen()
        in_vectors, in_values = self._inputs.eigen()
        scale = max(self._normaliser, torch.finfo(torch.float32).tiny)
        return KroneckerBlock(out_vectors, out_values, in_vectors, in_values / scale)


def fit_curvature(
    gradients: LabelGradients,
    prompts: Sequence[Prompt],
    *,
    kfac: Kfac = "examples",
    limit: int | None = None,
) -> Curvature:
    """Sums the Fisher information over training examples.

    Args:
        gradients: of the trained adapter.
        prompts: N training examples; their labels do not enter.
        kfac: how the rows of an example enter.
        limit: see `SecondMoment`; None: exact factors.
    """
    sums = {name: _BlockSum(kfac, limit) for name, _ in gradients.weights}
    for batch in in_batches(gradients, prompts):
        _, weights = gradients([prompts[i] for i in batch], fisher_root)
        for block, rows in zip(sums.values(), weights, strict=True):
            block.add(rows)
    return Curvature({name: block.block() for name, block in sums.items()})


def in_batches(gradients: LabelGradients, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Indices of the prompts in batches of similar length that fit both budgets."""
    budget = ROW_BUDGET // (len(gradients.label_ids) - 1)
    order = sorted(range(len(prompts)), key=lambda i: -prompts[i].tokens)
    while order:
        longest = prompts[order[0]]
        size = max(min(budget // gradients.rows(longest), TOKEN_BUDGET // longest.tokens), 1)
        yield order[:size]
        order = order[size:]


def fisher_root(logits: Tensor) -> Tensor:
    """R with Σ_c R_c R_cᵀ = diag(p) − p pᵀ: `[B, K]` → `[K − 1, B, K]`, p the softmax."""
    p = logits.double().softmax(dim=-1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[..., :, None] * p[..., None, :])
    roots: Tensor = (
        vectors * values.clamp_min(0.0).sqrt()[:, None, :]
    )  # [B, K, K], the first column 0
    return roots[..., 1:].permute(2, 0, 1).to(logits.dtype)


def contrasts(labels: int) -> Tensor:
    """An orthonormal basis of the logits' differences, `[K, K − 1]` float64.

    The softmax does not see what all logits have in common.
    """
    index = torch.arange(1, labels, dtype=torch.float64)
    basis = torch.triu(torch.ones(labels, labels - 1, dtype=torch.float64))
    basis[torch.arange(1, labels), torch.arange(labels - 1)] = -index
    return basis / (index * (index + 1)).sqrt()


def along_contrasts(logits: Tensor) -> Tensor:
    """The directions in which all that a softmax sees changes: `[B, K]` → `[K − 1, B, K]`."""
    columns = contrasts(logits.shape[-1]).T.to(logits.device, logits.dtype)
    return columns[:, None].expand(-1, len(logits), -1)


def _inner(jacobian: Tensor) -> Tensor:
    """J Jᵀ of each example: `[C, B, …]` → `[B, C, C]`."""
    flat = jacobian.flatten(2).transpose(0, 1)  # [B, C, d_out · d_in]
    return torch.matmul(flat, flat.mT)


def squared_norm(weights: Iterable[tuple[str, Tensor]]) -> float:
    """‖θ‖²."""
    return math.fsum(float(weight.double().square().sum()) for _, weight in weights)
