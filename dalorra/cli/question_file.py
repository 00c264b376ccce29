"""A question in a file, written as `/v1/systemone` takes it."""

import json
from pathlib import Path

from dalorra.errors import ConfigError, first_fault
from dalorra.questions import LIMITS, Question


def read_question(path: Path) -> Question:
    """Reads `type`, `instructions` and `criteria` from YAML or JSON.

    Raises:
        ConfigError: there is no such file, or it holds no question.
    """
    from pydantic import TypeAdapter, ValidationError

    from service.api.systemone import TypedQuestion, question_of
    from service.errors import InvalidBodyError
    from training.yaml_file import read_yaml

    content = json.dumps(read_yaml(path, f"question {path}"), default=str)
    try:
        return question_of(TypeAdapter(TypedQuestion).validate_json(content))
    except ValidationError as error:
        raise ConfigError(
            f"question {path}: {first_fault(error, unnamed=LIMITS)}; write it as a question of "
            "/v1/systemone: type, instructions and criteria"
        ) from error
    except InvalidBodyError as error:
        raise ConfigError(f"question {path}: {error.faults[0].message}") from error
