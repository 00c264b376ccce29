"""The HTTP service on a tiny encoder, which it does not tell from a language model."""

import pytest

from dalorra.adapter.directory import adapter_digest
from dalorra.shared_base import SharedBase
from tests.serving import serving
from tests.tiny_encoder import TEXTS, save_tiny_encoder_adapter, tiny_encoder_base


async def test_it_answers_with_an_encoder(tmp_path):
    folder = save_tiny_encoder_adapter(tmp_path / "adapter", tiny_encoder_base())
    shared = SharedBase(tiny_encoder_base(), prefix_cache_bytes=1 << 20)
    expected = shared.bind(shared.read(folder))
    async with serving(base=shared, adapter=folder) as server:
        answers = [await server.predict(text) for text in TEXTS]
        info = (await server.client.get("/info")).json()
    for text, answer in zip(TEXTS, answers, strict=True):
        assert answer.status_code == 200, answer.text
        (alone,) = expected.predict([expected.encode(text)])
        body = answer.json()
        assert body["label"] == alone.label
        assert body["probabilities"] == pytest.approx(alone.probabilities, abs=1e-5)
        assert (body["model"], body["samples"]) == ("tiny-bert", 5)
    assert adapter_digest(folder) in str(info)
