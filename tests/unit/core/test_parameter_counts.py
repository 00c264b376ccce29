"""The paper's counts for Llama-3.1-8B with r = 8 on q_proj, v_proj and lm_head."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dalorra.posteriors import RankMasks
from dalorra.stochastic_lora import attach, lora_config, mask_logits, stochastic_layers
from tests.tiny import MODULES


def test_llama_3_1_8b_has_4466688_lora_parameters_and_520_mask_logits():
    config = LlamaConfig(
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
        base = LlamaForCausalLM(config)
        model = attach(base, lora_config(8, 16.0, MODULES, "meta-llama/Llama-3.1-8B"), RankMasks())
    layers = stochastic_layers(model)
    assert len(layers) == 65
    assert sum(layer.down.numel() + layer.up.numel() for layer in layers.values()) == 4_466_688
    assert mask_logits(model).numel() == 520
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == 4_466_688 + 520
