import pytest

from dalorra.base.model import BaseModel, load_base_model


@pytest.fixture(scope="session")
def base_model() -> BaseModel:
    """The real default base model on the CPU in float32; do not leave an adapter on it."""
    return load_base_model(device="cpu", dtype="float32")
