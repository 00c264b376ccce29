"""Several processes' metrics in one answer."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.instances import OneAtATime, together


def test_every_series_is_there_once_for_each_that_has_it_and_nothing_is_added_up():
    own = {}
    for name, count in (("a", 2), ("b", 5)):
        registry = own[name] = CollectorRegistry()
        answers = Counter("answers", "Answers.", ["label"], registry=registry)
        answers.labels("yes").inc(count, {"request_id": name})
        Histogram("rows", "Rows.", registry=registry, buckets=(8.0,)).observe(count)
    Counter("more", "Of one of them.", registry=own["b"]).inc(7)

    # As they travel, and as whoever is asked last would ask again.
    for _ in range(2):
        text = generate_latest(together((name, one.collect()) for name, one in own.items()))
    families = {one.name: one for one in text_string_to_metric_families(text.decode())}
    assert set(families) == {"answers", "rows", "more"}
    assert families["answers"].documentation == "Answers."
    assert {
        sample.labels["instance"]: (sample.labels["label"], sample.value, sample.exemplar.labels)
        for sample in families["answers"].samples
        if sample.name == "answers_total"
    } == {
        "a": ("yes", 2.0, {"request_id": "a"}),
        "b": ("yes", 5.0, {"request_id": "b"}),
    }
    counts = [one for one in families["rows"].samples if one.name == "rows_count"]
    assert [(one.labels, one.value) for one in counts] == [
        ({"instance": "a"}, 1.0),
        ({"instance": "b"}, 1.0),
    ]
    assert {one.labels["instance"] for one in families["more"].samples} == {"b"}


async def test_who_asks_while_an_answer_is_on_its_way_gets_that_one():
    gate, asked = asyncio.Event(), 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await gate.wait()
        return asked

    one = OneAtATime(ask)
    hasty, *others = [asyncio.create_task(one()) for _ in range(5)]
    await asyncio.sleep(0)
    hasty.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*others) == [1] * 4
    with pytest.raises(asyncio.CancelledError):
        await hasty
    assert await one() == 2


async def test_a_failure_is_everyones_and_the_next_asks_again():
    answers = iter([TimeoutError("no answer"), "an answer"])

    async def ask() -> str:
        await asyncio.sleep(0)
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    one = OneAtATime(ask)
    failures = await asyncio.gather(one(), one(), return_exceptions=True)
    assert [str(failure) for failure in failures] == ["no answer"] * 2
    assert await one() == "an answer"
