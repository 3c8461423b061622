"""The shards of a view as a sequence."""

from dataclasses import replace

import numpy as np
import pytest

from teacher_cache.format.manifest import Shard
from teacher_cache.format.shard_list import Shards, columns_of
from tests.teacher_cache.format.samples import shard

EXPECTED = tuple(replace(shard(unit, "0123456789"[unit]), num_kept=unit) for unit in range(5))


def of(shards: tuple[Shard, ...]) -> Shards:
    return Shards(view=0, columns=columns_of(0, shards))


@pytest.mark.parametrize("expected", [EXPECTED, tuple(replace(one, hidden=None) for one in EXPECTED)])
def test_it_is_read_as_a_tuple_is(expected: tuple[Shard, ...]) -> None:
    shards = of(expected)
    assert (len(shards), tuple(shards), shards[:]) == (5, expected, expected)
    assert [shards[place] for place in (0, 4, -1, -5)] == [expected[place] for place in (0, 4, -1, -5)]
    assert shards[np.int64(2)] == expected[2]
    assert (shards[1:4:2], shards[::-1], shards[9:]) == (expected[1:4:2], expected[::-1], ())
    assert expected[3] in shards
    assert list(reversed(shards)) == list(reversed(expected))


@pytest.mark.parametrize("place", [5, -6])
def test_a_place_outside_is_an_index_error(place: int) -> None:
    with pytest.raises(IndexError):
        of(EXPECTED)[place]


def test_counts_of_a_shard_are_plain_numbers() -> None:
    found = of(EXPECTED)[1]
    assert {type(value) for value in (found.unit, found.num_kept, found.labels.num_bytes)} == {int}


def test_equal_shards_are_equal_and_any_change_is_seen() -> None:
    assert of(EXPECTED) == of(EXPECTED)
    others = [
        replace(EXPECTED[2], num_tokens=61),
        replace(EXPECTED[2], hidden=shard(2, "f").hidden),
        replace(EXPECTED[2], labels=replace(EXPECTED[2].labels, num_bytes=1)),
    ]
    for other in others:
        assert of(EXPECTED) != of((*EXPECTED[:2], other, *EXPECTED[3:]))
    assert of(EXPECTED) != of(EXPECTED[:4])
    assert of(EXPECTED) != of(tuple(replace(one, hidden=None) for one in EXPECTED))
    assert of(EXPECTED) != EXPECTED


def test_any_digest_comes_back() -> None:
    """Trailing zeros are where fixed-width text would lose some."""
    for digest in ("0" * 64, "f" * 62 + "00", "00" * 31 + "01"):
        ref = replace(EXPECTED[0].labels, sha256=digest, key=f"shards/00000/000000000-{digest[:16]}.labels.parquet")
        one = replace(EXPECTED[0], labels=ref)
        assert of((one,))[0] == one
