"""The packed forward through the unmodified transformers model."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, LlamaModel

from dalorra.adapter.layer import (
    StochasticLoraLinear,
    StochasticPeftModel,
    class_head,
    rank_noise,
    stochastic_layers,
)
from dalorra.base.families import is_encoder
from dalorra.forward.reference_rows import PackedRows, pack, pack_texts
from dalorra.labels import Labels, LabelTrie, PathSums, answer_rows
from dalorra.posteriors.bank import NoiseBank
from dalorra.prompts import Prompt, Scope

CACHE_ARGUMENT = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(LlamaModel.forward).parameters
)
"""The model's argument for keys and values, which transformers 5.24 gave another name."""

_PIECE: Final = 8192
"""Tokens whose logits are computed at once where those of the whole vocabulary are needed."""


def answer_logits(
    model: StochasticPeftModel,
    rows: PackedRows,
    bank: NoiseBank,
    labels: Labels | Sequence[LabelTrie],
    past: DynamicCache | None = None,
) -> Tensor:
    """Logits of the labels, for every prompt and sample.

    Those of label tokens, or of classes, at the end of the cue; of a trie, the log-probability of
    each path.

    Args:
        model: a causal language model with the adapter attached.
        rows: one packed forward's input, on the model's device.
        bank: the samples that `rows.sample_index` points into.
        labels: whose rows of the head alone are computed; or a trie, or one for each prompt.
        past: keys and values of the prompts, padded on the left; only the cue rows then run.

    Returns:
        `[B, M, K]` float32, differentiable in A, B and the bank unless gradients are off; where
        each prompt has labels of its own, −∞ behind the last of them.
    """
    if past is not None:
        rows = rows.after(past.get_seq_length())
    causal_lm = cast(Any, model.get_base_model())
    layers = stochastic_layers(model)
    with rank_noise(list(layers.values()), bank.noise(rows.sample_index)):
        hidden: Tensor = causal_lm.model(
            rows.input_ids,
            position_ids=rows.position_ids,
            attention_mask=rows.attention_mask,
            use_cache=past is not None,
            **{CACHE_ARGUMENT: past},
        ).last_hidden_state  # [batch, rows, d]
    count, nodes = rows.samples.shape[1], answer_rows(labels)
    answers = hidden[:, rows.answer_rows]  # [B, M·A, d], or [B·M, A, d]
    answers = answers.reshape(-1, count * nodes, hidden.shape[-1])
    samples = rows.samples.repeat_interleave(nodes, dim=1)  # [B or 1, M·A]
    if not isinstance(labels, Tensor | LabelTrie):
        return _of_each(model, bank, labels, answers.unflatten(1, (count, -1)), samples)
    logits_of = _head(model, bank, answers, samples)
    if isinstance(labels, Tensor):
        return logits_of(labels)
    sums = PathSums.of(labels, answers.device)
    logits, normalisers = logits_of(sums.tokens), _normalisers(model, logits_of)
    return sums(logits.unflatten(1, (count, -1)), normalisers.unflatten(1, (count, -1)))


def _of_each(
    model: StochasticPeftModel,
    bank: NoiseBank,
    tries: Sequence[LabelTrie],
    answers: Tensor,
    samples: Tensor,
) -> Tensor:
    """Logits where each of B prompts has labels of its own, `[B, M, K]`, −∞ behind the last.

    Args:
        model: see `answer_logits`.
        bank: likewise.
        tries: B of them.
        answers: `[B, M, A, d]`, of which a prompt's trie has the first.
        samples: `[B or 1, M·A]`.
    """
    real = torch.tensor([trie.rows for trie in tries], device=answers.device)  # [B]
    count, most = answers.shape[1:3]
    kept = (torch.arange(most, device=answers.device) < real[:, None])[:, None]  # [B, 1, A]
    kept = kept.expand(-1, count, -1)
    samples = samples.expand(len(tries), -1).unflatten(1, (count, most))
    logits_of = _head(model, bank, answers[kept][None], samples[kept][None])
    sums = [PathSums.of(trie, answers.device) for trie in tries]
    tokens = torch.cat([one.tokens for one in sums]).unique()
    logits = logits_of(tokens)[0]  # [Σ M·A of each, tokens]
    # Where every label is one token, what all of them are divided by makes no difference.
    deep = any(trie.nodes for trie in tries)
    normalisers = _normalisers(model, logits_of)[0] if deep else logits.new_zeros(len(logits))
    sizes = [count * trie.rows for trie in tries]
    widest = max(len(trie.paths) for trie in tries)
    found = []
    for one, own, divisors in zip(sums, logits.split(sizes), normalisers.split(sizes), strict=True):
        places = torch.searchsorted(tokens, one.tokens)
        by_row = own[:, places].unflatten(0, (count, -1))
        paths = one(by_row, divisors.unflatten(0, (count, -1)))  # [M, K of this prompt]
        found.append(F.pad(paths, (0, widest - paths.shape[1]), value=-torch.inf))
    return torch.stack(found)


def _head(
    model: StochasticPeftModel, bank: NoiseBank, answers: Tensor, samples: Tensor
) -> Callable[[Tensor], Tensor]:
    """What gives the logits of tokens, `[batch, rows, tokens]` float32, at answer rows.

    Args:
        model: see `answer_logits`.
        bank: likewise.
        answers: `[batch, rows, d]`.
        samples: `[batch or 1, rows]`.
    """
    classes = class_head(model)
    head = cast(Any, model.get_base_model()).lm_head if classes is None else classes
    if not isinstance(head, StochasticLoraLinear):
        return lambda tokens: F.linear(answers.float(), head.weight[tokens].float())
    noise = bank.noise(samples)[-1:]

    def noisy(tokens: Tensor) -> Tensor:
        with rank_noise([head], noise):
            return head.rows(answers, tokens)

    return noisy


def _normalisers(model: StochasticPeftModel, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The logarithm of Σ exp of the logits of all tokens, in pieces that bound the memory."""
    vocabulary = len(cast(Any, model.get_base_model()).lm_head.weight)
    tokens = torch.arange(vocabulary, device=model.device)
    pieces = [
        checkpoint(lambda piece: logits_of(piece).logsumexp(-1), piece, use_reentrant=False)
        for piece in tokens.split(_PIECE)
    ]
    return torch.stack(pieces, dim=-1).logsumexp(-1)


def class_logits(model: nn.Module, rows: PackedRows, bank: NoiseBank) -> tuple[Tensor, Tensor]:
    """Logits of an encoder's classes for every text and sample, and what they are read off.

    Args:
        model: a model for sequence classification with the adapter attached.
        rows: of `pack_texts`, on the model's device.
        bank: the samples that `rows.sample_index` points into.

    Returns:
        `[B, M, K]` float32, and the last hidden states of the first row, `[B, M, d]`;
        differentiable in A, B, the head and the bank unless gradients are off.
    """
    layers = stochastic_layers(model)
    with rank_noise(list(layers.values()), bank.noise(rows.sample_index)):
        found = cast(Any, model)(
            rows.input_ids,
            position_ids=rows.position_ids,
            attention_mask=rows.attention_mask[:, 0, 0].long(),  # every row sees the same keys
            output_hidden_states=True,
        )
    samples = rows.samples.shape[1]
    logits: Tensor = found.logits.float().unflatten(0, (-1, samples))
    states: Tensor = found.hidden_states[-1][:, 0].unflatten(0, (-1, samples))
    return logits, states


def reference_logits(
    model: StochasticPeftModel,
    prompts: Sequence[Prompt],
    samples: range,
    bank: NoiseBank,
    scope: Scope,
    labels: Labels,
) -> Tensor:
    """Logits of the labels by whichever of the two fits the base model, `[B, M, K]` float32."""
    base = model.get_base_model()
    if is_encoder(base):
        return class_logits(base, pack_texts(prompts, samples).to(model.device), bank)[0]
    rows = pack(prompts, samples, scope).to(model.device)
    return answer_logits(model, rows, bank, labels)
