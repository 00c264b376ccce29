"""The packed forward through the unmodified transformers model."""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, LlamaModel

from dalorra.adapter.layer import (
    StochasticLoraLinear,
    StochasticPeftModel,
    rank_noise,
    stochastic_layers,
)
from dalorra.base.families import is_encoder
from dalorra.forward.reference_rows import PackedRows, pack, pack_texts
from dalorra.posteriors.bank import NoiseBank
from dalorra.prompts import Prompt, Scope

CACHE_ARGUMENT = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(LlamaModel.forward).parameters
)
"""The model's argument for keys and values, which transformers 5.24 gave another name."""


def answer_logits(
    model: StochasticPeftModel,
    rows: PackedRows,
    bank: NoiseBank,
    label_ids: Tensor,
    past: DynamicCache | None = None,
) -> Tensor:
    """Logits of the label tokens at the end of the cue, for every prompt and sample.

    Args:
        model: a causal language model with the adapter attached.
        rows: one packed forward's input, on the model's device.
        bank: the samples that `rows.sample_index` points into.
        label_ids: `[K]` token ids; only these rows of the head are computed.
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
    samples = rows.samples.shape[1]
    answers = hidden[:, rows.answer_rows].reshape(-1, samples, hidden.shape[-1])  # [B, M, d]
    head = causal_lm.lm_head
    if not isinstance(head, StochasticLoraLinear):
        return F.linear(answers.float(), head.weight[label_ids].float())
    with rank_noise([head], bank.noise(rows.samples)[-1:]):
        return head.rows(answers, label_ids)


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
    label_ids: Tensor,
) -> Tensor:
    """Logits of the labels by whichever of the two fits the base model, `[B, M, K]` float32."""
    base = model.get_base_model()
    if is_encoder(base):
        return class_logits(base, pack_texts(prompts, samples).to(model.device), bank)[0]
    rows = pack(prompts, samples, scope).to(model.device)
    return answer_logits(model, rows, bank, label_ids)
