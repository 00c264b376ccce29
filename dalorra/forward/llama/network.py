"""A Llama arranged for packed rows: the network of transformers in fewer, larger operations.

`label_logits` returns what its reference `forward.answer_logits` does, in another order of work:

- projections that read the same input are one product, and so are their down-projections A;
- A·x and B act on the rows that carry a sample, never on the frozen prompt;
- prompts of several lengths are joined without padding, but for attention (`Slots`); there
  they are padded on the right, so prompt rows attend causally without a mask; the rows of a cue,
  and of a trie behind it, attend to the prompt and to their own ancestors;
- under `all_tokens`, everything below the first stochastic product runs once for all samples;
- in the last layer only the rows that labels are read off, at the end of a cue and in a trie, have
  a query, an output and an MLP.

A sequence that is too long for one forward is read in pieces, each of which attends to the keys and
values of those before it: under `answer_tokens` the prompt, by the frozen base, once for all
samples, and then the tails run behind it; under `all_tokens` prompt and tail, under one sample
after the other.
"""

from collections.abc import Sequence
from copy import copy
from itertools import repeat

import torch
from torch import Tensor, nn

from dalorra.adapter.layer import HEAD, Updates
from dalorra.forward.batches import sample_groups
from dalorra.forward.llama.attention import by_row, causal_attention, masked_attention
from dalorra.forward.llama.base import AdaptedLayer, ArrangedLlama, nbytes_of
from dalorra.forward.llama.bound_noise import BoundNoise, ForwardNoise, Noise
from dalorra.forward.llama.layout import CueLayout, SequenceLayout, lay_out_cues
from dalorra.forward.llama.staging import StagedPrompts
from dalorra.forward.llama.trie_head import head_of
from dalorra.forward.network import Answers
from dalorra.labels import Labels
from dalorra.posteriors.bank import NoiseBank
from dalorra.prompts import Prompt, Scope


class PackedLlama:
    """The packed forward of one adapter on its base, under one bank.

    Args:
        base: shared with other adapters.
        updates: the adapter's, copied in the base's precision.
        labels: where they are read off; token ids are on the base's device.
        bank: what it runs under.
        scope: which rows the adapter acts on.
        class_head: what labels are read off in place of the base's output projection.

    Attributes:
        noise: of the bank, arranged for the forwards.
    """

    pads = False

    def __init__(
        self,
        base: ArrangedLlama,
        updates: Updates,
        labels: Labels,
        bank: NoiseBank,
        scope: Scope,
        class_head: nn.Linear | None = None,
    ) -> None:
        self._base = base
        output = base.head_weight if class_head is None else class_head.weight.detach()
        self.head = head_of(output, updates.get(HEAD), labels)
        self._layers = base.adapted(updates)
        self.scope = scope
        self.noise = self._bound(bank)

    @property
    def bank(self) -> NoiseBank:
        """See `Network`."""
        return self.noise.bank

    @property
    def nbytes(self) -> int:
        """Memory of the adapter's updates."""
        return self.head.nbytes + nbytes_of(self._layers)

    def under(self, bank: NoiseBank) -> "PackedLlama":
        """See `Network`."""
        other = copy(self)
        other.noise = self._bound(bank)
        return other

    def _bound(self, bank: NoiseBank) -> BoundNoise:
        layers = [layer.projections for layer in self._layers]
        head = self.head
        return BoundNoise(bank, self.scope, layers, head, self._base.head_weight, head.rows)

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Prompt], samples: range) -> Answers:
        """See `Network`; the features are the hidden states at the end of the cue after each third
        of the layers, the last one after the final norm.
        """
        return self._answers(*self._states(prompts, samples), self._noise(prompts, samples))

    @torch.inference_mode()
    def label_logits(self, prompts: Sequence[Prompt], samples: range) -> Tensor:
        """See `Network`."""
        return self.head.logits(self.hidden_states(prompts, samples), samples, self.bank)

    @torch.inference_mode()
    def hidden_states(self, prompts: Sequence[Prompt], samples: range) -> Tensor:
        """What the label head reads, after the final norm, `[B, M, A, d]`.

        The first of the A rows ends the cue, the others are those of the trie.
        """
        return self._normed(self._states(prompts, samples)[0])

    def _states(self, prompts: Sequence[Prompt], samples: range) -> tuple[Tensor, list[Tensor]]:
        """What is read off after all layers, `[B, M, A, d]`, and the states at the end of the cue
        after each third of them before that, `[B, M, d]` each.
        """
        noise = self._noise(prompts, samples)
        cache = self._base.prefix_cache
        if self.scope == "all_tokens":
            return self._all_tokens(self._staged(prompts), noise)
        prompt_ids = [prompt.prompt_ids for prompt in prompts]
        prefix = cache.find(prompt_ids) if cache else None
        known = prefix.lengths if prefix else [0] * len(prompts)
        staged = self._staged(prompts, known)
        past = prefix.keys_values if prefix else None
        fresh: list[Tensor] = []  # keys and values of the prompt rows
        found = self._answer_tokens(staged, noise, past, fresh if cache else None)
        if cache:
            cache.add(prompt_ids, known, torch.stack(fresh))
        return found

    @torch.inference_mode()
    def in_pieces(self, prompt: Prompt, samples: range, budget: int) -> Answers:
        """See `Network`; a tail is never cut, but for a cue alone under `all_tokens`."""
        past, known, rows = None, 0, len(prompt.prompt_ids) + prompt.tail_rows
        if self.scope == "answer_tokens":
            past, known = self._read(prompt, samples, budget), len(prompt.prompt_ids)
            rows -= known
        staged, parts = self._staged([prompt], [known]), []
        for group in sample_groups(samples, rows, budget):
            noise = self._noise([prompt], group)
            if past is None:
                found = self._sequence(staged, noise, budget // len(group))
            else:
                found = self._answer_tokens(staged, noise, past)
            parts.append(self._answers(*found, noise))
        return Answers.joined(parts)

    def _read(self, prompt: Prompt, samples: range, budget: int) -> Tensor:
        """Keys and values of a prompt under the frozen base, see `room_for`."""
        cache, ids = self._base.prefix_cache, prompt.prompt_ids
        read = self._base.room_for(len(ids))
        if not ids:
            return read
        prefix = cache.find([ids]) if cache else None
        known = prefix.lengths[0] if prefix else 0
        if prefix:
            read[..., :known, :] = prefix.keys_values
        rest = self._staged([Prompt(ids[known:], ())])
        self._sequence(rest, self._noise([prompt], samples).none, budget, read, known)
        if cache:
            cache.add([ids], [known], read[..., known:, :])
        return read

    def _sequence(
        self,
        prompts: StagedPrompts,
        noise: ForwardNoise,
        tokens: int,
        read: Tensor | None = None,
        known: int = 0,
    ) -> tuple[Tensor, list[Tensor]]:
        """`_all_tokens` in pieces of so many tokens, of one prompt.

        Args:
            prompts: what is not read yet.
            noise: of one sample, if there is more than one piece.
            tokens: of a piece.
            read: keys and values that are known, and room for the others.
            known: how many are.
        """
        if read is None and tokens >= prompts.longest:
            return self._all_tokens(prompts, noise)
        read = self._base.room_for(prompts.longest) if read is None else read
        *before, last = prompts.pieces(tokens)
        for piece in before:
            self._all_tokens(piece, noise, read, known)
            known += piece.longest
        return self._all_tokens(last, noise, read, known)

    @torch.inference_mode()
    def staged_answers(self, prompts: StagedPrompts, noise: ForwardNoise) -> Answers:
        """`answers` to prompts on the device, in a form that can be recorded: no prefix cache."""
        run = self._answer_tokens if self.scope == "answer_tokens" else self._all_tokens
        return self._answers(*run(prompts, noise), noise)

    def _noise(self, prompts: Sequence[Prompt], samples: range) -> ForwardNoise:
        return self.noise.of(samples, prompts[0].tail_rows)

    def _staged(
        self, prompts: Sequence[Prompt], known: Sequence[int] | None = None
    ) -> StagedPrompts:
        """On the device; prompts of one length need no padding."""
        lengths = {p.tokens - n for p, n in zip(prompts, known or repeat(0), strict=False)}
        staged = StagedPrompts.of(prompts, self.scope, known, joined=len(lengths) > 1)
        return staged.to(self._base.device)

    def _answers(self, states: Tensor, thirds: list[Tensor], noise: ForwardNoise) -> Answers:
        states = self._normed(states)
        probabilities = self.head.probabilities(states, noise.head)
        features = torch.stack([*thirds, states[:, :, 0]], dim=2).float()
        return Answers(probabilities, noise.head.weights, features)

    def _normed(self, states: Tensor) -> Tensor:
        return self._base.final_norm(states)

    def _answer_tokens(
        self,
        prompts: StagedPrompts,
        noise: ForwardNoise,
        past: Tensor | None = None,
        fresh: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """`[prompt | tail under z_1 | … | tail under z_M]` per prompt → as `_states` returns them.

        Args:
            prompts: on the device.
            noise: of the tails.
            past: keys and values of known prefixes, `[layers, 2, B, kv_heads, C, head_dim]`.
            fresh: gets those of the prompt rows, layer by layer.
        """
        samples, first, last = noise.samples, noise.first, len(self._layers) - 1
        known = [None] * len(self._layers) if past is None else past.unbind()
        prefix = 0 if past is None else past.shape[-2]
        answers = prompts.answers
        layout = at = lay_out_cues(prompts, samples, prefix, self._base.rotary)
        if first:  # below the first stochastic product the tail is the same under every sample
            at = lay_out_cues(prompts, 1, prefix, self._base.rotary)
        x = self._base.embed(at.input_ids)  # [B, P + t, d]
        thirds: list[Tensor] = []
        for i, layer in enumerate(self._layers):
            if i == first and i:
                x, at = at.branch(x, samples), layout
            if i < last:
                x = self._packed_layer(layer, x, at, noise.layers[i], known[i], fresh)
                if i + 1 in self._base.thirds:
                    cue_ends = at.ends[:, ::answers]
                    thirds.append(x.flatten(0, 1)[cue_ends].expand(-1, samples, -1))
        x = self._packed_end(x, at, noise.layers[-1], known[-1], fresh)
        states: Tensor = x.unflatten(1, (-1, answers))
        return states.expand(-1, samples, -1, -1), thirds

    def _packed_layer(
        self,
        layer: AdaptedLayer,
        x: Tensor,
        layout: CueLayout,
        noise: Noise,
        past: Tensor | None,
        fresh: list[Tensor] | None,
    ) -> Tensor:
        """One layer for prompt rows and tails; `past` is `[2, B, kv_heads, C, head_dim]`."""
        start = layout.prompt_slots
        h = self._base.norm(x, layer.input_norm)
        qkv = layout.spread(layer.attention[0](h, noise[0], layout.tails))
        query, key, value = self._base.query_key_value(layer, qkv, layout.cos, layout.sin)
        _keep(fresh, key, value, start)
        key, value = _after(past, key, value)
        attended = [masked_attention(query[:, :, start:], key, value, layout.visible)]
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
            attended.insert(0, prompt)
        collected = layout.collect(attended)
        return self._base.after_attention(layer, x, collected, noise[1:], layout.tails)

    def _packed_end(
        self,
        x: Tensor,
        layout: CueLayout,
        noise: Noise,
        past: Tensor | None,
        fresh: list[Tensor] | None,
    ) -> Tensor:
        """The last layer, for the rows that are read off alone: `[B, M·A, d]`."""
        layer, start = self._layers[-1], layout.prompt_slots
        h = self._base.norm(x, layer.input_norm)
        ends = h.flatten(0, 1)[layout.ends]
        query = layer.attention[0](ends, noise[0])
        query = self._base.query(layer, query, *layout.last_rotary)
        kv = layout.spread(layer.attention[1](h, noise[1], layout.tails))
        key, value = self._base.key_value(layer, kv, layout.cos, layout.sin)
        _keep(fresh, key, value, start)
        key, value = _after(past, key, value)
        attended = masked_attention(query, key, value, layout.last_visible)
        x = x.flatten(0, 1)[layout.ends]
        return self._base.after_attention(layer, x, by_row(attended), noise[2:])

    def _all_tokens(
        self,
        prompts: StagedPrompts,
        noise: ForwardNoise,
        read: Tensor | None = None,
        known: int = 0,
    ) -> tuple[Tensor, list[Tensor]]:
        """All rows once for each sample above the first stochastic product, once below.

        Args:
            prompts: on the device.
            noise: of all rows.
            read: keys and values of what comes before one prompt under one sample, see `room_for`;
                gets those of its rows.
            known: how many are there.

        Returns:
            As `_states`.
        """
        samples, first, last = noise.samples, noise.first, len(self._layers) - 1
        layout, answers = SequenceLayout.of(prompts, self._base.rotary, known), prompts.answers
        so_far = repeat(None) if read is None else iter(read)
        x = self._base.embed(prompts.ids.flatten()[None])  # [1, rows, d], and then [M, rows, d]
        thirds: list[Tensor] = []
        for i, (layer, each) in enumerate(zip(self._layers[:-1], noise.layers[:-1], strict=True)):
            h = self._base.norm(x, layer.input_norm)
            if i == first:
                # W₀x and A·x are the same under every sample, the update is not.
                out = layer.attention[0].base(h).repeat(samples, 1, 1)
                if each[0] is not None:
                    out += layer.attention[0].update_for_each(h, each[0], samples)
                x = x.repeat(samples, 1, 1)
            else:
                out = layer.attention[0](h, each[0])
            cos, sin = layout.rotary(len(out))
            query, key, value = self._base.query_key_value(layer, layout.spread(out), cos, sin)
            key, value = _added(next(so_far), known, key, value)
            attended = layout.collect(by_row(layout.attend(query, key, value)))
            x = self._base.after_attention(layer, x, attended, each[1:])
            if i + 1 in self._base.thirds:
                cue_ends = layout.end_rows[::answers]
                thirds.append(x[:, cue_ends].transpose(0, 1).expand(-1, samples, -1))
        if first >= last:
            x = x.repeat(samples, 1, 1)

        layer, noises = self._layers[-1], noise.layers[-1]
        h = self._base.norm(x, layer.input_norm)
        query = layer.attention[0](h[:, layout.end_rows], noises[0])  # [M, B·A, heads · head_dim]
        query = query.unflatten(1, (-1, answers)).flatten(0, 1)
        query = self._base.query(layer, query, *layout.last_rotary(samples))
        kv = layout.spread(layer.attention[1](h, noises[1]))
        key, value = self._base.key_value(layer, kv, *layout.rotary(samples))
        key, value = _added(next(so_far), known, key, value)
        attended = by_row(masked_attention(query, key, value, layout.last_visible(samples)))
        ends = x[:, layout.end_rows]
        attended = attended.view(*ends.shape[:2], -1)  # [M, B·A, heads · head_dim]
        out = self._base.after_attention(layer, ends, attended, noises[2:])
        states: Tensor = out.unflatten(1, (-1, answers))
        return states.transpose(0, 1), thirds


def _keep(fresh: list[Tensor] | None, key: Tensor, value: Tensor, prompt_rows: int) -> None:
    if fresh is not None:
        fresh.append(torch.stack([key[:, :, :prompt_rows], value[:, :, :prompt_rows]]))


def _added(read: Tensor | None, known: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Puts those of the rows behind the known ones `[2, B, kv_heads, …, head_dim]`; returns all."""
    if read is None:
        return key, value
    end = known + key.shape[2]
    read[0, :, :, known:end], read[1, :, :, known:end] = key, value
    return read[0, :, :, :end], read[1, :, :, :end]


def _after(past: Tensor | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a known prefix `[2, B, kv_heads, C, head_dim]` and of the rows."""
    if past is None:
        return key, value
    return torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
