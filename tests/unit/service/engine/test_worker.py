"""What a failing forward does to its batch, and the model thread."""

import threading
from dataclasses import replace

import pytest

from service.engine.worker import ModelThread, Worker
from service.errors import UnavailableError
from tests.fakes import FakePredictor, expected_prediction


@pytest.fixture
def predictor() -> FakePredictor:
    return FakePredictor()


def test_a_poisoned_input_does_not_fail_its_neighbours(predictor: FakePredictor):
    prompts = [predictor.encode(text) for text in ("a", "b", "☠", "d", "e", "f", "g")]

    results = Worker().run(predictor, prompts)

    assert isinstance(results[2], RuntimeError)
    healthy = [*prompts[:2], *prompts[3:]]
    assert [*results[:2], *results[3:]] == [expected_prediction(one) for one in healthy]
    # 7 = 3 + 4, 3 = 1 + 2, 2 = 1 + 1: halving, not seven times one.
    assert [len(batch) for batch in predictor.batches] == [7, 3, 1, 2, 1, 1, 4]


def test_a_batch_too_large_for_the_memory_succeeds_in_parts(predictor: FakePredictor):
    predictor.most = 2
    prompts = [predictor.encode(text) for text in "abcde"]

    assert Worker().run(predictor, prompts) == [expected_prediction(one) for one in prompts]


def test_an_input_that_fails_alone_does_not_condemn_the_device(predictor: FakePredictor):
    worker = Worker()
    good = predictor.encode("good")
    worker.run(predictor, [good])

    [error] = worker.run(predictor, [predictor.encode("☠")])

    assert isinstance(error, RuntimeError)
    assert predictor.batches[-1] == [good]  # asked again, to tell the input from the device


def test_a_device_that_fails_even_what_it_could_do_is_broken(predictor: FakePredictor):
    worker = Worker()
    prompts = [predictor.encode("good")]
    worker.run(predictor, prompts)
    predictor.broken = True

    with pytest.raises(UnavailableError):
        worker.run(predictor, prompts)


def test_a_device_that_never_did_anything_is_asked_to_warm_up(predictor: FakePredictor):
    predictor.broken = True

    with pytest.raises(UnavailableError):
        Worker().run(predictor, [predictor.encode("first")])


@pytest.mark.parametrize("field", ["probability", "variance"])
def test_a_number_that_is_none_is_a_failure(predictor: FakePredictor, field: str):
    bad = replace(expected_prediction(predictor.encode("x")), **{field: float("nan")})
    predictor.predict = lambda prompts: [bad for _ in prompts]  # type: ignore[method-assign]

    # Nothing was ever known to be good and warming up works, so the device is not to blame.
    [error] = Worker().run(predictor, [predictor.encode("x")])

    assert isinstance(error, FloatingPointError)


def test_a_predictor_that_loses_an_answer_fails_its_batch(predictor: FakePredictor):
    predictor.predict = lambda prompts: []  # type: ignore[method-assign]

    [error] = Worker().run(predictor, [predictor.encode("x")])

    assert "1 prompts gave 0 predictions" in str(error)


def test_the_model_thread_is_one_thread_and_survives_exceptions():
    thread = ModelThread()

    def fail() -> None:
        raise SystemExit("no")

    failed = thread.submit(fail)
    names = {thread.submit(lambda: threading.current_thread().name).result(5) for _ in range(20)}

    assert isinstance(failed.exception(5), SystemExit)
    assert names == {"model"}
    thread.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        thread.submit(fail)


def test_the_model_thread_skips_what_was_cancelled():
    thread = ModelThread()
    gate = threading.Event()
    ran: list[int] = []
    thread.submit(gate.wait)
    cancelled = thread.submit(ran.append, 1)
    last = thread.submit(ran.append, 2)

    assert cancelled.cancel()
    gate.set()
    last.result(5)

    assert ran == [2]
    thread.shutdown()
