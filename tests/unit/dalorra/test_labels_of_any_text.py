"""An adapter with labels of several tokens, from a directory to its answers."""

import pytest

from dalorra.adapter.directory import attached, read_adapter
from dalorra.errors import AdapterError
from dalorra.forward.batches import packed_row_count
from dalorra.golden import check_golden
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from tests.tiny import FORMAT, SENTENCES, save_tiny_adapter, tiny_base

LABELS = {"no": " negative", "never": " negative e", "yes": " positive", "card_arrival": " card_a"}
BY_TRIE = FORMAT.model_copy(update={"labels": LABELS})
SCOPES = pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])


@SCOPES
def test_it_is_saved_loaded_checked_and_answers(scope, tmp_path):
    base = tiny_base()
    bank = BankSpec(samples=5, head="integrated")
    folder = save_tiny_adapter(tmp_path / "adapter", base, scope, prompt=BY_TRIE, bank=bank)
    adapter = read_adapter(folder)
    tokens = adapter.manifest.label_tokens
    assert [isinstance(path, list) for path in tokens.values()] == [True] * 4
    assert tokens["no"] == [tokens["never"][0], base.tokenizer.eos_token_id]
    with attached(adapter, base) as model:
        predictor = Predictor.of(adapter, base, model)
        check_golden(predictor, model)
    prompts = [predictor.encode(sentence) for sentence in SENTENCES]
    together = predictor.predict(prompts)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = predictor.predict([prompt])
        assert list(found.probabilities) == list(LABELS)
        assert found.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        assert sum(found.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert predictor.packed_rows(prompt) == packed_row_count(prompt, 5, scope)
    for step in predictor.warm_up():
        step()


@SCOPES
@pytest.mark.parametrize("budget", [5, 30])
def test_reading_a_prompt_in_pieces_changes_nothing(budget, scope, tmp_path):
    base = tiny_base()
    adapter = read_adapter(save_tiny_adapter(tmp_path / "adapter", base, scope, prompt=BY_TRIE))
    with attached(adapter, base) as model:
        predictor = Predictor.of(adapter, base, model)
        small = Predictor.of(adapter, base, model, row_budget=budget)
    prompts = [predictor.encode(sentence) for sentence in SENTENCES]
    for found, expected in zip(small.predict(prompts), predictor.predict(prompts), strict=True):
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_labels_of_another_tokenizer_are_refused(tmp_path):
    base = tiny_base()
    folder = save_tiny_adapter(tmp_path / "adapter", base, prompt=BY_TRIE)
    path = folder / "dalorra.json"
    path.write_text(path.read_text().replace('"card_arrival": [', '"card_arrival": [7,', 1))
    adapter = read_adapter(folder)
    with (
        pytest.raises(AdapterError, match=r"label 'card_arrival' is token \[.* trained with \[7, "),
        attached(adapter, base) as model,
    ):
        Predictor.of(adapter, base, model)
