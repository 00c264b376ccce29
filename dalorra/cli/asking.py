"""Answers without a server."""

from dataclasses import asdict
from typing import Annotated

import typer

from dalorra.cli.console import print_json
from dalorra.cli.options import AdapterDir, BaseModelOption, Device, Dtype, assignments
from dalorra.errors import ConfigError


def predict(
    text: Annotated[str | None, typer.Argument(help="The input, for one-field templates.")] = None,
    field: Annotated[
        list[str] | None, typer.Option("--field", "-f", help="name=value, for templates with more.")
    ] = None,
    adapter: AdapterDir = None,
    base_model: BaseModelOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Answer one input and print the prediction as JSON."""
    if (text is None) == (not field):
        raise ConfigError("give either one text or --field name=value for each of its fields")
    from dalorra.predictor import Predictor

    predictor = Predictor.load(adapter, base_model, device=device, dtype=dtype)
    prompt = predictor.encode(text if text is not None else assignments(field or (), "--field"))
    (prediction,) = predictor.predict([prompt])
    verdict = predictor.policy.decide(
        prediction.probability, prediction.variance, prediction.novelty
    )
    print_json(
        asdict(prediction)
        | {"decision": verdict.decision, "reason": verdict.reason, "truncated": prompt.truncated}
        | {"model": predictor.model_name, "adapter": predictor.adapter_name}
    )
