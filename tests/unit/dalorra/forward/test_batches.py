"""What is taken from a queue, and how it is split into forwards."""

import random
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dalorra.forward.batches import Batching, State

BUDGETS = st.integers(1, 200)
JOINED = Batching(2048, price=40, padding=0.25, pads=False)
PADDED = Batching(4096, price=40, padding=1.0, pads=True)


def computed(group, rows, batching):
    own = [rows[i] for i in group]
    return max(own) * len(own) if batching.pads else sum(own)


def fits(group, rows, batching):
    return len(group) == 1 or computed(group, rows, batching) <= batching.budget


# --- what is taken ---


def in_order_of_nearness(rows, batching):
    """Those that fit, asked one after the other."""
    batch = [0]
    for i in sorted(range(1, len(rows)), key=lambda i: (abs(rows[i] - rows[0]), i)):
        if computed([*batch, i], rows, batching) <= batching.budget:
            batch.append(i)
    return set(batch)


@given(
    rows=st.lists(st.integers(1, 60), min_size=1, max_size=30), budget=BUDGETS, pads=st.booleans()
)
def test_what_is_taken_fits_and_nothing_that_is_left_would_have_fitted_as_well(rows, budget, pads):
    batching = Batching(budget, price=0, padding=0.25, pads=pads)
    taken = batching.take(rows)
    assert taken[0] == 0, "the oldest is always among them"
    assert taken == sorted(set(taken))
    assert set(taken) <= set(range(len(rows)))
    assert fits(taken, rows, batching)
    left = set(range(len(rows))) - set(taken)
    assert all(computed([*taken, i], rows, batching) > budget for i in left)
    nearest = in_order_of_nearness(rows, batching)
    if pads or computed(nearest, rows, batching) >= 0.95 * budget:
        assert set(taken) == nearest, "of two lengths the nearer, of two equal ones the older"
        return
    assert len(nearest - set(taken)) <= 1, "one may make room for one that fills it better"
    better = [
        rows[i] - rows[out]
        for i in set(range(len(rows))) - nearest
        for out in nearest - {0}
        if computed(nearest, rows, batching) + rows[i] - rows[out] <= budget
    ]
    gain = computed(taken, rows, batching) - computed(nearest, rows, batching)
    assert gain == max([0, *better])


@pytest.mark.parametrize(("waiting", "under"), [((16, 31), 0.01), ((32, 64), 0.0)])
def test_where_enough_waits_the_budget_is_filled(waiting, under):
    chooser, shares = random.Random(0), []
    while len(shares) < 2000:
        rows = [chooser.randint(76, 236) for _ in range(chooser.randint(*waiting))]
        if sum(rows) >= JOINED.budget:
            shares.append(computed(JOINED.take(rows), rows, JOINED) / JOINED.budget)
    assert sum(share < 0.95 for share in shares) <= under * len(shares)
    assert min(shares) > 0.94


def test_a_long_one_goes_alone_and_short_ones_go_together():
    assert JOINED.take([5000, 100, 5000]) == [0]
    assert JOINED.take([100, 5000, 90, 5000, 110]) == [0, 2, 4]
    assert replace(PADDED, budget=300).take([100, 10, 101, 99, 100]) == [0, 3, 4]
    assert replace(JOINED, budget=300).take([100, 10, 101, 99, 100]) == [0, 3, 4]
    assert replace(JOINED, budget=310).take([100, 10, 102, 99, 100]) == [0, 1, 3, 4]


# --- questions about states ---


def rows_together(places, rows, states):
    """Of a forward: own rows, and every state once."""
    read = {states[i].name: states[i].rows for i in places}
    return sum(rows[i] for i in places) + sum(read.values())


QUESTIONS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 4)), min_size=1, max_size=30)
SIZES = st.lists(st.integers(0, 150), min_size=5, max_size=5)


@given(asked=QUESTIONS, sizes=SIZES, budget=BUDGETS)
def test_questions_about_the_state_of_the_first_fill_the_budget_before_others(asked, sizes, budget):
    rows, states = [own for own, _ in asked], [State(name, sizes[name]) for _, name in asked]
    taken = replace(JOINED, budget=budget).take(rows, states)
    assert taken[0] == 0
    assert taken == sorted(set(taken))
    own = [i for i in taken if states[i].name == states[0].name]
    total = sum(rows[i] for i in own)
    assert total <= budget or own == [0]
    left = set(range(len(rows))) - set(taken)
    assert all(total + rows[i] > budget for i in left if states[i].name == states[0].name), (
        "what the state itself takes is in nobody's way"
    )
    if taken != own:
        assert rows_together(taken, rows, states) <= budget
    if rows_together(own, rows, states) > budget:
        return
    for name in {states[i].name for i in left} - {states[0].name}:
        others = [i for i in left if states[i].name == name]
        if sizes[name] <= JOINED.price:
            assert all(rows_together([*taken, i], rows, states) > budget for i in others)
        else:
            assert not any(states[i].name == name for i in taken), "it would be read twice"
            assert rows_together([*taken, *others], rows, states) > budget


def test_a_state_that_is_shared_counts_once():
    rows, long, short = [60] * 5, State("long", 1800), State("short", 90)
    assert JOINED.take(rows, [long] * 5) == [0, 1, 2, 3, 4]
    assert replace(JOINED, budget=200).take(rows, [long] * 5) == [0, 1, 2]
    assert replace(JOINED, budget=400).take(rows, [short, long, short, short, short]) == [
        0,
        2,
        3,
        4,
    ]
    assert replace(JOINED, budget=400).take(rows, [State(i, 90) for i in range(5)]) == [0, 1]


# --- how it is split ---


def price_of(groups, rows, batching):
    total = 0.0
    for group in groups:
        own = sum(rows[i] for i in group)
        slots = len(group) * max(rows[i] for i in group)
        total += batching.price + own + batching.padding * (slots - own)
    return total


def partitions(items):
    """All ways to split a list into groups."""
    if not items:
        yield []
        return
    head, *tail = items
    for some in partitions(tail):
        yield [[head], *some]
        for i, group in enumerate(some):
            yield [*some[:i], [head, *group], *some[i + 1 :]]


def check_cheapest(rows, batching, candidates):
    found = batching.forwards(rows)
    assert sorted(i for group in found for i in group) == list(range(len(rows)))
    allowed = [c for c in candidates if all(fits(group, rows, batching) for group in c)]
    assert all(fits(group, rows, batching) for group in found)
    least = min(price_of(c, rows, batching) for c in allowed)
    assert price_of(found, rows, batching) == pytest.approx(least)


ROWS = st.lists(st.integers(1, 60), max_size=7)


@given(rows=ROWS, budget=BUDGETS, price=st.integers(0, 50))
def test_no_split_whatever_of_padded_prompts_is_cheaper(rows, budget, price):
    batching = Batching(budget, price, padding=1.0, pads=True)
    check_cheapest(rows, batching, partitions(list(range(len(rows)))))


@given(rows=ROWS, budget=BUDGETS, price=st.integers(0, 50), padding=st.sampled_from([0.0, 0.25]))
def test_no_split_of_neighbours_is_cheaper(rows, budget, price, padding):
    order = sorted(range(len(rows)), key=lambda i: -rows[i])
    cuts = [c for n in range(len(rows)) for c in combinations(range(1, len(rows)), n)] or [()]
    splits = [
        [order[a:b] for a, b in pairwise((0, *cut, len(rows)))] if rows else [] for cut in cuts
    ]
    check_cheapest(rows, Batching(budget, price, padding, pads=False), splits)


def test_equal_prompts_stay_together_and_a_long_one_goes_apart():
    assert PADDED.forwards([50] * 8) == [list(range(8))]
    assert PADDED.forwards([50, 51, 300, 49]) == [[2], [1, 0, 3]]
    assert replace(PADDED, price=10_000).forwards([50, 51, 300, 49]) == [[2, 1, 0, 3]]
    assert PADDED.forwards([]) == []


def test_joined_prompts_share_a_forward_until_attention_is_mostly_padding():
    assert JOINED.forwards([80, 51, 60, 49]) == [[0, 2, 1, 3]]
    assert JOINED.forwards([50] * 9 + [1000]) == [[9], list(range(9))]


def test_a_prompt_beyond_the_budget_goes_alone():
    assert replace(PADDED, price=10**6).forwards([5000, 100, 100]) == [[0], [1, 2]]


def test_a_long_list_is_quick():
    rows = [40 + i % 37 for i in range(20_000)]
    longest = [max(rows[i] for i in group) for group in PADDED.forwards(rows)]
    assert all(a >= b for a, b in pairwise(longest))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_on_every_device_padding_costs_more_than_in_attention_alone(device):
    joined, padded = (
        Batching.on(torch.device(device), pads=pads, budget=7) for pads in (False, True)
    )
    assert joined.budget == padded.budget == 7
    assert joined.price == padded.price > 0
    assert 0 < joined.padding < padded.padding == 1
    assert (joined.pads, padded.pads) == (False, True)
