"""Plain LoRAs made and run by PEFT alone."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from dalorra.prompts import Prompt


def plain_lora(
    folder: Path,
    model: PreTrainedModel,
    *,
    base: str = "tiny-llama",
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    **settings: Any,
) -> Path:
    """Writes a LoRA with random A and B, as PEFT saves it; `model` stays as it was.

    Args:
        folder: to write.
        model: the base model.
        base: what the LoRA calls it.
        dtype: of A and B.
        seed: of A and B.
        settings: of `LoraConfig`.
    """
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings}
    config = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=base, **given)
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on tied heads and saved embeddings
        peft_model = get_peft_model(copy.deepcopy(model), config)
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if ".lora_" in name:
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(0.3 * drawn)
        peft_model.peft_config["default"].base_model_name_or_path = base
        lora = [m for m in peft_model.modules() if hasattr(m, "lora_A")]
        for layer in lora:
            layer.lora_A.to(dtype)
            layer.lora_B.to(dtype)
        peft_model.save_pretrained(str(folder))
    return folder


def by_peft(
    folder: Path, model: PreTrainedModel, prompts: Sequence[Prompt], label_ids: Sequence[int]
) -> Tensor:
    """Label probabilities `[B, K]`, by `PeftModel.from_pretrained` and nothing of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()
    rows = []
    for prompt in prompts:
        ids = torch.tensor([[*prompt.prompt_ids, *prompt.cue_ids]])
        with torch.no_grad():
            rows.append(loaded(input_ids=ids).logits[0, -1, list(label_ids)].softmax(-1))
    return torch.stack(rows)
