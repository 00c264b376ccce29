"""Matrix products of the packed forward: fused, and prepacked for the processor."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalorra.adapter.layer import Updates
from dalorra.base.quantized import is_quantized
from dalorra.posteriors.noise import RankNoise, RowMask


class Product(Protocol):
    """Wx + b of `[B, rows, d_in]`, `[B, rows, d_out]`, and what is done with it in one pass."""

    def __call__(self, x: Tensor) -> Tensor:
        """Wx + b."""

    def silu(self, x: Tensor) -> Tensor:
        """The SiLU of Wx + b."""

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """(Wx + b) · factor, `[B, rows, d_out]`."""

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        """Wx + b + term, `[B, rows, d_out]`, in the precision of the term."""


@dataclass(frozen=True, slots=True, eq=False)
class BaseProjection:
    """The frozen projections of one input, as one product that all adapters share.

    Attributes:
        product: `[B, rows, d_in]` → `[B, rows, Σd_out]`.
        widths: name of each projection in the base model → its d_out, in output order.
        dtype: of its input and output.
    """

    product: Product
    widths: Mapping[str, int]
    dtype: torch.dtype

    @classmethod
    def fuse(
        cls, linears: Mapping[str, nn.Linear], *, prepack: bool, dtype: torch.dtype
    ) -> "BaseProjection":
        """Fuses projections, whose own weights become views of the fused one.

        Quantised ones stay as they are: one product each.

        Args:
            linears: by name, in output order.
            prepack: whether to lay the weight out for the processor, at the cost of a copy.
            dtype: of the model.
        """
        own = list(linears.values())
        widths = {name: linear.out_features for name, linear in linears.items()}
        if is_quantized(own[0].weight):
            return cls(_Apart(own), widths, dtype)
        weight = _fuse_weights(own)
        biases = [cast(Tensor | None, linear.bias) for linear in own]
        bias = torch.cat(cast(list[Tensor], biases)) if biases[0] is not None else None
        product = _Prepacked(weight, bias) if prepack else _Plain(weight, bias)
        return cls(product, widths, dtype)


class AdaptedRows(NamedTuple):
    """Which rows of `[B, rows, d]` an update acts on.

    Attributes:
        first: the rows from here on.
        each: rows after which the noise begins anew; None: it does with every one of the batch.
    """

    first: int = 0
    each: int | None = None

    def of(self, x: Tensor) -> Tensor:
        """`[groups, each, d]`."""
        x = x[:, self.first :]
        return x if self.each is None else x.reshape(-1, self.each, x.shape[-1])


ALL_ROWS: Final = AdaptedRows()


class FusedProjection:
    """Base product and one adapter's update: `[B, rows, d_in]` → `[B, rows, Σd_out]`.

    Args:
        base: shared with other adapters.
        updates: of the whole adapter.
    """

    def __init__(self, base: BaseProjection, updates: Updates) -> None:
        self.base = base.product
        position = {name: i for i, name in enumerate(updates)}
        adapted = [name for name in base.widths if name in updates]
        self.modules = [position[name] for name in adapted]
        if adapted:
            own = [updates[name] for name in adapted]
            self._ranks = [update.down.shape[0] for update in own]
            self._down = torch.cat([update.down for update in own]).to(base.dtype)  # [Σr, d_in]
            blocks = [
                updates[name].up * updates[name].scale
                if name in updates
                else own[0].up.new_zeros((width, 0))
                for name, width in base.widths.items()
            ]
            self._up = torch.block_diag(*blocks).to(base.dtype)  # [Σd_out, Σr]

    @property
    def nbytes(self) -> int:
        """Memory of the update."""
        return self._down.nbytes + self._up.nbytes if self.modules else 0

    def noise(self, noise: Sequence[RankNoise], dtype: torch.dtype) -> RankNoise | None:
        """This projection's part of one `RankNoise` per module, as a single one."""
        own = [noise[i] for i in self.modules]
        if not own:
            return None
        if all(isinstance(n, RowMask) for n in own):
            return RowMask(torch.cat([cast(RowMask, n).mask for n in own], dim=-1).to(dtype))
        ranks = self._ranks

        def each(activations: Tensor, inputs: Tensor) -> Tensor:
            parts = activations.split(ranks, dim=-1)
            return torch.cat([n(a, inputs) for n, a in zip(own, parts, strict=True)], dim=-1)

        return each

    def update(self, x: Tensor, noise: RankNoise) -> Tensor:
        """(α/r) · B · noise(A x): `[B, rows, d_in]` → `[B, rows, Σd_out]`."""
        return F.linear(noise(F.linear(x, self._down), x), self._up)

    def update_for_each(self, x: Tensor, noise: RankNoise, samples: int) -> Tensor:
        """The update under each of M `samples`, `[M · B, …]`, A·x computed once."""
        activations = F.linear(x, self._down).repeat(samples, 1, 1)
        return F.linear(noise(activations, x.repeat(samples, 1, 1)), self._up)

    def __call__(
        self,
        x: Tensor,
        noise: RankNoise | None = None,
        rows: AdaptedRows = ALL_ROWS,
        plus: Tensor | None = None,
    ) -> Tensor:
        """Base product of all rows, with the update on those that have one, and a term."""
        out = self.base(x) if plus is None else self.base.plus(x, plus)
        if noise is not None:
            adapted = out[:, rows.first :]
            adapted += self.update(rows.of(x), noise).view_as(adapted)
        return out


def _fuse_weights(linears: Sequence[nn.Linear]) -> Tensor:
    """One weight `[Σd_out, d_in]`; the linears' own weights become views of it."""
    if len(linears) == 1:
        return linears[0].weight.detach()
    fused = torch.cat([linear.weight.detach() for linear in linears])
    for linear, part in zip(linears, fused.split([m.out_features for m in linears]), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    return fused


def can_prepack(weight: Tensor) -> bool:
    """Whether oneDNN multiplies this weight faster from a layout of its own."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


class _Unfused(ABC):
    """A `Product` that does the rest afterwards."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(self(x), inplace=True)

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        return self(x).mul_(factor)

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        return term + self(x)


class _Plain(_Unfused):
    """By PyTorch's own operation."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)


class _Apart(_Unfused):
    """By modules that bring a product of their own, as quantised ones do."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self._linears = linears

    def __call__(self, x: Tensor) -> Tensor:
        parts = [cast(Tensor, linear(x)) for linear in self._linears]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


class _Prepacked:
    """A `Product` by oneDNN, which does the rest while a block of the product is in the cache."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001 - no other
        self._bias = bias
        self._unary = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
        self._binary = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001

    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, self._unary(x, self._weight, self._bias, "none", [], ""))

    def silu(self, x: Tensor) -> Tensor:
        return cast(Tensor, self._unary(x, self._weight, self._bias, "swish", [], ""))

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        return cast(Tensor, self._binary(x, factor, self._weight, self._bias, "mul"))

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        return term + self(x)
