"""Answers to questions about states: trees of rows through a Llama arranged for packed rows.

    [state | question 1 | tail under z_1 … z_M | question 2 | tail under z_1 … z_M | …]

A state is read once for all that is asked about it. Under `answer_tokens` its keys and values are
those of the frozen base, kept in the prefix cache and found there whoever asked before. A row sees
what it would see if its question were asked alone (`tree`), so that an answer depends on nothing
else in the forward.

What is too much for one forward is read in turn: first the state, whose keys and values are at hand
from then on, and then as many questions at a time as fit.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from dalorra.adapter.layer import HEAD, Updates
from dalorra.errors import AdapterError
from dalorra.forward.batches import by_state, own_row_count, sample_groups, tree_row_count
from dalorra.forward.llama.base import ArrangedLlama, nbytes_of
from dalorra.forward.llama.bound_noise import BoundNoise, ForwardNoise
from dalorra.forward.llama.prefix_cache import PrefixCache
from dalorra.forward.llama.question_head import QuestionHead
from dalorra.forward.llama.tree import Branch, Tree, TreeLayout, TreeRows
from dalorra.forward.llama.tree_attention import TreeAttention
from dalorra.forward.network import Answers
from dalorra.labels import LabelTrie, TokenIds, tail_of
from dalorra.posteriors.bank import NoiseBank
from dalorra.prompts import Prompt, Scope


class _Found(NamedTuple):
    """What a forward found, by question or state in the order in which they were given.

    Attributes:
        states: after the final norm, of the rows that are read off, `[M, A, d]` of each question.
        features: at the end of the cue, `[M, D, d]` of each question.
        fresh: keys and values of the rows of each state, `[layers, 2, 1, kv_heads, rows, w]`, where
            they were to be kept.
    """

    states: list[Tensor]
    features: list[Tensor]
    fresh: list[Tensor]


class QuestionLlama:
    """The packed forward of one adapter that answers questions, under one bank.

    Args:
        base: shared with other adapters.
        updates: the adapter's, copied in the base's precision.
        bank: what it runs under.
        scope: which rows the adapter acts on.

    Attributes:
        noise: of the bank, arranged for the forwards.
    """

    pads = False

    def __init__(
        self, base: ArrangedLlama, updates: Updates, bank: NoiseBank, scope: Scope
    ) -> None:
        self._base = base
        self._head = QuestionHead(base.head_weight, updates.get(HEAD))
        self._layers = base.adapted(updates)
        self.scope = scope
        self._on_tails = scope == "answer_tokens"
        self.noise = self._bound(bank)

    @property
    def bank(self) -> NoiseBank:
        """What it runs under."""
        return self.noise.bank

    @property
    def nbytes(self) -> int:
        """Memory of the adapter beside the base."""
        return self._head.nbytes + nbytes_of(self._layers)

    @property
    def _prefix_cache(self) -> PrefixCache | None:
        """Of rows that belong to the base alone."""
        return self._base.prefix_cache if self._on_tails else None

    def under(self, bank: NoiseBank) -> "QuestionLlama":
        """The same adapter under another bank."""
        other = copy(self)
        other.noise = self._bound(bank)
        return other

    def _bound(self, bank: NoiseBank) -> BoundNoise:
        """Rows under one sample lie together in both scopes."""
        layers = [layer.projections for layer in self._layers]
        return BoundNoise(bank, "all_tokens", layers, self._head, self._base.head_weight)

    def cached_tokens(self, prompt: Prompt) -> int:
        """Tokens of a question's state that the prefix cache has now."""
        cache = self._prefix_cache
        return cache.known(prompt.state_ids) if cache else 0

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Prompt], samples: range) -> list[Answers]:
        """Every question under every one of these samples, in one forward; a state is read once.

        The features are those of `PackedLlama.answers`.

        Raises:
            AdapterError: a prompt has no options.
        """
        noise = self.noise.of(samples, 0)
        return self._answers(prompts, self._whole(prompts, noise), noise)

    @torch.inference_mode()
    def label_logits(self, prompts: Sequence[Prompt], samples: range) -> list[Tensor]:
        """Logits of each question's options, every module under one sample, `[M, K]` float32.

        Options of several tokens have log-probabilities, not normalised over them.
        """
        noise = self.noise.of(samples, 0)
        states = torch.cat(self._whole(prompts, noise).states, dim=1)
        return self._head.logits(states, [_trie(prompt) for prompt in prompts], noise.head)

    @torch.inference_mode()
    def in_turn(self, prompts: Sequence[Prompt], samples: range, budget: int) -> list[Answers]:
        """`answers` to questions about one state, in forwards of at most `budget` rows.

        A tail is never cut: one that has more rows by itself goes alone.
        """
        if self._on_tails:
            return self._in_turn(prompts, samples, budget)
        rows = tree_row_count(prompts, 1, self.scope)
        parts = [
            self._in_turn(prompts, group, budget) if rows > budget else self.answers(prompts, group)
            for group in sample_groups(samples, rows, budget)
        ]
        return [Answers.joined(own) for own in zip(*parts, strict=True)]

    def _in_turn(self, prompts: Sequence[Prompt], samples: range, budget: int) -> list[Answers]:
        """Under `all_tokens` of one sample."""
        noise, state = self.noise.of(samples, 0), prompts[0].state_ids
        read = self._read(state, noise, budget)
        rows = [own_row_count(prompt, len(samples), self.scope) for prompt in prompts]
        found: dict[int, Answers] = {}
        for places in _filled(rows, budget):
            group = [prompts[i] for i in places]
            if rows[places[0]] > budget:
                found[places[0]] = self._alone(group[0], read, samples, budget)
            else:
                tree = Tree(state, len(state), [_branch(prompt) for prompt in group])
                answers = self._answers(group, self._run([tree], noise, [read]), noise)
                found |= zip(places, answers, strict=True)
        return [found[i] for i in range(len(prompts))]

    def _alone(self, prompt: Prompt, read: Tensor, samples: range, budget: int) -> Answers:
        """To a question that is too long itself: it is read like its state, and the tails after."""
        ids, tail = prompt.prompt_ids, _branch(prompt).tail
        read = self._read(ids, self.noise.of(samples, 0), budget, read)
        tree, parts = Tree(ids, len(ids), [Branch((), tail)]), []
        for group in sample_groups(samples, len(tail.ids), budget):
            noise = self.noise.of(group, 0)
            parts += self._answers([prompt], self._run([tree], noise, [read]), noise)
        return Answers.joined(parts)

    def _read(
        self, ids: TokenIds, noise: ForwardNoise, budget: int, read: Tensor | None = None
    ) -> Tensor:
        """Keys and values of a state, or of a state and a question, see `room_for`.

        Args:
            ids: their tokens.
            noise: of one sample under `all_tokens`.
            budget: most rows of a forward.
            read: what is known of them already.
        """
        noise = noise.none if self._on_tails else noise
        cache = self._prefix_cache if read is None else None
        if cache and (prefix := cache.find([ids], whole=True)):
            read = prefix.keys_values
        room, known = self._base.room_for(len(ids)), 0
        if read is not None:
            known = read.shape[-2]
            room[..., :known, :] = read
        for start in range(known, len(ids), budget):
            end = min(start + budget, len(ids))
            known_keys = [room[..., :start, :]]
            piece = self._run([Tree(ids[:end], start, ())], noise, known_keys, keep=True)
            room[..., start:end, :] = piece.fresh[0]
        if cache:
            cache.add([ids], [known], room[..., known:, :])
        return room

    def _whole(self, prompts: Sequence[Prompt], noise: ForwardNoise) -> _Found:
        """In one forward."""
        groups = by_state(prompts)
        states, cache = list(groups), self._prefix_cache
        prefix = cache.find(states, whole=True) if cache else None
        known = prefix.lengths if prefix else [0] * len(states)
        past = [
            prefix.keys_values[:, :, b : b + 1, :, :count] if prefix and count else None
            for b, count in enumerate(known)
        ]
        trees = [
            Tree(state, count, [_branch(prompts[i]) for i in groups[state]])
            for state, count in zip(states, known, strict=True)
        ]
        found = self._run(trees, noise, past, keep=cache is not None)
        if cache:
            for state, count, fresh in zip(states, known, found.fresh, strict=True):
                cache.add([state], [count], fresh)
        asked = [i for places in groups.values() for i in places]
        back = sorted(range(len(asked)), key=asked.__getitem__)
        return _Found([found.states[i] for i in back], [found.features[i] for i in back], [])

    def _answers(
        self, prompts: Sequence[Prompt], found: _Found, noise: ForwardNoise
    ) -> list[Answers]:
        tries = [_trie(prompt) for prompt in prompts]
        states, every = torch.cat(found.states, dim=1), self._head.integrated(self.bank)
        distributions = self._head.probabilities(states, tries, noise.head, every)
        return [
            Answers(probabilities[None], weights, features[None])
            for (probabilities, weights), features in zip(
                distributions, found.features, strict=True
            )
        ]

    def _run(
        self,
        trees: Sequence[Tree],
        noise: ForwardNoise,
        past: Sequence[Tensor | None],
        *,
        keep: bool = False,
    ) -> _Found:
        """One forward.

        Args:
            trees: states with questions, or without: then keys and values are all that is found.
            noise: of the tails, or of all rows.
            past: keys and values of the known part of each state,
                `[layers, 2, 1, kv_heads, C, head_dim]`.
            keep: whether to return those of the rows of states, which must be the same under every
                sample.
        """
        base, first, last = self._base, noise.first, len(self._layers) - 1
        layout = TreeLayout.of(trees, noise.samples, base.device)
        cos_sin = base.rotary(layout.positions)
        one, every = (
            TreeRows.of(layout, cos_sin, samples, self.scope) for samples in (1, noise.samples)
        )
        fresh: list[list[Tensor]] = [[] for _ in trees] if keep else []
        features: list[Tensor] = []  # `[M, questions, d]` each

        def attention(i: int, key: Tensor, value: Tensor) -> TreeAttention:
            for kept, rows in zip(fresh, layout.states, strict=False):
                kept.append(torch.stack([key[:, :, rows], value[:, :, rows]]))
            known = [None if own is None else own[i] for own in past]
            return TreeAttention(layout, key, value, known)

        x, at = base.embed(layout.ids), one
        for i, (layer, each) in enumerate(zip(self._layers[:-1], noise.layers[:-1], strict=True)):
            if i == first:
                x, at = every.branched(x), every
            h = base.norm(x, layer.input_norm)
            qkv = layer.attention[0](h, each[0], at.adapted)
            query, key, value = base.query_key_value(layer, qkv, at.cos, at.sin)
            attended = attention(i, key, value).of_all(query)
            x = base.after_attention(layer, x, attended, each[1:], at.adapted)
            if i + 1 in base.thirds:
                features.append(at.by_sample(x[:, at.cue_ends]))
        if first == last:
            x, at = every.branched(x), every

        layer, each = self._layers[-1], noise.layers[-1]
        h = base.norm(x, layer.input_norm)
        kv = layer.attention[1](h, each[1], at.adapted)
        key, value = base.key_value(layer, kv, at.cos, at.sin)
        attention_of_ends = attention(last, key, value)
        kept = [torch.stack(parts) for parts in fresh]
        if not layout.bunches:
            return _Found([], [], kept)
        query = layer.attention[0](h[:, at.ends], each[0], at.adapted_ends)
        query = base.query(layer, query, at.cos[:, :, at.ends], at.sin[:, :, at.ends])
        attended = attention_of_ends.of_ends(query)
        x = base.after_attention(layer, x[:, at.ends], attended, each[2:], at.adapted_ends)
        x = base.final_norm(at.by_sample(x)).expand(noise.samples, -1, -1)
        states = x.split(layout.answers, dim=1)
        features.append(torch.stack([own[:, 0] for own in states], dim=1))
        by_depth = [part.expand(noise.samples, -1, -1) for part in features]
        of_questions = torch.stack(by_depth, dim=2).float().unbind(dim=1)
        return _Found(layout.as_given(states), layout.as_given(of_questions), kept)


def _branch(prompt: Prompt) -> Branch:
    trie = _trie(prompt)
    tail = tail_of(prompt.cue_ids, trie if trie.nodes else None)
    return Branch(prompt.prompt_ids[prompt.shared :], tail)


def _trie(prompt: Prompt) -> LabelTrie:
    if prompt.trie is None:
        raise AdapterError("an adapter that answers questions needs prompts with options")
    return prompt.trie


def _filled(rows: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Questions that go together, those of about as many rows; one beyond the budget alone."""
    group: list[int] = []
    for place in sorted(range(len(rows)), key=rows.__getitem__):
        if group and sum(rows[i] for i in group) + rows[place] > budget:
            yield group
            group = []
        group.append(place)
    if group:
        yield group
