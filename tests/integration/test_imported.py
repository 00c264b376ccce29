"""A LoRA of PEFT's, imported, answers over HTTP as PEFT does."""

import httpx
import pytest
import torch

from tests.plain_loras import by_peft, plain_lora
from tests.server_process import HEADERS, SENTENCES, start
from tests.tiny import EVERY_LINEAR, FORMAT, tiny_base, tiny_base_model, tiny_llama, tiny_prompts
from training.importing import Wanted, import_loras
from training.methods.mle import Mle
from training.tasks import Task

pytestmark = pytest.mark.integration


def test_it_answers_over_http(tmp_path):
    base, model = tiny_base_model(tmp_path / "base"), tiny_llama()
    source = plain_lora(
        tmp_path / "lora", model, base=str(base), target_modules=list(EVERY_LINEAR), use_rslora=True
    )
    task = Task(name="reviews", **FORMAT.model_dump())
    folder = tmp_path / "imported"
    import_loras(source, folder, Wanted("reviews", task, Mle()), device="cpu", dtype="float32")
    sentences = tuple(SENTENCES[:5])
    with start("real", adapter=folder, base_model=base) as server:
        server.until_ready()
        body = {"inputs": list(sentences)}
        answer = httpx.post(f"{server.url}/predict/batch", json=body, headers=HEADERS).json()
    found = [list(one["probabilities"].values()) for one in answer["predictions"]]
    prompts = tiny_prompts(tiny_base(), sentences)
    label_ids = [tiny_base().tokenizer.convert_tokens_to_ids(f"Ġ{name}") for name in FORMAT.labels]
    expected = by_peft(source, model, prompts, label_ids)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-4)
    assert {one["decision"] for one in answer["predictions"]} == {"escalate"}
