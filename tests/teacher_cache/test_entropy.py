"""The entropy coder: what goes in comes out, in about as many bits as there must be."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teacher_cache.errors import UserError
from teacher_cache.targets import entropy
from teacher_cache.targets.entropy import MAX_SYMBOLS, TOTAL, Decoder, Tables, encode, make_tables

GOLDEN = "ce711000000000100070"
"""Of this version's coder: caches depend on it."""

Steps = list[tuple[np.ndarray, np.ndarray]]

unhurried = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def drawn_steps(seed: int, *, lanes: list[int], num_tables: int, num_symbols: int) -> tuple[Tables, Steps]:
    """Skewed random tables, and symbols drawn by them: one step for each of `lanes`, on so many lanes."""
    random = np.random.default_rng(seed)
    tables = make_tables(random.dirichlet(np.full(num_symbols, 0.3), size=num_tables) + 1e-6)
    steps = []
    for size in lanes:
        rows = random.integers(num_tables, size=size)
        bounds = tables.frequencies[rows].astype(int).cumsum(axis=1)
        steps.append((rows, (random.integers(TOTAL, size=(size, 1)) >= bounds).sum(axis=1)))
    return tables, steps


def decoded(data: bytes, tables: Tables, steps: Steps) -> list[np.ndarray]:
    decoder = Decoder(data, tables, num_lanes=max((len(rows) for rows, _ in steps), default=0))
    symbols = [decoder.step(rows) for rows, _ in steps]
    decoder.finish()
    return symbols


class TestRoundTrip:
    @unhurried
    @given(
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(0, 20), max_size=30),
        st.integers(1, 5),
        st.integers(2, MAX_SYMBOLS),
    )
    def test_symbols_come_back(self, seed: int, lanes: list[int], num_tables: int, num_symbols: int) -> None:
        tables, steps = drawn_steps(seed, lanes=lanes, num_tables=num_tables, num_symbols=num_symbols)
        for (_, symbols), found in zip(steps, decoded(encode(steps, tables), tables, steps), strict=True):
            np.testing.assert_array_equal(found, symbols)

    def test_symbols_that_are_almost_certain_and_almost_impossible_come_back(self) -> None:
        tables = Tables(np.array([[TOTAL - 1, 1], [1, TOTAL - 1]], dtype=np.uint16))
        steps = [(np.array([0, 1, 0]), np.array([place % 2, place // 2 % 2, 0])) for place in range(200)]
        for (_, symbols), found in zip(steps, decoded(encode(steps, tables), tables, steps), strict=True):
            np.testing.assert_array_equal(found, symbols)

    def test_nothing_is_no_bytes(self) -> None:
        tables = make_tables(np.ones((1, 2)))
        assert encode([], tables) == b""
        assert decoded(b"", tables, []) == []

    def test_bytes_do_not_change(self) -> None:
        tables = Tables(np.array([[2048, 1024, 1024]], dtype=np.uint16))
        steps = [(np.zeros(2, int), np.array([place % 3, 0])) for place in range(12)]
        assert encode(steps, tables).hex() == GOLDEN


class TestBits:
    def test_they_are_close_to_the_fewest(self) -> None:
        tables, steps = drawn_steps(7, lanes=[50] * 400, num_tables=4, num_symbols=40)
        ideal = sum(float(tables.bits[rows, symbols].sum()) for rows, symbols in steps) / 8
        assert ideal < len(encode(steps, tables)) < ideal * 1.002 + 50 * 4

    def test_a_certain_symbol_costs_next_to_nothing(self) -> None:
        tables = make_tables(np.array([[0, 9, 0]]))
        steps = [(np.zeros(10, int), np.ones(10, int))] * 100
        assert tables.bits[0, 1] < 4e-4
        assert len(encode(steps, tables)) <= 10 * 4 + 2


class TestDamage:
    def test_streams_of_another_length_are_refused(self) -> None:
        tables, steps = drawn_steps(3, lanes=[9] * 40, num_tables=2, num_symbols=9)
        data = encode(steps, tables)
        for wrong in (*(data[:size] for size in range(len(data))), data + b"\0", data + b"\0\0"):
            with pytest.raises(UserError, match="damaged"):
                decoded(wrong, tables, steps)

    @unhurried
    @given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
    def test_flipped_bits_are_refused_or_change_symbols(self, seed: int, place: int) -> None:
        tables, steps = drawn_steps(seed, lanes=[4] * 20, num_tables=2, num_symbols=9)
        data = bytearray(encode(steps, tables))
        data[place // 8 % len(data)] ^= 1 << place % 8
        try:
            found = decoded(bytes(data), tables, steps)
        except UserError:
            return
        assert any((symbols != other).any() for (_, symbols), other in zip(steps, found, strict=True))


class TestTables:
    @unhurried
    @given(st.lists(st.lists(st.integers(0, 10**6), min_size=5, max_size=5), min_size=1, max_size=4))
    def test_counted_symbols_can_be_coded_and_others_cannot(self, counts: list[list[int]]) -> None:
        tables = make_tables(np.array(counts))
        assert (tables.frequencies.sum(axis=1) == TOTAL).all()
        for row, frequencies in zip(counts, tables.frequencies, strict=True):
            assert (frequencies[np.array(row) > 0] > 0).all()
            if np.count_nonzero(row) >= 2:
                assert (frequencies[np.array(row) == 0] == 0).all()

    @pytest.mark.parametrize(
        "frequencies",
        [
            [[TOTAL - 1, 0]],
            [[TOTAL, 1]],
            [[TOTAL, 0]],
            [[TOTAL // 2, TOTAL // 2], [0, 0]],
            [[16] * 256 + [0]],
        ],
    )
    def test_what_is_no_table_is_refused(self, frequencies: list[list[int]]) -> None:
        with pytest.raises(UserError, match="frequencies of an entropy coder"):
            Tables(np.array(frequencies, dtype=np.uint16))

    def test_a_symbol_that_its_table_does_not_know_is_a_mistake_of_the_caller(self) -> None:
        tables = make_tables(np.array([[1, 1, 0]]))
        with pytest.raises(ValueError, match="does not know"):
            encode([(np.array([0]), np.array([2]))], tables)


class TestLanes:
    @pytest.mark.parametrize("num_positions", [0, 1, 2, 3, 4, 5, 7, 8, 9, 100])
    def test_each_position_has_one_lane_and_turn(self, num_positions: int) -> None:
        size = entropy.num_lanes(num_positions)
        turns = list(entropy.turns(num_positions))
        assert [place for turn in turns for place in range(num_positions)[turn]] == list(range(num_positions))
        assert all(turn.start == size * index for index, turn in enumerate(turns))
        assert all(turn.stop - turn.start <= size for turn in turns)
        assert len(turns) <= entropy.POSITIONS_PER_LANE
