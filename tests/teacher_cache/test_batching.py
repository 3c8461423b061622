"""Micro-batches under a token budget."""

from itertools import chain, pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teacher_cache.targets.batching import group_by_tokens

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are shared
lengths_of_sequences = st.lists(st.integers(1, 100), max_size=60)
budgets = st.integers(1, 600)


@unhurried
@given(lengths_of_sequences, budgets)
def test_every_sequence_is_in_one_group(lengths: list[int], max_tokens: int) -> None:
    groups = group_by_tokens(lengths, max_tokens)
    assert sorted(chain.from_iterable(groups)) == list(range(len(lengths)))
    assert all(groups)


@unhurried
@given(lengths_of_sequences, budgets)
def test_only_a_sequence_alone_exceeds_the_budget(lengths: list[int], max_tokens: int) -> None:
    for group in group_by_tokens(lengths, max_tokens):
        padded = len(group) * max(lengths[place] for place in group)
        assert padded <= max_tokens or len(group) == 1


@unhurried
@given(lengths_of_sequences, budgets)
def test_no_group_ends_while_the_next_sequence_would_fit(lengths: list[int], max_tokens: int) -> None:
    for group, _ in pairwise(group_by_tokens(lengths, max_tokens)):
        assert (len(group) + 1) * lengths[group[0]] > max_tokens


@unhurried
@given(lengths_of_sequences, budgets)
def test_longest_come_first_and_equal_ones_keep_their_order(lengths: list[int], max_tokens: int) -> None:
    order = list(chain.from_iterable(group_by_tokens(lengths, max_tokens)))
    assert order == sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))


def test_an_example() -> None:
    assert group_by_tokens([3, 9, 4, 3, 20], 10) == [[4], [1], [2, 0], [3]]
    assert group_by_tokens([], 10) == []
