"""The paper's counts for Llama-3.1-8B with r = 8 on q_proj, v_proj and lm_head."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dalorra.adapter.layer import StochasticPeftModel, attach, lora_config, stochastic_layers
from dalorra.posteriors import (
    AmortisedMasks,
    ContextualMatrix,
    CorrelatedMasks,
    GaussianDown,
    Posterior,
    RankMasks,
    SpikeSlab,
)
from tests.tiny import MODULES


def adapted_llama(posterior: Posterior) -> StochasticPeftModel:
    """Llama-3.1-8B's shapes, without its weights."""
    shape = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        base = LlamaForCausalLM(shape)
        config = lora_config(8, 16.0, MODULES, "meta-llama/Llama-3.1-8B")
        return attach(base, config, posterior)


@pytest.mark.parametrize(
    ("posterior", "extra"),
    [
        (RankMasks(), 520),
        (GaussianDown(), 2_129_920),
        (ContextualMatrix(), 578_240),
        (AmortisedMasks(), 520 + 65 * 8 * 8),
        (CorrelatedMasks(factors=2), 520 + 65 * 8 * 2),
        (SpikeSlab(), 520 + 65 * 8),
    ],
    ids=["dalorra", "blob", "c_lora", "amortised", "correlated", "spike_slab"],
)
def test_llama_3_1_8b_has_the_parameters_of_the_papers_table(posterior: Posterior, extra: int):
    model = adapted_llama(posterior)
    layers = stochastic_layers(model)
    assert len(layers) == 65
    assert sum(layer.down.numel() + layer.up.numel() for layer in layers.values()) == 4_466_688
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == 4_466_688 + extra
