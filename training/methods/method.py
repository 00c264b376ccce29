"""What a method is to the training: the noise that it draws and what it adds to the loss for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from dalorra.forward.reference_rows import PackedRows
from dalorra.posteriors import Posterior
from dalorra.posteriors.bank import NoiseBank
from dalorra.posteriors.noise import ModuleTensors
from training.methods.trained import Inference, TrainedAdapter


class Method(BaseModel, ABC):
    """A way to train an adapter, and the section `method` of a configuration.

    The objective is the same for all of them, per training example:

        mean over the batch of [ −(1/S) Σ_s log p(y | x, sample s) + example penalty ] + penalty / N

    Attributes:
        name: of the method.
        samples: S, samples of the noise per example and step.
        noise_per: whether each example of a mini-batch has samples of its own, or all of them the
            same ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: ClassVar[str]
    """The method in one line, with its source."""

    name: str
    samples: int = Field(default=1, ge=1)
    noise_per: Literal["example", "batch"] = "example"

    @classmethod
    def key(cls) -> str:
        """The name that configurations and adapters use."""
        return str(cls.model_fields["name"].default)

    @abstractmethod
    def posterior(self) -> Posterior:
        """How the adapter is stochastic while it is trained, and mostly also afterwards."""

    @abstractmethod
    def draw(
        self, modules: Sequence[ModuleTensors], samples: int, generator: torch.Generator
    ) -> NoiseBank:
        """Samples for a training step, differentiable in the modules' tensors.

        Args:
            modules: of all adapted modules, in model order.
            samples: how many independent samples.
            generator: source of randomness, on the CPU.
        """

    def penalty(self, modules: Sequence[ModuleTensors]) -> Tensor:
        """What is added to the data's negative log-likelihood, in nats; a scalar, by default 0."""
        return modules[0]["down"].new_zeros(())

    def example_penalty(self, bank: NoiseBank, rows: PackedRows) -> Tensor:
        """What each example adds to its own negative log-likelihood, the mean over a batch.

        For noise whose price depends on the input; by default 0.

        Args:
            bank: of `draw`, after the forward that it served.
            rows: of that forward.
        """
        return torch.zeros((), device=rows.input_ids.device)

    @property
    def adapters(self) -> int:
        """How many adapters of the configured rank are trained side by side."""
        return 1

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Name of a posterior's tensor → its learning rate, where it has one of its own."""
        return {}

    def samples_of(self, batch: int) -> Tensor:
        """Which of a step's samples each of `batch` examples runs under: `[batch or 1, S]`."""
        groups = batch if self.noise_per == "example" else 1
        return torch.arange(groups * self.samples).view(groups, self.samples)

    def finish(self, modules: Sequence[ModuleTensors]) -> None:
        """Changes the trained tensors in place before they are rounded; by default not at all."""

    def after_training(self, trained: TrainedAdapter) -> Inference:
        """Fits what the answers need beside the trained tensors; by default nothing."""
        return Inference(self.posterior())


def mean_over_rows(values: Tensor, adapted: Tensor) -> Tensor:
    """Mean over a batch of each sequence's mean over the rows that the adapter acted on.

    Args:
        values: what one module paid for each row, `[batch, rows]`.
        adapted: of the forward, `[batch, rows]` bool.
    """
    # A head has the last row of every cue alone, `[B, S]`, an encoder's pooler one row.
    if values.shape[0] != adapted.shape[0] or values.shape[1] == 1:
        return values.mean()
    acted = adapted[:, -values.shape[1] :]  # rows of a cached prompt are not run
    return ((values * acted).sum(dim=1) / acted.sum(dim=1)).mean()
