import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.targets import trellis

NEXT_STATE = ((0, 2), (2, 0), (1, 3), (3, 1))
"""By state and parity; states 2 and 3 use quantiser 1."""


def walk(levels: list[int]) -> list[int]:
    """Values of levels, by the state machine itself."""
    state, values = 0, []
    for level in levels:
        sign = (level > 0) - (level < 0)
        values.append(2 * level - sign * (state >> 1))
        state = NEXT_STATE[state][level & 1]
    return values


def flat_costs(largest: int = 20) -> torch.Tensor:
    return torch.zeros(2, largest + 1)


def no_bounds(size: int, largest: int = 20) -> torch.Tensor:
    return torch.full((size,), largest)


def rows_of(values: torch.Tensor) -> torch.Tensor:
    return torch.zeros(values.shape, dtype=torch.int64)


@given(st.lists(st.integers(-40, 40) | st.integers(-(2**15) + 1, 2**15 - 1), min_size=1, max_size=30))
def test_undoing_needs_no_state_machine(levels: list[int]) -> None:
    assert trellis.dequantise(torch.tensor([levels])).tolist() == [walk(levels)]
    assert trellis.dequantise(torch.tensor([levels], dtype=torch.int16)).tolist() == [walk(levels)]


@given(
    st.lists(st.floats(-7, 7), min_size=1, max_size=4),
    st.lists(st.floats(0, 8), min_size=10, max_size=10),
    st.floats(0, 1),
)
def test_it_finds_the_best_path(values: list[float], costs: list[float], weight: float) -> None:
    """Against all paths, among levels that are the nearest of their parity, or 0; costs that grow with magnitude."""
    table = torch.tensor([sorted(costs[:5]), sorted(costs[5:])])
    given_values = torch.tensor([values])
    levels = trellis.quantise(given_values, rows_of(given_values), table, torch.full((len(values),), 4), weight=weight)

    def cost(path: tuple[int, ...]) -> float:
        quantisers = trellis.quantisers(torch.tensor([path]))[0]
        bits = sum(float(table[q, min(abs(level), 4)]) for q, level in zip(quantisers, path, strict=True))
        squares = sum((v - w) ** 2 for v, w in zip(given_values[0].tolist(), walk(list(path)), strict=True))
        return squares + weight * bits

    found = cost(tuple(levels[0].tolist()))
    if weight == 0:
        best = min(cost(path) for path in itertools.product(range(-4, 5), repeat=len(values)))
        assert found == pytest.approx(best, abs=1e-4)
    # However bits weigh, zero and the nearest level of each parity were candidates everywhere.
    assert found <= cost((0,) * len(values)) + 1e-4


def test_it_beats_rounding_at_the_same_density() -> None:
    values = 12 * torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    levels = trellis.quantise(values, rows_of(values), flat_costs(60), no_bounds(64, 60), weight=0.0)
    error = (values - trellis.dequantise(levels)).square().mean().item()
    assert error < 0.82 * (2**2 / 12)  # what rounding to every second half-step leaves, less 0.9 dB


def test_cheaper_levels_are_preferred_as_bits_weigh_more() -> None:
    values = 3 * torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    costs = torch.arange(21.0).expand(2, 21)
    light, heavy = (
        trellis.quantise(values, rows_of(values), costs, no_bounds(32), weight=weight).abs().sum().item()
        for weight in (0.0, 1.0)
    )
    assert heavy < light


def test_levels_beyond_a_bound_are_even_and_not_clipped() -> None:
    values = torch.tensor([[1000.3, -3.0, 0.2, -777.7], [5.0, 17.0, -41.0, 2.0]])
    bounds = torch.tensor([4, 4, 4, 4])
    levels = trellis.quantise(values, rows_of(values), flat_costs(4), bounds, weight=0.3)
    assert ((levels.abs() < 4) | (levels % 2 == 0)).all()
    assert (values - trellis.dequantise(levels)).abs().max() <= 4


def test_no_positions() -> None:
    values = torch.empty(0, 5)
    levels = trellis.quantise(values, rows_of(values), flat_costs(), no_bounds(5), weight=0.1)
    assert levels.shape == (0, 5)
    assert trellis.dequantise(levels).shape == (0, 5)
