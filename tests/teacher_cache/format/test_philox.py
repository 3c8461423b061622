"""Random words that must never change: every cache's masks depend on them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.format import philox

WORD = st.integers(0, 2**64 - 1)
LOW = 2**64 - 1

GOLDEN_KEY = (4311718179836986729, 13628483257143034293)
GOLDEN_WORDS = [9401010118270104616, 3297579639818096913, 6992928804199809522]


def reference_block(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox 4x64 with 10 rounds, written down from Salmon et al. 2011."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * x0, 0xCA5A826395121157 * x2
        x0, x1, x2, x3 = (right >> 64) ^ x1 ^ k0, right & LOW, (left >> 64) ^ x3 ^ k1, left & LOW
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & LOW, (k1 + 0xBB67AE8584CAA73B) & LOW
    return [x0, x1, x2, x3]


def test_the_reference_gives_the_published_answer() -> None:
    """Of Random123's kat_vectors, philox4x64 with 10 rounds, all zero."""
    answer = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert reference_block((0, 0, 0, 0), (0, 0)) == answer


@given(key=st.tuples(WORD, WORD), stream=WORD, index=WORD, size=st.integers(0, 9))
def test_words_are_those_of_philox(key: philox.Key, stream: int, index: int, size: int) -> None:
    words = [word for block in (1, 2, 3) for word in reference_block((block, stream, index, 0), key)]
    assert philox.words(key, stream=stream, index=index, size=size).tolist() == words[:size]


def test_golden_words() -> None:
    """Of a key with one word below 2^63 and one above, which NumPy's own conversion would round."""
    key = philox.key_of("golden", 15)
    assert key == GOLDEN_KEY
    assert philox.words(key, stream=1, index=2, size=3).tolist() == GOLDEN_WORDS


def test_keys_depend_on_every_part_and_its_place() -> None:
    keys = [philox.key_of(*parts) for parts in (("a", 1, 2), ("a", 2, 1), ("a", 12), ("a1", 2), ("a", 1), ("b", 1, 2))]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("word", "uniform"), [(0, 0.0), (2**63, 0.5), (2**64 - 1, 1 - 2.0**-53), (2**11 - 1, 0.0)])
def test_uniforms_lie_on_a_grid_below_one(word: int, uniform: float) -> None:
    assert philox.uniforms(np.array([word], dtype=np.uint64)).tolist() == [uniform]


def test_uniforms_are_uniform() -> None:
    drawn = philox.uniforms(philox.words((1, 2), stream=0, index=0, size=100_000))
    counts = np.histogram(drawn, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 500  # five standard deviations


@given(st.lists(WORD, max_size=20))
def test_permutation_sorts_and_leaves_equal_words_in_order(words: list[int]) -> None:
    order = philox.permutation(np.array(words, dtype=np.uint64)).tolist()
    assert order == sorted(range(len(words)), key=lambda place: (words[place], place))
