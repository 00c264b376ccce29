"""Every contender answers the same questions, and what is scaled is scaled."""

from argparse import Namespace

import pytest

from benchmarks import plans, questions
from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.llama.questions import QuestionLlama
from tests.tiny import tiny_base

OPTIONS = Namespace(
    state_tokens=[30],
    questions=[1, 3],
    readouts=["letters", "texts"],
    cue_tokens=2,
    samples=2,
    calls=2,
    repeats=2,
)


@pytest.fixture
def contenders() -> plans.Contenders:
    return plans.Contenders(tiny_base().model, samples=2)


def test_every_plan_is_measured_in_plain_passes_and_single_calls(contenders, capsys) -> None:
    results = list(questions.measure(contenders, OPTIONS))

    cases = [(readout, n) for readout in OPTIONS.readouts for n in OPTIONS.questions]
    assert [(r["readout"], r["questions"], r["plan"]) for r in results] == [
        (*case, plan) for case in cases for plan in questions.PLANS
    ]
    for case in cases:
        of = {r["plan"]: r for r in results if (r["readout"], r["questions"]) == case}
        assert of["lora"]["ratio_to_single"] == of["calls"]["share"] == 1
        assert of["loop"]["median_ms"] == pytest.approx(2 * case[1] * of["lora"]["median_ms"])
        share = of["tree"]["median_ms"] / of["calls"]["median_ms"]
        assert of["tree"]["share"] == pytest.approx(share)
        asked = sum(of["tree"]["question_tokens"])
        tail = 2 if case[0] == "letters" else 6
        assert of["tree"]["rows"] == 30 + asked + case[1] * 2 * tail
    table = questions.table(results).splitlines()
    assert len(table) == 2 + len(cases)
    assert table[-1].startswith("| texts | 30 | 3 |")


@pytest.mark.parametrize("readout", questions.OPTIONS)
def test_what_is_known_is_the_state_alone(contenders, readout, monkeypatch) -> None:
    asked = questions.Asked(contenders, 32, 3, OPTIONS, readout)
    seen: list[tuple[str, int, bool]] = []
    tree, single = QuestionLlama.answers, PackedLlama.answers

    def spied(name, answers):
        def spy(network, prompts, samples):
            cache = contenders.arranged.prefix_cache
            before = cache.tokens_found if cache else 0
            found = answers(network, prompts, samples)
            seen.append((name, len(prompts), cache is not None))
            if cache and before:
                assert cache.tokens_found - before == 32
            return found

        return spy

    monkeypatch.setattr(QuestionLlama, "answers", spied("tree", tree))
    monkeypatch.setattr(PackedLlama, "answers", spied("single", single))
    plan = asked.plans()
    for _ in range(2):
        for name in ("tree", "tree, known state", "calls", "calls, known state"):
            plan[name]()
    once = [("tree", 3, False), ("tree", 3, True)]
    once += [("single", 1, False)] * 2 + [("single", 1, True)] * 2
    assert seen == 2 * once
