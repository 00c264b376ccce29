"""What a user would write without this project: M plain LoRA adapters, one pass after the other.

The adapters are the bank's samples as `dalorra export --as bank` writes them, so the values are
the same; prompts, base model and dtype are, too.
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from dalorra.adapter.directory import read_adapter
from dalorra.base.model import load_base_model
from dalorra.prompts import PromptTokenizer

Answer = dict[str, Any]
EXPIRED: Answer = {"expired": True}
"""In place of an answer that nobody waits for any more."""


def server_arguments() -> argparse.ArgumentParser:
    """Arguments of both servers that are built around `LoopedLora`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--loras", type=Path, required=True, help="folder of plain LoRAs")
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-batch", type=int, default=1)
    return parser


class LoopedLora:
    """One base model under M adapters, asked in turn.

    Args:
        options: see `server_arguments`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        manifest = read_adapter(options.adapter).manifest
        base = load_base_model(options.base_model, device=options.device, dtype=options.dtype)
        self._tokenizer = PromptTokenizer(base.tokenizer, manifest.labelled, manifest.max_tokens)
        self._labels = list(manifest.labelled.labels)
        folders = sorted(options.loras.iterdir())
        self._loras = [folder.name for folder in folders]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tied", category=UserWarning)
            model: Any = PeftModel.from_pretrained(
                base.model, folders[0], adapter_name=folders[0].name, autocast_adapter_dtype=False
            )
            for folder in folders[1:]:
                model.load_adapter(folder, adapter_name=folder.name, autocast_adapter_dtype=False)
        self._model: Any = model.eval()

    @torch.inference_mode()
    def answer(self, texts: Sequence[str], until: float) -> list[Answer]:
        """Mean and variance over the samples, for a padded batch.

        Args:
            texts: the inputs.
            until: time of day after which nobody waits for them.
        """
        prompts = [self._tokenizer.encode(text) for text in texts]
        batch = _pad([[*p.prompt_ids, *p.cue_ids] for p in prompts], self._model.device)
        labels = list(self._tokenizer.label_ids)
        found = []
        for lora in self._loras:
            if time.time() > until:
                return [EXPIRED] * len(texts)
            self._model.set_adapter(lora)
            logits = self._model(**batch, logits_to_keep=1, use_cache=False).logits
            found.append(logits[:, -1, labels].float().softmax(dim=-1))
        samples = torch.stack(found)  # [M, B, K]
        return [
            self._answer(mean, variance)
            for mean, variance in zip(
                samples.mean(dim=0).tolist(),
                samples.var(dim=0, correction=0).tolist(),
                strict=True,
            )
        ]

    def _answer(self, mean: list[float], variance: list[float]) -> Answer:
        best = max(range(len(mean)), key=mean.__getitem__)
        return {
            "label": self._labels[best],
            "probability": mean[best],
            "variance": variance[best],
            "probabilities": dict(zip(self._labels, mean, strict=True)),
        }


def _pad(sequences: list[list[int]], device: torch.device) -> dict[str, Tensor]:
    """Ids padded on the left, so that every prompt ends with its cue."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids in sequences])
    starts = torch.tensor([[longest - len(ids)] for ids in sequences])
    mask = (torch.arange(longest) >= starts).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {
        name: tensor.to(device)
        for name, tensor in (
            ("input_ids", ids),
            ("attention_mask", mask),
            ("position_ids", positions),
        )
    }
