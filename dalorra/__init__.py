"""Honest probabilities from a frozen Llama: rank-masked LoRA, sampled in one packed forward.

    from dalorra import Decision, Predictor

    predictor = Predictor.load()  # the bundled sentiment adapter on its base model
    prompt = predictor.encode("A film of rare charm.")
    (prediction,) = predictor.predict([prompt])
    print(prediction.label, prediction.probability, prediction.variance)
    verdict = predictor.policy.decide(prediction)
    if verdict.decision is not Decision.ACCEPT:
        print(verdict.decision, verdict.reason)

A name is imported when it is first used, so that `dalorra.client` needs neither torch nor numpy.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dalorra.adapter.directory import read_adapter
    from dalorra.base.model import load_base_model
    from dalorra.decision.policy import Decision, Policy, Verdict
    from dalorra.decision.predictive import Prediction
    from dalorra.errors import AdapterError, BaseModelError, ConfigError, DalorraError, InputError
    from dalorra.predictor import Predictor
    from dalorra.shared_base import SharedBase

__all__ = [
    "AdapterError",
    "BaseModelError",
    "ConfigError",
    "DalorraError",
    "Decision",
    "InputError",
    "Policy",
    "Prediction",
    "Predictor",
    "SharedBase",
    "Verdict",
    "load_base_model",
    "read_adapter",
]

if not TYPE_CHECKING:
    _MODULES = {
        "Decision": "decision.policy",
        "Policy": "decision.policy",
        "Prediction": "decision.predictive",
        "Predictor": "predictor",
        "SharedBase": "shared_base",
        "Verdict": "decision.policy",
        "load_base_model": "base.model",
        "read_adapter": "adapter.directory",
    }

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
