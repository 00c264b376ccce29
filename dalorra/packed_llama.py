"""A Llama arranged for packed rows: the network of transformers in fewer, larger operations.

`label_logits` returns what `forward.answer_logits`, its reference, returns; nothing is
approximated. What differs is the order of the work:

- projections that read the same input are one product, and so are their down-projections A;
- A·x and B act on the rows that carry a sample, never on the frozen prompt;
- prompts are padded on the right, so prompt rows attend causally without a mask; cue rows attend
  to the prompt and to their own copy;
- under `all_tokens`, everything below the first stochastic product runs once for all samples;
- in the last layer only the row that ends a cue has a query, an output and an MLP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dalorra.attention import causal_attention, masked_attention
from dalorra.bank import NoiseBank
from dalorra.bound_noise import BoundNoise, Noise
from dalorra.cue_layout import CueLayout, lay_out_cues, right_padded
from dalorra.label_head import LabelHead
from dalorra.packing import Scope
from dalorra.prefix_cache import PrefixCache
from dalorra.projection import FusedProjection, can_prepack
from dalorra.prompts import Prompt
from dalorra.stochastic_lora import (
    StochasticPeftModel,
    stochastic_layers,
)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Parts of one decoder layer; the last one has its query apart from key and value."""

    input_norm: Tensor
    attention: tuple[FusedProjection, ...]
    output: FusedProjection
    mlp_norm: Tensor
    gate_up: FusedProjection
    down: FusedProjection

    @property
    def projections(self) -> tuple[FusedProjection, ...]:
        """In order of use."""
        return (*self.attention, self.output, self.gate_up, self.down)


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """What a forward of B prompts under M samples computed.

    Attributes:
        answers: at the end of the cue, after the final norm: `[B, M, d]`.
        prompt_end: at the end of the prompt, where the last layer reads it: `[B, d]`; under
            `all_tokens` its mean over the M samples. Of no meaning for an empty prompt.
    """

    answers: Tensor
    prompt_end: Tensor


class PackedLlama:
    """The packed forward of one adapter on its base.

    Args:
        model: LlamaForCausalLM with the adapter attached, in evaluation mode. Its projections
            become views of fused weights; their values stay.
        label_ids: `[K]` token ids of the labels.
        prefix_cache: keys and values of prompts under `answer_tokens`, reused when given.
    """

    def __init__(
        self,
        model: StochasticPeftModel,
        label_ids: Tensor,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        causal_lm = cast(Any, model.get_base_model())
        config = causal_lm.config
        self._trunk = causal_lm.model
        self.head = LabelHead(causal_lm.lm_head, label_ids)
        self._label_ids = label_ids
        self._prefix_cache = prefix_cache
        self._eps = float(config.rms_norm_eps)
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        self._width = int(self._trunk.layers[0].self_attn.head_dim)
        modules = list(stochastic_layers(model).values())
        index: dict[Any, int] = {module: i for i, module in enumerate(modules)}
        last = len(self._trunk.layers) - 1
        prepack = can_prepack(self._trunk.embed_tokens.weight)
        with torch.no_grad():
            self._layers = [
                _arrange(layer, index, prepack, separate_query=i == last)
                for i, layer in enumerate(self._trunk.layers)
            ]
        self._noise = BoundNoise(
            [layer.projections for layer in self._layers], self._trunk.embed_tokens.weight
        )

    @torch.inference_mode()
    def label_logits(
        self, prompts: Sequence[Prompt], members: range, bank: NoiseBank, scope: Scope
    ) -> Tensor:
        """Logits of the label tokens, `[B, M, K]` float32, every module under one sample."""
        states = self.hidden_states(prompts, members, bank, scope)
        return self.head.logits(states.answers, members, bank)

    @torch.inference_mode()
    def hidden_states(
        self, prompts: Sequence[Prompt], members: range, bank: NoiseBank, scope: Scope
    ) -> HiddenStates:
        """Runs the network up to its output projection."""
        run = self._answer_tokens if scope == "answer_tokens" else self._all_tokens
        answers, prompt_end = run(prompts, members, bank)
        return HiddenStates(self._norm(answers, self._trunk.norm.weight), prompt_end)

    def _answer_tokens(
        self, prompts: Sequence[Prompt], members: range, bank: NoiseBank
    ) -> tuple[Tensor, Tensor]:
        """`[prompt | cue under z_1 | … | cue under z_M]` per prompt → `[B, M, d]`, `[B, d]`."""
        copies, k = len(members), len(prompts[0].cue_ids)
        rows, answers = self._noise.for_cues(bank, members, k)
        first = _first_stochastic([*rows, answers])
        prefix = (
            self._prefix_cache.find([p.prompt_ids for p in prompts]) if self._prefix_cache else None
        )
        known = prefix.lengths if prefix else [0] * len(prompts)
        layout = lay_out_cues(prompts, copies, self._rotary, self._label_ids.device, known)
        below = layout.one_copy()  # the copies are equal below the first stochastic product
        past = prefix.keys_values.unbind() if prefix else [None] * len(self._layers)
        seen: list[Tensor] = []  # keys and values of the prompt rows, for the cache
        x = self._trunk.embed_tokens(below.input_ids)  # [B, P + k, d]
        for i, (layer, noise) in enumerate(zip(self._layers[:-1], rows, strict=True)):
            if i == first:
                x = layout.branch(x)
            at = layout if i >= first else below
            x = self._packed_layer(layer, x, at, noise, past[i], seen)
        if first == len(rows):
            x = layout.branch(x)
        at = layout if first <= len(rows) else below
        ends = torch.tensor(
            [max(len(p.prompt_ids) - c, 1) - 1 for p, c in zip(prompts, known, strict=True)]
        )
        prompt_end = x[torch.arange(len(prompts)), ends]
        x = self._packed_end(x, at, answers, past[-1], seen)
        if self._prefix_cache:
            self._prefix_cache.add([p.prompt_ids for p in prompts], known, torch.stack(seen))
        return x.expand(-1, copies, -1), prompt_end

    def _packed_layer(
        self,
        layer: _Layer,
        x: Tensor,
        layout: CueLayout,
        noise: Noise,
        past: Tensor | None,
        seen: list[Tensor],
    ) -> Tensor:
        """One layer for prompt rows and cue rows; `past` is `[2, B, kv_heads, C, head_dim]`."""
        start = layout.prompt_rows
        h = self._norm(x, layer.input_norm)
        qkv = layer.attention[0](h, noise[0], start)
        query, key, value = self._split(qkv, layout.cos, layout.sin)
        self._record(seen, key, value, start)
        key, value = _after(past, key, value)
        attended = masked_attention(query[:, :, start:], key, value, layout.visible)
        if start:
            before = query[:, :, :start]
            keys = layout.prefix_keys + start
            key, value = key[:, :, :keys], value[:, :, :keys]
            visible = layout.visible_to_prompt
            prompt = (
                causal_attention(before, key, value)
                if visible is None
                else masked_attention(before, key, value, visible)
            )
            attended = torch.cat([prompt, attended], dim=2)
        return self._finish(layer, x, attended, noise[1:], start)

    def _packed_end(
        self,
        x: Tensor,
        layout: CueLayout,
        noise: Noise,
        past: Tensor | None,
        seen: list[Tensor],
    ) -> Tensor:
        """The last layer, for the rows that end a cue alone: `[B, copies, d]`."""
        layer, start = self._layers[-1], layout.prompt_rows
        ends = layout.ends
        h = self._norm(x, layer.input_norm)
        query = self._heads_of(layer.attention[0](h[:, ends], noise[0]))
        query = _rotate(query, layout.cos[:, :, ends], layout.sin[:, :, ends])
        key, value = self._key_value(layer.attention[1](h, noise[1], start), layout.cos, layout.sin)
        self._record(seen, key, value, start)
        key, value = _after(past, key, value)
        attended = masked_attention(query, key, value, layout.visible[:, :, ends - start])
        return self._finish(layer, x[:, ends], attended, noise[2:])

    def _record(self, seen: list[Tensor], key: Tensor, value: Tensor, prompt_rows: int) -> None:
        if self._prefix_cache:
            seen.append(torch.stack([key[:, :, :prompt_rows], value[:, :, :prompt_rows]]))

    def _all_tokens(
        self, prompts: Sequence[Prompt], members: range, bank: NoiseBank
    ) -> tuple[Tensor, Tensor]:
        """M sequences per prompt above the first stochastic product, one below.

        Returns:
            `[B, M, d]` and `[B, d]`.
        """
        device, copies = self._label_ids.device, len(members)
        input_ids, lengths = right_padded([(*p.prompt_ids, *p.cue_ids) for p in prompts])
        batch, longest = input_ids.shape  # T
        x = self._trunk.embed_tokens(input_ids.to(device))  # [B, T, d]
        cos, sin = self._rotary(torch.arange(longest, device=device)[None])
        rows = self._noise.for_sequences(bank, members, batch)
        first = _first_stochastic(rows)
        for i, (layer, noise) in enumerate(zip(self._layers[:-1], rows, strict=False)):
            h = self._norm(x, layer.input_norm)
            if i == first:
                # W₀x and A·x are the same under every sample, the update is not.
                out = _for_each(layer.attention[0].base(h), copies)
                if noise[0] is not None:
                    out += layer.attention[0].update_for_each(h, noise[0], copies)
                x = _for_each(x, copies)
            else:
                out = layer.attention[0](h, noise[0])
            query, key, value = self._split(out, cos, sin)
            x = self._finish(layer, x, causal_attention(query, key, value), noise[1:])
        if first >= len(self._layers) - 1:
            x = _for_each(x, copies)

        layer, noise = self._layers[-1], rows[-1]
        ends = (lengths - 1).to(device).repeat_interleave(copies)  # [B·M]
        sequence = torch.arange(batch * copies, device=device)
        prompt_ends = (ends - len(prompts[0].cue_ids)).clamp_min(0)
        prompt_end = x[sequence, prompt_ends].view(batch, copies, -1).mean(dim=1)
        h = self._norm(x, layer.input_norm)
        query = self._heads_of(layer.attention[0](h[sequence, ends][:, None], noise[0]))
        query = _rotate(query, cos[0, 0, ends][:, None, None], sin[0, 0, ends][:, None, None])
        key, value = self._key_value(layer.attention[1](h, noise[1]), cos, sin)
        real = torch.arange(longest, device=device) <= ends[:, None]  # [B·M, T]
        attended = masked_attention(query, key, value, real[:, None, None])
        out = self._finish(layer, x[sequence, ends][:, None], attended, noise[2:])
        return out.view(batch, copies, -1), prompt_end

    def _finish(
        self, layer: _Layer, x: Tensor, attended: Tensor, noise: Noise, first: int = 0
    ) -> Tensor:
        """Output projection and MLP with their residuals; `attended` is `[B, heads, rows, w]`."""
        attended = attended.transpose(1, 2).flatten(2)  # [B, rows, heads · head_dim]
        x = x + layer.output(attended, noise[0], first)
        h = self._norm(x, layer.mlp_norm)
        gate, up = layer.gate_up(h, noise[1], first).chunk(2, dim=-1)
        return x + layer.down(F.silu(gate).mul_(up), noise[2], first)

    def _split(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, rows, (heads + 2 kv_heads) · w]` → rotated query, rotated key, value."""
        heads = self._heads_of(qkv)
        rotated = _rotate(heads[:, : self._heads + self._kv_heads], cos, sin)
        return (
            rotated[:, : self._heads],
            rotated[:, self._heads :],
            heads[:, self._heads + self._kv_heads :],
        )

    def _key_value(self, kv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, rows, 2 kv_heads · w]` → rotated key, value."""
        key, value = self._heads_of(kv).chunk(2, dim=1)
        return _rotate(key, cos, sin), value

    def _heads_of(self, x: Tensor) -> Tensor:
        """`[B, rows, n · head_dim]` → `[B, n, rows, head_dim]`."""
        heads: Tensor = x.unflatten(-1, (-1, self._width))
        return heads.transpose(1, 2)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self._eps)

    def _rotary(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, `[B or 1, 1, rows, head_dim]`, in the model's precision."""
        cos, sin = self._trunk.rotary_emb(self._trunk.embed_tokens.weight, position_ids)
        return cos[:, None], sin[:, None]


def _after(past: Tensor | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a known prefix `[2, B, kv_heads, C, head_dim]` and of the rows."""
    if past is None:
        return key, value
    return torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)


def _first_stochastic(rows: Sequence[Noise]) -> int:
    """The first layer with a stochastic product; the number of layers when there is none."""
    noisy = (i for i, noise in enumerate(rows) if any(n is not None for n in noise))
    return next(noisy, len(rows))


def _arrange(layer: Any, index: dict[Any, int], prepack: bool, *, separate_query: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp

    def fused(*members: Any) -> FusedProjection:
        return FusedProjection(members, index, prepack=prepack)

    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    return _Layer(
        input_norm=layer.input_layernorm.weight,
        attention=(fused(q), fused(k, v)) if separate_query else (fused(q, k, v),),
        output=fused(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=fused(mlp.gate_proj, mlp.up_proj),
        down=fused(mlp.down_proj),
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of `[B, n, rows, head_dim]`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _for_each(x: Tensor, copies: int) -> Tensor:
    """`[B, …]` → `[B · copies, …]`, copies inner."""
    return x.repeat_interleave(copies, dim=0)
