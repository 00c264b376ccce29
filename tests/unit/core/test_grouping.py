from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dalorra.grouping import cheapest_groups, forward_rows, full_groups


def price_of(groups, rows, price):
    return sum(price + len(group) * max(rows[i] for i in group) for group in groups)


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


@given(
    rows=st.lists(st.integers(1, 60), max_size=7),
    budget=st.integers(1, 200),
    price=st.integers(0, 50),
)
def test_no_split_whatever_is_cheaper(rows, budget, price):
    found = cheapest_groups(rows, budget, price)
    assert sorted(i for group in found for i in group) == list(range(len(rows)))
    fits = [
        groups
        for groups in partitions(list(range(len(rows))))
        if all(len(g) == 1 or len(g) * max(rows[i] for i in g) <= budget for g in groups)
    ]
    assert {frozenset(g) for g in found} in [{frozenset(g) for g in groups} for groups in fits]
    assert price_of(found, rows, price) == min(price_of(g, rows, price) for g in fits)


def test_equal_prompts_stay_together_and_a_long_one_goes_apart():
    assert cheapest_groups([50] * 8, 4096, 40) == [list(range(8))]
    assert cheapest_groups([50, 51, 300, 49], 4096, 40) == [[2], [1, 0, 3]]
    assert cheapest_groups([50, 51, 300, 49], 4096, 10_000) == [[2, 1, 0, 3]]
    assert cheapest_groups([], 4096, 40) == []


def test_a_prompt_beyond_the_budget_goes_alone():
    assert cheapest_groups([5000, 100, 100], 4096, 10**6) == [[0], [1, 2]]


def test_a_long_list_is_quick():
    rows = [40 + i % 37 for i in range(20_000)]
    groups = cheapest_groups(rows, 4096, 40)
    longest = [max(rows[i] for i in group) for group in groups]
    assert all(a >= b for a, b in pairwise(longest))


@given(rows=st.lists(st.integers(1, 60), max_size=20), budget=st.integers(1, 200))
def test_joined_prompts_fill_one_forward_after_the_other(rows, budget):
    groups = full_groups(rows, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(rows)))
    assert all(len(group) == 1 or sum(rows[i] for i in group) <= budget for group in groups)
    ordered = [rows[i] for group in groups for i in group]
    assert ordered == sorted(rows, reverse=True), "prompts of like length are together"
    for group, following in pairwise(groups):
        assert sum(rows[i] for i in group) + rows[following[0]] > budget, "it was full"


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_every_device_has_a_price(device):
    assert forward_rows(torch.device(device)) > 0
