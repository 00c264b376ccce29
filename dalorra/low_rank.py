"""The update of one adapted module, apart from the model that it was read from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from dalorra.stochastic_lora import stochastic_layers

HEAD: Final = "lm_head"
"""Name of the output projection."""


@dataclass(frozen=True, slots=True, eq=False)
class LowRankUpdate:
    """(α/r) · B · noise(A x).

    Attributes:
        down: A, `[r, d_in]`.
        up: B, `[d_out, r]`.
        scale: α/r.
    """

    down: Tensor
    up: Tensor
    scale: float


Updates = Mapping[str, LowRankUpdate]
"""An adapter's updates by the module's name in the base model, in model order (head last)."""


def low_rank_updates(model: nn.Module) -> Updates:
    """The updates of an attached adapter, as they are now; the tensors are the model's own."""
    return {
        name: LowRankUpdate(layer.down.detach(), layer.up.detach(), layer.scale)
        for name, layer in stochastic_layers(model).items()
    }
