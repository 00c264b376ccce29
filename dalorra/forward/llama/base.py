"""The frozen network, arranged once for the packed forwards of any number of adapters.

Fused and prepacked weights, and the keys and values of known prompts, belong to the base model
alone; an adapter adds its own A and B (`FusedProjection`) and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalorra.adapter.layer import StochasticLoraLinear, Updates
from dalorra.base.families import family_of, head_width
from dalorra.base.quantized import bits_of
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.llama.projection import (
    ALL_ROWS,
    AdaptedRows,
    BaseProjection,
    FusedProjection,
    can_prepack,
)
from dalorra.forward.llama.staging import Recorder
from dalorra.posteriors.noise import RankNoise

P = TypeVar("P")
Q = TypeVar("Q")


@dataclass(frozen=True, slots=True)
class Layer(Generic[P]):
    """Parts of one decoder layer; the last one has its query apart from key and value.

    Attributes:
        input_norm, mlp_norm: weights `[d]` float32.
        head_norms: of the heads of query and key, `[heads + kv_heads, 1, w]` float32; None where
            they have none.
        attention: query, key and value: one projection, or two in the last layer.
        output, gate, up, down: the other projections.
    """

    input_norm: Tensor
    head_norms: Tensor | None
    attention: tuple[P, ...]
    output: P
    mlp_norm: Tensor
    gate: P
    up: P
    down: P

    @property
    def projections(self) -> tuple[P, ...]:
        """In order of use."""
        return (*self.attention, self.output, self.gate, self.up, self.down)

    def map(self, change: Callable[[P], Q]) -> "Layer[Q]":
        """The same layer with every projection changed."""
        return Layer(
            input_norm=self.input_norm,
            head_norms=self.head_norms,
            attention=tuple(change(projection) for projection in self.attention),
            output=change(self.output),
            mlp_norm=self.mlp_norm,
            gate=change(self.gate),
            up=change(self.up),
            down=change(self.down),
        )


AdaptedLayer = Layer[FusedProjection]
"""Of one adapter's forward."""


def nbytes_of(layers: Sequence[AdaptedLayer]) -> int:
    """Memory of an adapter's updates."""
    return sum(projection.nbytes for layer in layers for projection in layer.projections)


class ArrangedLlama:
    """A base model arranged for packed rows.

    Args:
        causal_lm: of one of `families.LANGUAGE_MODELS`, in evaluation mode; an adapter that is
            attached to it is left out. Its projections become views of fused weights, where they
            are not quantised; their values stay.
        prefix_cache: keys and values of prompts under `answer_tokens`, reused when given.
        record: of short forwards, for `RecordedNetwork`; None: none is recorded.

    Attributes:
        thirds: after how many layers one third and two thirds of them are done.
        bits: how the projections are quantised; None: they are not.
    """

    def __init__(
        self,
        causal_lm: nn.Module,
        prefix_cache: PrefixCache | None = None,
        record: Recorder | None = None,
    ) -> None:
        model = cast(Any, causal_lm)
        config, trunk = model.config, model.model
        self.prefix_cache = prefix_cache
        self.record = record
        self.bits = bits_of(causal_lm)
        self.layer_weights = sum(p.numel() for p in trunk.layers[0].parameters())
        self._embedding = trunk.embed_tokens
        self.head_weight = _base(model.lm_head).weight.detach()  # [vocabulary, d]
        self._final_norm = trunk.norm.weight.detach().float()
        self._rotary_embedding = trunk.rotary_emb
        self._eps = float(config.rms_norm_eps)
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        self._width = head_width(causal_lm)
        count, last = len(trunk.layers), len(trunk.layers) - 1
        self.thirds = {-(-count // 3), -(-2 * count // 3)}
        prepack, normed = can_prepack(self.head_weight), family_of(causal_lm).head_norms
        with torch.no_grad():
            self.layers = [
                _arrange(
                    layer,
                    f"model.layers.{i}",
                    prepack=prepack,
                    dtype=self.dtype,
                    separate_query=i == last,
                    head_norms=self._head_norms(layer) if normed else None,
                )
                for i, layer in enumerate(trunk.layers)
            ]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head_weight.device

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.head_weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """What they are stored in."""
        return self.head_weight.dtype

    def adapted(self, updates: Updates) -> list[AdaptedLayer]:
        """The layers with an adapter's updates."""
        return [
            layer.map(lambda projection: FusedProjection(projection, updates))
            for layer in self.layers
        ]

    def room_for(self, tokens: int) -> Tensor:
        """Where keys and values of one sequence go, `[layers, 2, 1, kv_heads, tokens, head_dim]`.

        Args:
            tokens: of the sequence.
        """
        shape = (len(self.layers), 2, 1, self._kv_heads, tokens, self._width)
        return self.head_weight.new_empty(shape)

    def embed(self, input_ids: Tensor) -> Tensor:
        """The head of the residual stream, `[B, rows, d]` float32."""
        embedded: Tensor = self._embedding(input_ids)
        return embedded.float()

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMS norm of the residual stream, in the model's precision."""
        return F.rms_norm(x, (x.shape[-1],), weight, self._eps).to(self.dtype)

    def final_norm(self, x: Tensor) -> Tensor:
        """RMS norm at the end of the residual stream, float32."""
        return F.rms_norm(x, (x.shape[-1],), self._final_norm, self._eps)

    def rotary(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, `[B or 1, 1, rows, head_dim]`, in the model's precision."""
        cos, sin = self._rotary_embedding(self.head_weight, position_ids)
        return cos[:, None], sin[:, None]

    def query(self, layer: AdaptedLayer, q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`[B, rows, heads · w]` → rotated query, `[B, heads, rows, w]`."""
        return self._placed(layer, self._heads_of(q), 0, cos, sin)

    def key_value(
        self, layer: AdaptedLayer, kv: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`[B, rows, 2 kv_heads · w]` → rotated key, value."""
        key, value = self._heads_of(kv).chunk(2, dim=1)
        return self._placed(layer, key, self._heads, cos, sin), value

    def query_key_value(
        self, layer: AdaptedLayer, qkv: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, rows, (heads + 2 kv_heads) · w]` → rotated query, rotated key, value."""
        heads = self._heads_of(qkv)
        placed = self._placed(layer, heads[:, : self._heads + self._kv_heads], 0, cos, sin)
        return (
            placed[:, : self._heads],
            placed[:, self._heads :],
            heads[:, self._heads + self._kv_heads :],
        )

    def after_attention(
        self,
        layer: AdaptedLayer,
        x: Tensor,
        attended: Tensor,
        noise: Sequence[RankNoise | None],
        rows: AdaptedRows = ALL_ROWS,
    ) -> Tensor:
        """Output projection and MLP with their residuals, `[B, rows, d]`.

        Args:
            layer: of an adapter's forward.
            x: `[B, rows, d]`, what went into the layer.
            attended: `[B, rows, heads · head_dim]`.
            noise: of output, gate, up and down.
            rows: that the noise acts on.
        """
        x = layer.output(attended, noise[0], rows, plus=x)
        h = self.norm(x, layer.mlp_norm)
        if noise[1] is None and noise[2] is None:
            h = layer.up.base.times(h, layer.gate.base.silu(h))
        else:
            h = F.silu(layer.gate(h, noise[1], rows)) * layer.up(h, noise[2], rows)
        return layer.down(h, noise[3], rows, plus=x)

    def _placed(
        self, layer: AdaptedLayer, x: Tensor, first: int, cos: Tensor, sin: Tensor
    ) -> Tensor:
        """Heads from the `first` on, normed where the family does so, and rotated."""
        if layer.head_norms is not None:
            weight = layer.head_norms[first : first + x.shape[1]]
            x = (F.rms_norm(x.float(), (self._width,), eps=self._eps) * weight).to(x.dtype)
        return _rotate(x, cos, sin)

    def _head_norms(self, layer: Any) -> Tensor:
        """See `Layer`."""
        query, key = (
            norm.weight.float() for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm)
        )
        return torch.cat([query.repeat(self._heads, 1, 1), key.repeat(self._kv_heads, 1, 1)])

    def _heads_of(self, x: Tensor) -> Tensor:
        """`[B, rows, n · head_dim]` → `[B, n, rows, head_dim]`."""
        heads: Tensor = x.unflatten(-1, (-1, self._width))
        return heads.transpose(1, 2)


def _arrange(
    layer: Any,
    name: str,
    *,
    prepack: bool,
    dtype: torch.dtype,
    separate_query: bool,
    head_norms: Tensor | None,
) -> Layer[BaseProjection]:
    def fused(*parts: str) -> BaseProjection:
        linears = {f"{name}.{part}": _base(layer.get_submodule(part)) for part in parts}
        return BaseProjection.fuse(linears, prepack=prepack, dtype=dtype)

    q, k, v = (f"self_attn.{part}_proj" for part in "qkv")
    return Layer(
        input_norm=layer.input_layernorm.weight.detach().float(),
        head_norms=head_norms,
        attention=(fused(q), fused(k, v)) if separate_query else (fused(q, k, v),),
        output=fused("self_attn.o_proj"),
        mlp_norm=layer.post_attention_layernorm.weight.detach().float(),
        gate=fused("mlp.gate_proj"),
        up=fused("mlp.up_proj"),
        down=fused("mlp.down_proj"),
    )


def _base(linear: nn.Module) -> nn.Linear:
    """A projection without the adapter that may be attached to it."""
    return cast(
        nn.Linear, linear.base_layer if isinstance(linear, StochasticLoraLinear) else linear
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of `[B, n, rows, head_dim]`."""
    first, second = x.chunk(2, dim=-1)
    sin_first, sin_second = sin.chunk(2, dim=-1)
    rotated = x * cos
    rotated_first, rotated_second = rotated.chunk(2, dim=-1)
    rotated_first.addcmul_(second, sin_first, value=-1)
    rotated_second.addcmul_(first, sin_second)
    return rotated
