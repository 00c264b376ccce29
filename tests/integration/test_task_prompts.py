import pytest

from dalorra.prompts import PromptTokenizer
from training.tasks import TASKS

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_built_in_label_is_one_token_of_the_default_base(base_model, task):
    tokenizer = PromptTokenizer(base_model.tokenizer, task.prompt_format)
    decoded = [base_model.tokenizer.decode([token]) for token in tokenizer.label_ids]
    assert decoded == list(task.labels.values())
