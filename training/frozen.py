"""A base model that several runs use one after another."""

from dataclasses import dataclass

from dalorra.base.model import BaseModel, choose_device, load_base_model
from dalorra.errors import ConfigError
from dalorra.forward.arranged import ArrangedBase, arrange
from dalorra.forward.llama.prefix_cache import PrefixCache
from training.config import TrainingConfig
from training.processes import Process
from training.prompt_cache import PromptCache


@dataclass(frozen=True, slots=True, eq=False)
class FrozenBase:
    """A base model, arranged once, with the keys and values of its prompts.

    Attributes:
        model: the base model, without an adapter.
        arranged: the same, for the network that evaluates.
        prompt_cache: keys and values of training prompts.
    """

    model: BaseModel
    arranged: ArrangedBase
    prompt_cache: PromptCache

    @classmethod
    def load(cls, config: TrainingConfig, prefix_cache: PrefixCache | None = None) -> "FrozenBase":
        """Loads the base model that a configuration names.

        Raises:
            BaseModelError: it cannot be had.
            ConfigError: no gradient flows through it as it is quantised.
        """
        device = Process.this().device(config.device)
        if config.quantize == "4bit" and choose_device(device).type == "cpu":
            # bitsandbytes repacks the weights there, for products without a backward.
            raise ConfigError("quantize: 4bit is trained on a GPU; on a CPU say 8bit or none")
        model = load_base_model(
            config.base_model, device=device, dtype=config.dtype, quantize=config.quantize
        )
        cache = PromptCache(round(config.prompt_cache_gib * 2**30))
        return cls(model, arrange(model.model, prefix_cache), cache)
