"""What every posterior can do."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from dalorra.posteriors.bank import BankSpec, NoiseBank
from dalorra.posteriors.noise import ModuleTensors


class Posterior(BaseModel, ABC):
    """A distribution over what an adapter does to A·x.

    Its fields are what the service needs beside the tensors; `dalorra.json` keeps them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def tensors(self, down: Tensor) -> dict[str, Tensor]:
        """Initial values of the tensors that a module has beside A and B, by name.

        Args:
            down: the module's A, `[r, d_in]`.
        """
        return {}

    def check_servable(self) -> None:
        """Raises `AdapterError` when no bank of samples can stand for it."""

    @abstractmethod
    def bank(self, modules: Sequence[ModuleTensors], spec: BankSpec) -> NoiseBank:
        """The fixed samples that the adapter is served with.

        Args:
            modules: one per adapted module, in model order.
            spec: how many samples, and their seed.
        """

    @abstractmethod
    def mean(self, modules: Sequence[ModuleTensors]) -> NoiseBank:
        """One deterministic sample: the posterior's mean."""
