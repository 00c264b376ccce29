import pytest

from dalorra.prompts import PromptTokenizer
from training.tasks import TASKS

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_built_in_labels_are_one_token_of_the_default_base_but_for_intents(base_model, task):
    tokenizer = PromptTokenizer(base_model.tokenizer, task.prompt_format)
    decoded = [base_model.tokenizer.decode(path) for path in tokenizer.label_paths]
    end = base_model.tokenizer.eos_token
    assert [text.removesuffix(end) for text in decoded] == list(task.labels.values())
    assert (tokenizer.trie is None) == (len(decoded) < 20)
