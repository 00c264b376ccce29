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
    labels: Labels,
    past: DynamicCache | None = None,
) -> Tensor:
    """Logits of the labels, for every prompt and sample.

    Those of label tokens, or of classes, at the end of the cue; of a trie, the log-probability of
    each path.

    Args:
        model: a causal language model with the adapter attached.
        rows: one packed forward's input, on the model's device.
        bank: the samples that `rows.sample_index` points into.
        labels: whose rows of the head alone are computed; or a trie.
        past: keys and values of the prompts, padded on the left; only the cue rows then run.

    Returns:
        `[B, M, K]` float32, differentiable in A, B and the bank unless gradients are off.
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
    classes, samples = class_head(model), rows.samples.repeat_interleave(nodes, dim=1)
    head = causal_lm.lm_head if classes is None else classes
    noise = bank.noise(samples)[-1:]

    def logits_of(tokens: Tensor) -> Tensor:
        """`[B, M·A, tokens]` float32."""
        if not isinstance(head, StochasticLoraLinear):
            return F.linear(answers.float(), head.weight[tokens].float())
        with rank_noise([head], noise):
            return head.rows(answers, tokens)

    if not isinstance(labels, LabelTrie):
        return logits_of(labels)
    sums = PathSums.of(labels, answers.device)
    normalisers = _normalisers(logits_of, torch.arange(len(head.weight), device=answers.device))
    logits = logits_of(sums.tokens)
    return sums(logits.unflatten(1, (count, nodes)), normalisers.unflatten(1, (count, nodes)))


def _normalisers(logits_of: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """The logarithm of Σ exp of the logits of all tokens, in pieces that bound the memory."""
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
