"""Adapters as they are scored: also those that cannot be served."""

from pathlib import Path

from dalorra.adapter.directory import attached, read_adapter
from dalorra.base.model import load_base_model
from dalorra.base.quantized import Quantize
from dalorra.posteriors import Laplace
from dalorra.predictor import Predictor
from training.answers import Evaluable
from training.laplace import LaplacePredictor


def load_evaluable(
    adapter_dir: Path | str,
    base_model: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: Quantize | None = None,
    hand_made_policies: bool = False,
) -> Evaluable:
    """Loads an adapter of any method, and the base model it was trained on; see `Predictor.load`.

    Raises:
        AdapterError: the directory is damaged or does not fit the base model.
        BaseModelError: the base model cannot be had.
    """
    adapter = read_adapter(adapter_dir, hand_made_policies=hand_made_policies)
    trained_on = adapter.manifest.base_model
    base = load_base_model(
        base_model or trained_on.name,
        device=device,
        dtype=dtype,
        quantize=quantize or trained_on.quantized or "none",
    )
    if isinstance(adapter.posterior, Laplace):
        return LaplacePredictor.from_adapter(adapter, base)
    with attached(adapter, base) as model:
        return Predictor.of(adapter, base, model)
