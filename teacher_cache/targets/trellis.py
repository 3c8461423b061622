"""Trellis-coded quantisation: two interleaved quantisers, chosen by the parities of the levels before.

Better than rounding at equal entropy, because the points of both quantisers together are twice as dense as those of
one (Marcellin and Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources", IEEE Trans. Commun.
38(1), 1990; with four states and a zero in both quantisers as in Schwarz et al., "Hybrid video coding with
trellis-coded quantization", DCC 2019). The Viterbi algorithm chooses the levels of least distortion + lambda * bits.
Undoing it needs no loop: component j + 1 has the quantiser of component j - 1, or the other one if level j is odd.

A level q stands for the value 2 * q - sign(q) * a, in half-steps.

Legend: K positions, d components, R rows of a table of costs, M magnitudes.
"""

import torch

NUM_STATES = 4
# State t is reached from states 2 * (t % 2) and 2 * (t % 2) + 1; from each by a branch 2 * quantiser + parity.
_FIRST_BRANCH = (0, 2, 1, 3)
_SECOND_BRANCH = (1, 3, 0, 2)


def quantisers(levels: torch.Tensor) -> torch.Tensor:
    """Which quantiser, 0 or 1, each of the levels `[K, d]` belongs to, int64 `[K, d]`."""
    chosen = torch.zeros(levels.shape, dtype=torch.int64, device=levels.device)
    for first in (0, 1):
        parities = (levels[:, first::2] & 1).cumsum(dim=1) & 1
        following = chosen[:, first + 1 :: 2]
        following.copy_(parities[:, : following.shape[1]])
    return chosen


def dequantise(levels: torch.Tensor) -> torch.Tensor:
    """Levels, int `[K, d]` → values in half-steps, float32 `[K, d]`."""
    return (2 * levels.long() - levels.sign() * quantisers(levels)).float()


def quantise(
    values: torch.Tensor, cost_rows: torch.Tensor, costs: torch.Tensor, bounds: torch.Tensor, *, weight: float
) -> torch.Tensor:
    """The best levels, int64 `[K, d]`, for finite values `[K, d]` in half-steps.

    `costs` `[R, M]` are the bits of each magnitude below M; `cost_rows` int64 `[K, d]` is the row of quantiser 0 for
    each value, the next one that of quantiser 1. `bounds` int64 `[d]`, even, are the magnitudes from which on a
    level is even and costs as much as the bound. `weight` is lambda, in squared half-steps a bit.
    """
    branch_costs, magnitudes = _branches(values.abs(), cost_rows, costs, bounds, weight)
    branches = _best_path(branch_costs)
    best = magnitudes.gather(0, branches[None])[0].T
    return torch.where(values < 0, -best, best)


def _branches(
    values: torch.Tensor, cost_rows: torch.Tensor, costs: torch.Tensor, bounds: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each branch 2 * quantiser + parity, its best magnitude and that one's cost, each `[4, d, K]`."""

    def cost(magnitude: torch.Tensor, quantiser: int) -> torch.Tensor:
        value = torch.where(magnitude > 0, 2 * magnitude - quantiser, 0)
        return (values - value).square() + weight * costs[cost_rows + quantiser, magnitude.minimum(bounds)]

    chosen = []
    for quantiser in (0, 1):
        for parity in (0, 1):
            nearest = 2 * (((values + quantiser) / 2 - parity) / 2).round().long() + parity
            if parity:
                magnitude = nearest.clamp(min=1).minimum(bounds - 1)
                chosen.append((cost(magnitude, quantiser), magnitude))
            else:
                magnitude = nearest.clamp(min=0)
                zero = torch.zeros_like(magnitude)
                of_nearest, of_zero = cost(magnitude, quantiser), cost(zero, quantiser)
                better = of_zero < of_nearest
                chosen.append((torch.where(better, of_zero, of_nearest), torch.where(better, zero, magnitude)))
    return tuple(torch.stack([pair[i].T for pair in chosen]) for i in (0, 1))  # type: ignore[return-value]  # of two


def _best_path(costs: torch.Tensor) -> torch.Tensor:
    """The Viterbi algorithm: costs `[4, d, K]` of branches → the branches of the cheapest path, int64 `[d, K]`."""
    num_components, num_positions = costs.shape[1:]
    first, second = costs[list(_FIRST_BRANCH)].transpose(0, 1), costs[list(_SECOND_BRANCH)].transpose(0, 1)
    total = torch.full((NUM_STATES, num_positions), torch.inf, device=costs.device)
    total[0] = 0
    took_second = torch.empty((num_components, NUM_STATES, num_positions), dtype=torch.bool, device=costs.device)
    for component in range(num_components):
        by_first = total[0::2].repeat(2, 1) + first[component]
        by_second = total[1::2].repeat(2, 1) + second[component]
        torch.lt(by_second, by_first, out=took_second[component])
        total = torch.minimum(by_first, by_second)
    branch_of = torch.tensor([_FIRST_BRANCH, _SECOND_BRANCH], device=costs.device)
    state = total.argmin(dim=0)
    path = torch.empty((num_components, num_positions), dtype=torch.int64, device=costs.device)
    for component in range(num_components - 1, -1, -1):
        second_way = took_second[component].gather(0, state[None])[0].long()
        path[component] = branch_of[second_way, state]
        state = 2 * (state & 1) + second_way
    return path
