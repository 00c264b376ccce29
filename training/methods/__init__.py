"""The methods that are compared: one file each, one configuration each."""

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from training.methods.amortised import Amortised
from training.methods.blob import Blob
from training.methods.c_lora import CLora
from training.methods.correlated import Correlated
from training.methods.dalorra import Dalorra
from training.methods.ensemble import Ensemble
from training.methods.laplace import Laplace
from training.methods.map import Map
from training.methods.mc_dropout import McDropout
from training.methods.method import Method
from training.methods.mle import Mle
from training.methods.random_mask import RandomMask
from training.methods.spike_slab import SpikeAndSlab
from training.methods.tfb import Tfb

METHODS: Final[tuple[type[Method], ...]] = (
    Mle,
    Map,
    McDropout,
    Ensemble,
    Laplace,
    Blob,
    Tfb,
    CLora,
    RandomMask,
    Dalorra,
    Amortised,
    Correlated,
    SpikeAndSlab,
)


def _named(section: Any) -> Any:
    """DALorRA where a section names no method."""
    return {"name": Dalorra.key(), **section} if isinstance(section, dict) else section


AnyMethod = Annotated[
    Mle
    | Map
    | McDropout
    | Ensemble
    | Laplace
    | Blob
    | Tfb
    | CLora
    | RandomMask
    | Dalorra
    | Amortised
    | Correlated
    | SpikeAndSlab,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
"""The section `method` of a configuration, told apart by its name."""

__all__ = ["METHODS", "AnyMethod", "Dalorra", "Method"]
