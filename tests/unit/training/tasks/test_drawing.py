from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalorra.questions import NO, YES, Asked
from training.tasks import TASKS, Example
from training.tasks.drawing import NONE_NAMES, Drawing
from training.tasks.recipe import recipes

ITEMS = {
    "sst2": Example({"sentence": "a fine film"}, "positive"),
    "ag_news": Example({"text": "The match ended 2 to 1."}, "Sports"),
    "trec": Example({"text": "Who wrote it ?"}, "person"),
    "boolq": Example({"question": "is it red", "passage": "It is blue."}, "False"),
    "arc_easy": Example({"question": "What melts?", "A": "ice", "B": "air", "C": "sand"}, "A"),
    "winogrande_m": Example({"question": "_ ran.", "option1": "Ian", "option2": "Bo"}, "B"),
    "clinc150": Example({"text": "what time is it"}, "time"),
    "banking77": Example({"text": "my card?"}, "card_arrival"),
}
OUT_OF_SCOPE = Example({"text": "who won the cup"}, "oos")
RIGHT = {"arc_easy": {"ice"}, "winogrande_m": {"Bo"}}
seeds = st.integers(0, 10**6)
sets = st.sampled_from(sorted(ITEMS))


def drawing(name: str) -> Drawing:
    return Drawing(recipes()[name], TASKS[name])


def names_of(name: str, label: str) -> set[str]:
    """All that a label may be called, in one spelling."""
    if name in RIGHT:
        return RIGHT[name]
    names = recipes()[name].labels[label].names or (label,)
    return {spelt(one) for one in names}


def spelt(name: str) -> str:
    return name.replace("_", " ").casefold()


@given(sets, seeds)
def test_equal_seeds_make_equal_questions(name, seed):
    one, two = (drawing(name).draw(ITEMS[name], Random(seed)) for _ in range(2))
    assert one == two


@given(sets, seeds)
def test_the_right_answer_is_an_option_and_the_only_one_that_is_right(name, seed):
    item = ITEMS[name]
    drawn, state = drawing(name).draw(item, Random(seed))
    example = drawn.about(state, name)
    options = [option.name for option in drawn.question.options]
    assert set(drawn.right) <= set(options)
    assert example.kind == name
    assert isinstance(example.input, Asked)
    if drawn.question.kind != "choice":
        return
    own = names_of(name, item.label)
    right = [option for option in options if spelt(option) in {spelt(one) for one in own}]
    none = [option for option in options if spelt(option) in NONE_NAMES]
    assert [example.label] == (right or none)


@given(seeds, st.sampled_from(["ag_news", "clinc150", "banking77"]))
def test_what_is_asked_of_a_label_is_so_unless_it_is_denied(seed, name):
    item, drawer, recipe = ITEMS[name], drawing(name), recipes()[name]
    drawn, _ = drawer.draw(item, Random(seed))
    if drawn.question.kind != "noul":
        return
    asked = drawn.question.instructions
    denied = any(
        asked.startswith(template.split("{")[0]) and asked.endswith(template.split("}")[-1])
        for way in recipe.ways
        for template in way.denies
    )
    answer = recipe.labels[item.label]
    texts = {*(answer.names or (item.label.replace("_", " "),)), *answer.means}
    about_own = any(text in asked for text in texts)
    if name != "ag_news" and not about_own:  # names of others may hold this one's: card, card fee
        assert drawn.right == (YES if denied else NO,)
    if about_own and drawn.right != ((NO if denied else YES),):
        others = [one for label, one in recipe.labels.items() if label != item.label]
        assert (
            any(text in asked for one in others for text in (*one.names, *one.means))
            or name != "ag_news"
        )


@pytest.mark.parametrize("positive", [True, False])
def test_a_review_is_what_it_is_asked_for(positive):
    item = Example({"sentence": "so"}, "positive" if positive else "negative")
    found = [drawing("sst2").draw(item, Random(seed))[0] for seed in range(300)]
    asked = {d.question.instructions: d.right[0] for d in found if d.question.kind == "noul"}
    assert asked["Is this review positive?"] == (YES if positive else NO)
    assert asked["Is it false that the reviewer liked the film?"] == (NO if positive else YES)


def test_a_level_that_nobody_knows_is_shared_out():
    item = Example({"sentence": "so"}, "positive")
    drawn = [drawing("sst2").draw(item, Random(seed))[0] for seed in range(200)]
    four = next(d for d in drawn if d.question.options[0].name == "hated it")
    example = four.about("state", "sst2")
    assert (example.label, example.target) == ("", (0.0, 0.0, 0.5, 0.5))
    two = next(d for d in drawn if d.question.kind == "score" and len(d.question.options) == 2)
    assert (two.about("", "").label, two.about("", "").target) == ("positive", None)


@given(seeds)
def test_a_state_of_another_set_leaves_open_what_it_does_not_answer(seed):
    for name, item in ITEMS.items():
        drawn, _ = drawing(name).draw(item, Random(seed), of_record=True)
        example = drawn.about_another("A state.", name)
        if example.label:
            assert example.target is None
            assert spelt(example.label) in NONE_NAMES or example.label in (YES, NO)
        else:
            count = len(drawn.question.options)
            assert example.target == (1 / count,) * count


@given(seeds)
def test_what_is_out_of_scope_is_none_of_the_options(seed):
    drawn, _ = drawing("clinc150").draw(OUT_OF_SCOPE, Random(seed))
    if drawn.question.kind == "choice":
        assert spelt(drawn.right[0]) in NONE_NAMES
    else:
        denied = (
            "other than" in drawn.question.instructions or "else" in drawn.question.instructions
        )
        assert drawn.right == (YES if denied else NO,)


@given(seeds)
def test_many_labels_become_two_to_twenty_options(seed):
    drawn, _ = drawing("banking77").draw(ITEMS["banking77"], Random(seed))
    if drawn.question.kind == "choice":
        assert 2 <= len(drawn.question.options) <= 21
        described = [
            bool(o.description) for o in drawn.question.options if spelt(o.name) not in NONE_NAMES
        ]
        assert len(set(described)) == 1


def test_states_come_as_texts_and_as_objects():
    states = {drawing("sst2").draw(ITEMS["sst2"], Random(seed))[1] for seed in range(40)}
    assert {"a fine film", "Review: a fine film", '{"review": "a fine film"}'} <= states


def test_answers_that_are_the_same_cannot_be_asked_for():
    twice = Example({"question": "What melts?", "A": "ice", "B": "ice "}, "A")
    assert not drawing("arc_easy").can_ask(twice)
    assert drawing("arc_easy").can_ask(ITEMS["arc_easy"])
    assert drawing("clinc150").can_ask(OUT_OF_SCOPE)
