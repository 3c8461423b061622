"""Making the transform code's statistics from a sample of positions.

Legend: K positions, d hidden size, F features, V vocabulary, G groups, A symbols.
"""

from dataclasses import dataclass

import numpy as np
import torch

from teacher_cache.targets import entropy, trellis
from teacher_cache.targets.heads import OutputHead, head_logits
from teacher_cache.targets.hidden_code import (
    MAX_MAGNITUDE,
    NUM_SCALES,
    NUM_SYMBOLS,
    HiddenCode,
    groups_of,
    num_groups_of,
    quantise,
    scale_classes,
    table_rows,
)
from teacher_cache.targets.side_information import SideInformation, features

COSINE_SHARE = 1.0
"""Of the plain squared error in the metric, against 1 for what the error does to the teacher's rows. Higher: a better
cosine at equal bytes and worse rows: 3 for 1 costs a quarter more divergence (measured)."""
METRIC_TEMPERATURES = (1.0, 2.0)
METRIC_POSITIONS = 4096
STEP_POSITIONS = 4096
"""Positions of the sample on which the step is sought."""
STEP_ROUNDS = 5
FIRST_STEP = 0.3
"""Of the residual's standard deviation: any step within a factor of ten leads to the same."""
ESCAPED_SHARE = 1e-4
"""Of levels beyond a group's bound: rarer ones would cost more in the tables than they save."""
RIDGE = 1e-3
"""Of the features' mean square, so that few positions do not make a wild predictor."""
CHUNK_POSITIONS = 1024


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Positions of which the statistics are made, float32 on one device."""

    hidden: torch.Tensor
    """`[K, d]`."""
    side: SideInformation


def fit(sample: Sample, head: OutputHead, *, cosine: float, feeds_head: bool) -> HiddenCode:
    """The code whose decoded states have this mean cosine with the true ones, on the sample.

    `feeds_head`: the states are those that the output head reads, so that what an error does to the rows counts.
    """
    predictor = fit_predictor(sample, head)
    residual = torch.cat([hidden - features(side, head) @ predictor for hidden, side in _chunks(sample)])
    metric = torch.eye(residual.shape[1], device=residual.device)
    if feeds_head:
        metric = COSINE_SHARE * metric + row_sensitivity(sample, head)
    forward, inverse = decorrelate(residual, metric)
    return _fit_step(sample, residual, predictor, forward, inverse, cosine=cosine)


def fit_predictor(sample: Sample, head: OutputHead) -> torch.Tensor:
    """Ridge regression of hidden states on features: `[F, d]`."""
    moments = products = torch.zeros(())
    for hidden, side in _chunks(sample):
        columns = features(side, head).double()
        moments = moments.to(columns) + columns.T @ columns
        products = products.to(columns) + columns.T @ hidden.double()
    ridge = RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64, device=moments.device)
    return torch.linalg.solve(moments + ridge, products).float()


def row_sensitivity(sample: Sample, head: OutputHead) -> torch.Tensor:
    """`[d, d]`, mean of its diagonal 1: how much each deviation of the states changes the teacher's rows.

    The expected squared change of the probabilities outside the top k (those inside are stored): the mean of
    J^T J over positions, J the derivative of these probabilities by the state, estimated by products with random
    vectors (Hutchinson 1990); the mean over temperatures.
    """
    device = sample.hidden.device
    generator = torch.Generator(device).manual_seed(0)
    step = max(1, len(sample.hidden) // METRIC_POSITIONS)
    size = sample.hidden.shape[1]
    total = torch.zeros(size, size, dtype=torch.float64, device=device)
    for temperature in METRIC_TEMPERATURES:
        metric = torch.zeros_like(total)
        for hidden, side in _chunks(Sample(hidden=sample.hidden[::step], side=sample.side[::step]), positions=256):
            slopes = _slopes(hidden, side, head, temperature, generator)
            metric += (slopes.T @ slopes).double()
        total += metric / metric.trace().clamp(min=1e-30)
    return (total * size / len(METRIC_TEMPERATURES)).float()


def _slopes(
    hidden: torch.Tensor, side: SideInformation, head: OutputHead, temperature: float, generator: torch.Generator
) -> torch.Tensor:
    """`[K, d]`: J^T z of each position, for random z."""
    with torch.enable_grad():
        hidden = hidden.clone().requires_grad_()
        scaled = head_logits(head, hidden) / temperature
        ids = side.soft_labels.topk_ids
        outside = scaled.softmax(dim=-1).scatter(-1, ids, 0)
        random = torch.randn(outside.shape, generator=generator, device=hidden.device)
        (slopes,) = torch.autograd.grad((outside * random).sum(), hidden)
    return slopes


def decorrelate(residual: torch.Tensor, metric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices `[d, d]` from residuals to components and back.

    Components are uncorrelated, the most variable first, and an error of the same size in any of them costs the same
    in the metric: one step for all is then the best allocation of bits (reverse water-filling).
    """
    values, vectors = torch.linalg.eigh(metric.double())
    roots = values.clamp(min=values.max() * 1e-9).sqrt()
    weigh, unweigh = (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
    weighed = residual.double() @ weigh
    rotation = torch.linalg.eigh(weighed.T @ weighed / max(len(weighed), 1)).eigenvectors.flip(1)
    return (weigh @ rotation).float(), (rotation.T @ unweigh).float()


def _fit_step(
    sample: Sample,
    residual: torch.Tensor,
    predictor: torch.Tensor,
    forward: torch.Tensor,
    inverse: torch.Tensor,
    *,
    cosine: float,
) -> HiddenCode:
    """Finds the half-step for a mean cosine, and the entropy coder's tables at that step."""
    stride = max(1, len(residual) // STEP_POSITIONS)
    hidden, components = sample.hidden[::stride], residual[::stride] @ forward
    predicted = hidden - residual[::stride]
    half_step = FIRST_STEP * float(components.std(correction=0).clamp(min=1e-9)) / 2
    bounds = frequencies = torch.empty(0)
    for round_ in range(STEP_ROUNDS + 1):
        values = components / half_step
        deviations = values.square().mean(dim=0).sqrt().clamp(min=1e-3)
        sizes = (values.abs() / deviations).mean(dim=1)
        limits = torch.quantile(sizes, torch.linspace(0, 1, NUM_SCALES + 1, device=sizes.device)[1:-1])
        scales = scale_classes(values, deviations, limits)
        if round_ == 0:
            bounds, frequencies = _gaussian_tables(deviations)
        levels = quantise(values, scales, entropy.Tables(frequencies.numpy().astype(np.uint16)), bounds)
        bounds, frequencies = _counted_tables(levels, scales)
        if round_ < STEP_ROUNDS:
            decoded = predicted + trellis.dequantise(levels) * half_step @ inverse
            loss = 1 - torch.cosine_similarity(hidden, decoded, dim=-1).mean().item()
            half_step *= ((1 - cosine) / max(loss, 1e-9)) ** 0.5
    return HiddenCode(
        predictor=predictor.cpu(),
        forward=(forward / half_step).cpu(),
        inverse=(inverse * half_step).cpu(),
        deviations=deviations.cpu(),
        scale_limits=limits.cpu(),
        bounds=bounds,
        frequencies=frequencies,
    )


def _gaussian_tables(deviations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds and tables for components of these deviations, before any level was counted."""
    groups = groups_of(len(deviations))
    spread = np.array([deviations.cpu().numpy()[groups == group].max() for group in range(groups[-1] + 1)])
    levels = np.abs(np.arange(-MAX_MAGNITUDE, MAX_MAGNITUDE + 1))
    values = 2.0 * levels[None] - (np.arange(2)[:, None] * (levels > 0))
    counts = np.exp(-np.abs(values)[None] / np.maximum(spread, 0.1)[:, None, None]) + 1e-9  # [G, 2, A]
    counts = np.repeat(counts[:, None], NUM_SCALES, axis=1).reshape(-1, NUM_SYMBOLS)
    return torch.full((len(spread),), MAX_MAGNITUDE), _tables(counts, np.ones(NUM_SCALES))


def _counted_tables(levels: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds and tables from what was quantised."""
    groups = groups_of(levels.shape[1])
    num_groups = num_groups_of(levels.shape[1])
    magnitudes = levels.abs().cpu().numpy()
    bounds = np.array([_bound(magnitudes[:, groups == group]) for group in range(num_groups)])
    of_scales = scales.cpu().numpy()
    rows = table_rows(groups, of_scales) + trellis.quantisers(levels).cpu().numpy()
    clipped = np.minimum(magnitudes, bounds[groups])
    counts = np.zeros((num_groups * NUM_SCALES * 2, MAX_MAGNITUDE + 1))
    np.add.at(counts, (rows, clipped), 1)
    # Tables of rare scales and quantisers lean on those of their whole group; no level up to the bound is impossible.
    by_group = counts.reshape(num_groups, -1, MAX_MAGNITUDE + 1)
    shared = by_group.sum(axis=1, keepdims=True)
    smoothed = by_group + 2 * shared / shared.sum(axis=-1, keepdims=True) + 1e-3
    smoothed *= np.arange(MAX_MAGNITUDE + 1) <= bounds[:, None, None]
    smoothed = smoothed.reshape(counts.shape)
    both_signs = np.concatenate([smoothed[:, :0:-1] / 2, smoothed[:, :1], smoothed[:, 1:] / 2], axis=1)
    return torch.from_numpy(bounds), _tables(both_signs, np.bincount(of_scales, minlength=NUM_SCALES) + 1)


def _bound(magnitudes: np.ndarray) -> int:
    """The least even magnitude, at least 2, that hardly any level exceeds."""
    limit = np.quantile(magnitudes, 1 - ESCAPED_SHARE, method="higher") if magnitudes.size else 0
    return int(min(MAX_MAGNITUDE, max(2, limit + 2 - limit % 2)))


def _tables(counts: np.ndarray, of_scales: np.ndarray) -> torch.Tensor:
    """Frequencies of levels' tables, and of the one table of scales."""
    last = np.zeros((1, NUM_SYMBOLS))
    last[0, :NUM_SCALES] = of_scales
    return torch.from_numpy(entropy.make_tables(np.concatenate([counts, last])).frequencies.astype(np.int32))


def _chunks(sample: Sample, positions: int = CHUNK_POSITIONS) -> list[tuple[torch.Tensor, SideInformation]]:
    starts = range(0, len(sample.hidden), positions)
    return [(sample.hidden[i : i + positions], sample.side[i : i + positions]) for i in starts]
