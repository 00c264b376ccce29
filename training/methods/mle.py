"""Plain LoRA, trained for maximum likelihood: no noise, no prior, one pass."""

from typing import Literal

from training.methods.plain import PlainLora


class Mle(PlainLora):
    """Plain LoRA (Hu et al., 2022)."""

    title = "plain LoRA, maximum likelihood"

    name: Literal["mle"] = "mle"
