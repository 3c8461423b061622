"""Micro-batches of like length under a token budget."""

from collections.abc import Sequence


def group_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Places of sequences, longest first, grouped so that no group's padded size exceeds `max_tokens`.

    A sequence that is longer than the budget forms a group of its own. Equal lengths keep their order, so the
    groups are a pure function of the lengths.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups
