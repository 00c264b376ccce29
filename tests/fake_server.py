"""The real server, in a process of its own, around a fake predictor for each of its adapters.

`python -m tests.fake_server '{"port": 0}' '{"seconds": 0.1, "load_seconds": 1}'`; with
`"questions": true` it answers typed questions.
"""

import json
import sys
import time
from typing import Any

from service.adapters import Base
from service.app import create_app
from service.logs import configure_logging
from service.run import serve_app
from service.settings import load_settings
from tests.fakes import FakeBase, FakePredictor, FakeQuestions
from tests.questions import POSITIVE


def main(settings_json: str, predictor_json: str) -> None:
    settings = load_settings(**json.loads(settings_json))
    options = {"batch_rows": settings.batch_rows, **json.loads(predictor_json)}
    load_seconds = options.pop("load_seconds", 0)
    questions = options.pop("questions", False)

    def predictor(**options: Any) -> FakePredictor:
        made = FakeQuestions(**options) if questions else FakePredictor(**options)
        made.registered = () if questions else (POSITIVE,)
        return made

    def load(_: object) -> Base:
        time.sleep(load_seconds)
        if settings.adapters:
            return FakeBase(**{name: predictor(**options) for name in settings.adapters})
        return predictor(**options)

    configure_logging(settings.log_level, settings.log_format)
    serve_app(create_app(settings, load), settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
