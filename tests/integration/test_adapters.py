"""Several adapters on the real base model, in a real server, loaded and replaced under load."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dalorra.adapter.directory import WEIGHTS_FILE, bundled_adapter
from dalorra.adapter.manifest import MANIFEST_FILE
from dalorra.base.model import BaseModel
from dalorra.client import AdapterRefusedError, AsyncClient, ForbiddenError, UnknownAdapterError
from dalorra.decision.novelty import NOVELTY_FILE
from dalorra.predictor import Predictor
from dalorra.shared_base import SharedBase
from tests.server_process import KEY, SENTENCES, TOLERANCE, ServerProcess, start

pytestmark = pytest.mark.integration

ADMIN_KEY = "integration-administrator"
TEXTS = SENTENCES[:3]


def perturbed(folder: Path, seed: int, **manifest: Any) -> Path:
    """A copy of the bundled adapter that answers otherwise."""
    # Its novelty features were fitted on other weights.
    shutil.copytree(bundled_adapter(), folder, ignore=shutil.ignore_patterns(NOVELTY_FILE))
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / WEIGHTS_FILE)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std()
            tensors[name] = (tensor.float() + 0.5 * noise).to(tensor.dtype)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    content = json.loads((folder / MANIFEST_FILE).read_text()) | manifest
    (folder / MANIFEST_FILE).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("roots")
    few = {"samples": 2, "head": "integrated"}
    faithful = perturbed(root / "faithful", 2, scope="all_tokens", bank=few)
    return {
        "sentiment": bundled_adapter(),
        "other": perturbed(root / "other", 1),
        "faithful": faithful,
        "other-2": perturbed(root / "other-2", 3),
    }


@pytest.fixture(scope="module")
def expected(base_model: BaseModel, folders: dict[str, Path]) -> dict[str, list[float]]:
    """Probability of `positive` for each text, in this process."""
    shared = SharedBase(base_model)
    predictors: dict[str, Predictor] = {
        name: shared.bind(shared.read(folder)) for name, folder in folders.items()
    }
    return {
        name: [
            answer.probabilities["positive"]
            for answer in predictor.predict([predictor.encode(text) for text in TEXTS])
        ]
        for name, predictor in predictors.items()
    }


@pytest.fixture
def server(folders: dict[str, Path]) -> Iterator[ServerProcess]:
    named = ",".join(f"{name}={folders[name]}" for name in ("sentiment", "other"))
    with start(
        "model", adapters=named, admin_keys=ADMIN_KEY, adapter_roots=folders["other"].parent
    ) as process:
        yield process.until_ready()


async def answers(client: AsyncClient, adapter: str) -> list[float]:
    found = await asyncio.gather(*(client.predict(text, adapter=adapter) for text in TEXTS))
    assert {one.adapter for one in found} == {adapter}
    return [one.probabilities["positive"] for one in found]


async def test_adapters_are_served_loaded_replaced_and_unloaded(
    server: ServerProcess, folders: dict[str, Path], expected: dict[str, list[float]]
) -> None:
    async with (
        AsyncClient(server.url, api_key=KEY) as client,
        AsyncClient(server.url, api_key=ADMIN_KEY) as admin,
    ):
        assert [one.name for one in await client.adapters()] == ["sentiment", "other"]
        together = await asyncio.gather(*(answers(client, name) for name in ("sentiment", "other")))
        assert together[0] == pytest.approx(expected["sentiment"], abs=TOLERANCE)
        assert together[1] == pytest.approx(expected["other"], abs=TOLERANCE)
        assert together[0] != pytest.approx(expected["other"], abs=0.002), "they differ"

        with pytest.raises(UnknownAdapterError):
            await client.predict("a", adapter="faithful")
        with pytest.raises(ForbiddenError):
            await client.load_adapter("faithful", "faithful")
        loaded, meanwhile = await asyncio.gather(
            admin.load_adapter("faithful", "faithful"), answers(client, "sentiment")
        )
        assert loaded.scope == "all_tokens"
        assert meanwhile == pytest.approx(expected["sentiment"], abs=TOLERANCE)
        assert await answers(client, "faithful") == pytest.approx(expected["faithful"], abs=1e-4)

        (folders["other-2"] / MANIFEST_FILE).rename(folders["other-2"] / "hidden")
        with pytest.raises(AdapterRefusedError, match=MANIFEST_FILE):
            await admin.load_adapter("other", "other-2")
        (folders["other-2"] / "hidden").rename(folders["other-2"] / MANIFEST_FILE)
        assert await answers(client, "other") == pytest.approx(expected["other"], abs=TOLERANCE)

        _, *during = await asyncio.gather(
            admin.load_adapter("other", "other-2"),
            *(client.predict(TEXTS[0], adapter="other") for _ in range(12)),
        )
        either = expected["other"][0], expected["other-2"][0]
        for one in during:
            found = one.probabilities["positive"]
            assert any(found == pytest.approx(value, abs=TOLERANCE) for value in either)
        assert await answers(client, "other") == pytest.approx(expected["other-2"], abs=TOLERANCE)

        left = await admin.unload_adapter("faithful")
        assert [one.name for one in left] == ["sentiment", "other"]
        assert (await client.info("other")).adapters == ("sentiment", "other")
    events = [event for event in server.events() if event["event"].startswith("adapter_")]
    assert [(event["event"], event["adapter"]) for event in events] == [
        ("adapter_loaded", "sentiment"),
        ("adapter_loaded", "other"),
        ("adapter_loaded", "faithful"),
        ("adapter_refused", "other"),
        ("adapter_loaded", "other"),
        ("adapter_unloaded", "faithful"),
    ]
