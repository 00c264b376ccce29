"""One event per line, ours and the libraries'; never the value of a variable."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from service.logs import adopt_logger, configure_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root, ours, before = logging.getLogger(), logging.getLogger("dalorra"), structlog.get_config()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    ours.setLevel(logging.NOTSET)
    logging.captureWarnings(capture=False)
    structlog.configure(**before)


def fail() -> None:
    secret = " ".join(["the", "input's", "text"])  # so that the source does not show its value
    raise ValueError(len(secret))


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_has_no_values(capsys: pytest.CaptureFixture[str], log_format: str):
    configure_logging("info", log_format)  # type: ignore[arg-type]

    try:
        fail()
    except ValueError as error:
        structlog.get_logger("dalorra.test").error("failed", exc_info=error)

    shown = capsys.readouterr().err
    assert "ValueError: 16" in shown
    assert "in fail" in shown
    assert "the input's text" not in shown


def test_libraries_log_through_the_same_handler(capsys: pytest.CaptureFixture[str]):
    configure_logging("info", "json")

    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger("dalorra.test").info("ours", rows=3)
        logging.getLogger("library").warning("theirs %d", 4)
        logging.getLogger("library").info("said better by us")
    structlog.get_logger("dalorra.test").debug("too quiet")

    ours, theirs = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["rows"], ours["request_id"]) == ("ours", 3, "r-1")
    assert (ours["logger"], ours["level"]) == ("dalorra.test", "info")
    assert (theirs["event"], theirs["logger"]) == ("theirs 4", "library")
    assert theirs["request_id"] == "r-1"
    assert {"timestamp"} <= set(ours) & set(theirs)


def test_a_library_with_a_handler_of_its_own_is_adopted(capsys: pytest.CaptureFixture[str]):
    library = logging.getLogger("selfish")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    configure_logging("info", "json")

    adopt_logger("selfish")
    library.warning("mine")

    assert json.loads(capsys.readouterr().err)["event"] == "mine"
