"""A tiny random model of every family of language models, in the shapes that they come in."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from dalorra.base.model import BaseModel, weight_digest
from tests.tiny import SHAPE, tiny_tokenizer

WINDOW = 256
"""Tokens of the sliding windows."""


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """Scaled for inputs that are longer than 16 tokens."""
    scaled = {"factor": 8.0, "original_max_position_embeddings": 16} if kind != "linear" else {}
    return {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0} | scaled | parameters


FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "Llama 2, linear": (LlamaConfig, {"rope_parameters": _rope("linear")}),
    "Llama 3": (
        LlamaConfig,
        {
            "head_dim": 8,
            "rope_parameters": _rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0),
        },
    ),
    "Llama with biases": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "Mistral": (MistralConfig, {"sliding_window": None, "head_dim": 12}),
    "Mistral with a window": (MistralConfig, {"sliding_window": WINDOW}),
    "Qwen2": (Qwen2Config, {}),
    "Qwen2 with a window": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "Qwen2.5, yarn": (Qwen2Config, {"rope_parameters": _rope("yarn")}),
    "Qwen3": (Qwen3Config, {"head_dim": 12}),
}
"""Configuration of each."""


def tiny_of(family: str, *, tied: bool = False, layers: int = 3, seed: int = 0) -> PreTrainedModel:
    """Random float32 weights, frozen; biases and the norms of heads differ from their defaults."""
    make, options = FAMILIES[family]
    config = make(**SHAPE, num_hidden_layers=layers, tie_word_embeddings=tied, **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith((".bias", "q_norm.weight", "k_norm.weight")):
                    weight.add_(0.5 * torch.randn_like(weight))
    found: PreTrainedModel = model.eval().requires_grad_(False)
    return found


def base_of(family: str, **options: Any) -> BaseModel:
    """`tiny_of(family, **options)` as `load_base_model` would return it."""
    model = tiny_of(family, **options)
    return BaseModel(model, tiny_tokenizer(), "tiny", weight_digest(model))


def folder_of(family: str, folder: Path, **options: Any) -> Path:
    """Writes a folder that `load_base_model` reads, and returns it."""
    tiny_of(family, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
