"""What a client is told of the prefix cache: no more than it sent itself."""

from hypothesis import given
from hypothesis import strategies as st

from dalorra.blocks import BLOCK
from service.engine.sent import Sent

CLIENTS = st.sampled_from([None, "a", "b"])
STATES = st.lists(st.integers(0, 1), max_size=4 * BLOCK)


def common_blocks(one: list[int], other: list[int]) -> int:
    """Tokens in whole blocks that both begin with."""
    most = min(len(one), len(other)) // BLOCK * BLOCK
    return next(n for n in range(most, -1, -BLOCK) if one[:n] == other[:n])


@given(st.lists(st.tuples(CLIENTS, STATES), max_size=20))
def test_what_was_sent_before_is_the_longest_beginning_of_the_same_client(asked):
    sent = Sent()
    for turn, (client, state) in enumerate(asked):
        own = (other for who, other in asked[:turn] if who == client)
        wanted = max((common_blocks(state, other) for other in own), default=0)
        assert sent.add(client, state) == wanted


def test_the_least_recent_is_forgotten_and_of_a_state_its_end_first():
    sent = Sent(most=4)
    old, new = ([n] * (3 * BLOCK) for n in (1, 2))
    sent.add("a", old)
    sent.add("a", new)
    assert sent.add("a", old) == BLOCK
    assert sent.add("b", old) == 0
