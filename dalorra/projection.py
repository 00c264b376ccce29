"""Matrix products of the packed forward: fused, and prepacked for the processor."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalorra.stochastic_lora import RankNoise, RowMask, StochasticLoraLinear

Product = Callable[[Tensor], Tensor]


class FusedProjection:
    """Projections of one input, base and update, as one: `[B, rows, d_in]` → `[B, rows, Σd_out]`.

    Args:
        members: base linears or stochastic layers, in output order.
        index: stochastic layer → its position among the adapted modules.
        prepack: whether to lay the weight out for the processor, at the cost of a copy.
    """

    def __init__(
        self, members: Sequence[nn.Module], index: dict[nn.Module, int], *, prepack: bool
    ) -> None:
        bases = [
            cast(nn.Linear, m.base_layer if isinstance(m, StochasticLoraLinear) else m)
            for m in members
        ]
        weight = _fuse_weights(bases)
        biases = [cast(Tensor | None, base.bias) for base in bases]
        bias = torch.cat(cast(list[Tensor], biases)) if biases[0] is not None else None
        self.base = _prepacked(weight, bias) if prepack else lambda x: F.linear(x, weight, bias)
        adapted = [m for m in members if isinstance(m, StochasticLoraLinear)]
        self.modules = [index[m] for m in adapted]
        if adapted:
            self._ranks = [m.down.shape[0] for m in adapted]
            self._down = torch.cat([m.down for m in adapted]).to(weight.dtype)  # [Σr, d_in]
            blocks = [
                m.up * m.scale
                if isinstance(m, StochasticLoraLinear)
                else weight.new_zeros((base.out_features, 0), dtype=torch.float32)
                for m, base in zip(members, bases, strict=True)
            ]
            self._up = torch.block_diag(*blocks).to(weight.dtype)  # [Σd_out, Σr]

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

    def update_for_each(self, x: Tensor, noise: RankNoise, copies: int) -> Tensor:
        """The update of `[B, rows, d_in]` under `copies` samples each, A·x computed once."""
        activations = F.linear(x, self._down).repeat_interleave(copies, dim=0)
        inputs = x.repeat_interleave(copies, dim=0)
        return F.linear(noise(activations, inputs), self._up)

    def __call__(self, x: Tensor, noise: RankNoise | None = None, first: int = 0) -> Tensor:
        """Base product of all rows, with the update on the rows from `first` on."""
        out = self.base(x)
        if noise is not None:
            out[:, first:] += self.update(x[:, first:], noise)
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


def _prepacked(weight: Tensor, bias: Tensor | None) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001 - no public name

    def product(x: Tensor) -> Tensor:
        return cast(
            Tensor,
            torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""),  # noqa: SLF001
        )

    return product
