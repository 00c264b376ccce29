"""How an adapter is stochastic: one posterior for each family of methods.

Every one of them but `Laplace` is noise on the down-projection A·x, so the packed forward and the
service run all of these unchanged.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from dalorra.errors import AdapterError, first_fault
from dalorra.posteriors.amortised import AmortisedBank, AmortisedMasks
from dalorra.posteriors.contextual import ContextBank, ContextualMatrix
from dalorra.posteriors.correlated import CorrelatedMasks
from dalorra.posteriors.dropout import AdapterDropout, DropoutBank
from dalorra.posteriors.laplace import Laplace
from dalorra.posteriors.posterior import Posterior
from dalorra.posteriors.rank_masks import Deterministic, Ensemble, RandomMasks, RankMasks
from dalorra.posteriors.spike_slab import SpikeSlab, SpikeSlabBank
from dalorra.posteriors.weight_noise import ColumnSpaceNoise, GaussianDown, WeightNoiseBank

POSTERIORS: Final[Mapping[str, type[Posterior]]] = MappingProxyType(
    {
        "dalorra": RankMasks,
        "amortised": AmortisedMasks,
        "correlated": CorrelatedMasks,
        "spike_slab": SpikeSlab,
        "mle": Deterministic,
        "map": Deterministic,
        "mc_dropout": AdapterDropout,
        "ensemble": Ensemble,
        "laplace": Laplace,
        "blob": GaussianDown,
        "tfb": ColumnSpaceNoise,
        "c_lora": ContextualMatrix,
        "random_mask": RandomMasks,
    }
)
"""The posterior that each method trains, by the method's name."""

__all__ = [
    "POSTERIORS",
    "AdapterDropout",
    "AmortisedBank",
    "AmortisedMasks",
    "ColumnSpaceNoise",
    "ContextBank",
    "ContextualMatrix",
    "CorrelatedMasks",
    "Deterministic",
    "DropoutBank",
    "Ensemble",
    "GaussianDown",
    "Laplace",
    "Posterior",
    "RandomMasks",
    "RankMasks",
    "SpikeSlab",
    "SpikeSlabBank",
    "WeightNoiseBank",
    "find_posterior",
]


def find_posterior(method: str, parameters: Mapping[str, Any]) -> Posterior:
    """The posterior of an adapter.

    Args:
        method: its method.
        parameters: the posterior's fields.

    Raises:
        AdapterError: no such method, or impossible parameters.
    """
    if method not in POSTERIORS:
        raise AdapterError(f"unknown method {method!r}: this release knows {', '.join(POSTERIORS)}")
    try:
        return POSTERIORS[method].model_validate(dict(parameters))
    except ValidationError as error:
        raise AdapterError(f"posterior.{first_fault(error)}") from error
