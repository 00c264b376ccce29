"""The methods that are compared: one file each, one configuration each."""

from typing import Annotated, Any, Final

from pydantic import Discriminator, Tag

from training.methods.blob import Blob
from training.methods.c_lora import CLora
from training.methods.dalorra import Dalorra
from training.methods.ensemble import Ensemble
from training.methods.laplace import Laplace
from training.methods.map import Map
from training.methods.mc_dropout import McDropout
from training.methods.method import Method
from training.methods.mle import Mle
from training.methods.random_mask import RandomMask
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
)

DEFAULT: Final = "dalorra"


def _name(section: Any) -> Any:
    return section.get("name", DEFAULT) if isinstance(section, dict) else section.name


AnyMethod = Annotated[
    Annotated[Mle, Tag("mle")]
    | Annotated[Map, Tag("map")]
    | Annotated[McDropout, Tag("mc_dropout")]
    | Annotated[Ensemble, Tag("ensemble")]
    | Annotated[Laplace, Tag("laplace")]
    | Annotated[Blob, Tag("blob")]
    | Annotated[Tfb, Tag("tfb")]
    | Annotated[CLora, Tag("c_lora")]
    | Annotated[RandomMask, Tag("random_mask")]
    | Annotated[Dalorra, Tag("dalorra")],
    Discriminator(_name),
]
"""The section `method` of a configuration, told apart by its name."""

__all__ = ["METHODS", "AnyMethod", "Dalorra", "Method"]
