"""The exact negative ELBO of a mini-batch (DALorRA, Eq. 4), per training example:

    mean over the batch of [ −(1/S) Σ_s log p(y | x, z_s) ] + KL_total / N

N is the number of training examples and KL_total sums over every module and rank, so that one
epoch of mini-batches adds up to Eq. 4 divided by N. There is no weight on the KL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from dalorra.bank import MaskBank
from dalorra.forward import answer_logits
from dalorra.masks import bernoulli_kl, relaxed_masks
from dalorra.packing import Scope, pack
from dalorra.prompts import Prompt
from dalorra.stochastic_lora import StochasticPeftModel, mask_logits
from training.attention import differentiable_attention
from training.config import DalorraConfig
from training.prompt_cache import PromptCache


@dataclass(frozen=True, slots=True)
class Loss:
    """Nats per training example.

    Attributes:
        total: what is minimised, `nll + kl / N`.
        nll: mean over the batch and the S samples.
        kl: KL_total.
    """

    total: Tensor
    nll: Tensor
    kl: Tensor


class ElboObjective:
    """Computes `Loss` for one mini-batch.

    Args:
        config: prior, temperature, S and how masks are shared.
        label_ids: `[K]` token ids of the labels; the likelihood is over these alone (section 3.2).
        scope: rows that the adapter acts on.
        train_size: N, training examples.
        cache: keys and values of prompts, used when `scope` is `answer_tokens`.
    """

    def __init__(
        self,
        config: DalorraConfig,
        label_ids: Tensor,
        scope: Scope,
        train_size: int,
        cache: PromptCache | None,
    ) -> None:
        self.config = config
        self.label_ids = label_ids
        self.scope = scope
        self.train_size = train_size
        self.cache = cache if scope == "answer_tokens" else None

    def __call__(
        self,
        model: StochasticPeftModel,
        prompts: Sequence[Prompt],
        labels: Tensor,
        generator: torch.Generator,
    ) -> Loss:
        """The loss of `prompts` with `labels` `[B]`, indices into the label set."""
        logits = mask_logits(model)  # [modules, r]
        bank, members = self._draw(logits, len(prompts), generator)
        rows = pack(prompts, members, self.scope).to(labels.device)
        past = self.cache.past(model, prompts) if self.cache else None
        with differentiable_attention(cast(PreTrainedModel, model.get_base_model())):
            scores = answer_logits(model, rows, bank, self.label_ids, past)  # [B, S, K]
        samples = scores.shape[1]
        nll = F.cross_entropy(scores.flatten(0, 1), labels.repeat_interleave(samples))
        kl = bernoulli_kl(logits, self.config.prior)
        return Loss(total=nll + kl / self.train_size, nll=nll.detach(), kl=kl.detach())

    def _draw(
        self, logits: Tensor, batch: int, generator: torch.Generator
    ) -> tuple[MaskBank, Tensor]:
        """Relaxed masks, and which of them each example runs under: `[B or 1, S]`."""
        per_example = self.config.masks_per == "example"
        groups = batch if per_example else 1
        members = torch.arange(groups * self.config.samples).view(groups, self.config.samples)
        masks = relaxed_masks(logits, self.config.temperature, members.numel(), generator)
        return MaskBank(masks), members
