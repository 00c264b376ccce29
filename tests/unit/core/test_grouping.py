from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dalorra.forward.batches import ForwardCost, cheapest_groups, forward_cost


def work(group, rows, cost):
    own = sum(rows[i] for i in group)
    return own + cost.padding * (len(group) * max(rows[i] for i in group) - own)


def price_of(groups, rows, cost):
    return sum(cost.price + work(group, rows, cost) for group in groups)


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


def check_cheapest(rows, budget, cost, candidates):
    found = cheapest_groups(rows, budget, cost)
    assert sorted(i for group in found for i in group) == list(range(len(rows)))
    fits = [
        groups
        for groups in candidates
        if all(len(g) == 1 or work(g, rows, cost) <= budget for g in groups)
    ]
    assert all(len(g) == 1 or work(g, rows, cost) <= budget for g in found)
    least = min(price_of(g, rows, cost) for g in fits)
    assert price_of(found, rows, cost) == pytest.approx(least)


ROWS = st.lists(st.integers(1, 60), max_size=7)
BUDGETS = st.integers(1, 200)


@given(rows=ROWS, budget=BUDGETS, price=st.integers(0, 50))
def test_no_split_whatever_of_padded_prompts_is_cheaper(rows, budget, price):
    check_cheapest(rows, budget, padded(price), partitions(list(range(len(rows)))))


@given(rows=ROWS, budget=BUDGETS, price=st.integers(0, 50), padding=st.sampled_from([0.0, 0.25]))
def test_no_split_of_neighbours_is_cheaper(rows, budget, price, padding):
    order = sorted(range(len(rows)), key=lambda i: -rows[i])
    cuts = [c for n in range(len(rows)) for c in combinations(range(1, len(rows)), n)] or [()]
    splits = [
        [order[a:b] for a, b in pairwise((0, *cut, len(rows)))] if rows else [] for cut in cuts
    ]
    check_cheapest(rows, budget, ForwardCost(price, padding), splits)


def padded(price):
    return ForwardCost(price, 1.0)


def test_equal_prompts_stay_together_and_a_long_one_goes_apart():
    assert cheapest_groups([50] * 8, 4096, padded(40)) == [list(range(8))]
    assert cheapest_groups([50, 51, 300, 49], 4096, padded(40)) == [[2], [1, 0, 3]]
    assert cheapest_groups([50, 51, 300, 49], 4096, padded(10_000)) == [[2, 1, 0, 3]]
    assert cheapest_groups([], 4096, padded(40)) == []


def test_joined_prompts_share_a_forward_until_attention_is_mostly_padding():
    cost = ForwardCost(40, 0.25)
    assert cheapest_groups([80, 51, 60, 49], 4096, cost) == [[0, 2, 1, 3]]
    assert cheapest_groups([50] * 9 + [1000], 4096, cost) == [[9], list(range(9))]


def test_a_prompt_beyond_the_budget_goes_alone():
    assert cheapest_groups([5000, 100, 100], 4096, padded(10**6)) == [[0], [1, 2]]


def test_a_long_list_is_quick():
    rows = [40 + i % 37 for i in range(20_000)]
    groups = cheapest_groups(rows, 4096, padded(40))
    longest = [max(rows[i] for i in group) for group in groups]
    assert all(a >= b for a, b in pairwise(longest))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_on_every_device_padding_costs_more_than_in_attention_alone(device):
    joined = forward_cost(torch.device(device), joined=True)
    padded = forward_cost(torch.device(device), joined=False)
    assert joined.price == padded.price > 0
    assert 0 < joined.padding < padded.padding == 1
