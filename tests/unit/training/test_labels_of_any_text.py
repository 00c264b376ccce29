"""Training with labels of several tokens."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.layer import module_tensors
from dalorra.errors import ConfigError
from dalorra.forward.reference import answer_logits
from dalorra.predictor import Predictor
from dalorra.prompts import PromptTokenizer
from tests.tiny import FORMAT, SENTENCES, tiny_adapter, tiny_base
from training.methods import Dalorra
from training.objective import Objective
from training.prompt_cache import PromptCache
from training.run import train

LABELS = {"negative": " not_good", "positive": " not_bad"}


@pytest.fixture
def task(files, tmp_path) -> str:
    """The reviews, with other texts for their labels."""
    content = yaml.safe_load((files / "task.yaml").read_text()) | {"labels": LABELS}
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_a_run_learns_them_and_its_adapter_answers_as_it_was_scored(
    scope, task, configure, no_figures, answers_as_evaluated, tmp_path, files
):
    path = configure(task=task, adapter={"scope": scope}, optimizer={"steps": 30})
    adapter = read_adapter(train(path, overrides={}))
    paths = adapter.manifest.label_tokens
    assert paths["negative"][:4] == paths["positive"][:4]
    assert adapter.manifest.prompt.labels == LABELS
    predictor = Predictor.load(adapter.path, str(files / "base"), device="cpu", dtype="float32")
    answers_as_evaluated(predictor)
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    nll = [entry["nll"] for entry in map(json.loads, log) if "nll" in entry]
    assert sum(nll[-8:]) < 0.8 * sum(nll[:8])


def test_the_prompts_keys_are_computed_once_for_a_trie_as_well():
    base = tiny_base()
    tokenizer = PromptTokenizer(base.tokenizer, FORMAT.model_copy(update={"labels": LABELS}))
    prompts = [tokenizer.encode(sentence) for sentence in SENTENCES]
    model = tiny_adapter(base)
    labels = tokenizer.labels_on(torch.device("cpu"))
    cache = PromptCache(1 << 24)
    method = Dalorra()
    loss_of = Objective(method, labels, "answer_tokens", 10, cache)
    samples = torch.tensor([[0], [1], [2], [3]])
    bank = method.draw(module_tensors(model), 4, torch.Generator().manual_seed(1))
    found, rows = loss_of.logits(model, prompts, samples, bank)
    torch.testing.assert_close(
        found, answer_logits(model, rows, bank, labels), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"name": "laplace"}}, "method.name: laplace is not for labels of several"),
        ({"bank": {"head": "integrated"}}, "bank.head: the head cannot be integrated"),
    ],
)
def test_what_does_not_go_with_them_is_refused_before_training(changes, message, task, configure):
    path: Path = configure(task=task, **changes)
    with pytest.raises(ConfigError, match=message):
        train(path, overrides={})
