from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.errors import UserError
from teacher_cache.targets import entropy, hidden_fit, trellis
from teacher_cache.targets.heads import OutputHead, head_logits
from teacher_cache.targets.hidden_code import MAX_MAGNITUDE, MAX_VALUE, HiddenCode, Levels, table_rows
from teacher_cache.targets.hidden_fit import Sample
from teacher_cache.targets.side_information import SideInformation, features, gather, num_features
from teacher_cache.targets.soft_labels import SoftLabels, keep_top

VOCABULARY = 50


def make_head(hidden_size: int, embedding_size: int | None = None) -> OutputHead:
    draw = torch.Generator().manual_seed(1)
    size = embedding_size or hidden_size
    return OutputHead(
        dense_weight=torch.randn(size, hidden_size, generator=draw) / hidden_size**0.5,
        dense_bias=torch.zeros(size),
        norm_weight=torch.ones(size),
        norm_bias=torch.zeros(size),
        decoder_weight=torch.randn(VOCABULARY, size, generator=draw),
        decoder_bias=torch.zeros(VOCABULARY),
        norm_eps=1e-12,
        activation="gelu",
    )


def make_sample(num_positions: int, head: OutputHead, *, top_k: int = 4, seed: int = 0) -> Sample:
    """Correlated states of very different variances."""
    draw = torch.Generator().manual_seed(seed)
    size = head.dense_weight.shape[1]
    spread = torch.logspace(1, -2, size)
    mix = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(7))).Q
    hidden = (torch.randn(num_positions, size, generator=draw) * spread) @ mix + 0.5
    side = SideInformation(
        is_masked=torch.rand(num_positions, generator=draw) < 0.6,
        token_ids=torch.randint(0, VOCABULARY, (num_positions, 3), generator=draw),
        soft_labels=keep_top(head_logits(head, hidden), top_k=top_k, temperatures=(1.0,)),
    )
    return Sample(hidden=hidden, side=side)


@pytest.fixture(scope="module")
def head() -> OutputHead:
    return make_head(24)


@pytest.fixture(scope="module")
def code(head: OutputHead) -> HiddenCode:
    return hidden_fit.fit(make_sample(600, head), head, cosine=0.99, feeds_head=True)


def coded(code: HiddenCode, sample: Sample, head: OutputHead) -> tuple[bytes, torch.Tensor]:
    """Bytes of a sample's states, and what they decode to."""
    data = code.compress(code.encode(sample.hidden, sample.side, head))
    levels = code.decompress(data, len(sample.hidden))
    return data, code.decode(torch.from_numpy(levels), sample.side, head)


def mean_cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return torch.cosine_similarity(left, right, dim=-1).mean().item()


def test_fresh_states_have_the_cosine_that_was_asked_for(code: HiddenCode, head: OutputHead) -> None:
    fresh = make_sample(500, head, seed=5)
    assert mean_cosine(coded(code, fresh, head)[1], fresh.hidden) == pytest.approx(0.99, abs=0.004)


@pytest.mark.parametrize("cosine", [0.95, 0.98, 0.995, 0.9995])
def test_higher_quality_costs_more_bytes(head: OutputHead, cosine: float) -> None:
    sample = make_sample(400, head)
    made = hidden_fit.fit(sample, head, cosine=cosine, feeds_head=True)
    data, decoded = coded(made, sample, head)
    assert 1 - mean_cosine(decoded, sample.hidden) == pytest.approx(1 - cosine, rel=0.2)
    better = hidden_fit.fit(sample, head, cosine=1 - (1 - cosine) / 4, feeds_head=True)
    assert len(coded(better, sample, head)[0]) > len(data) * 1.1


def test_bytes_are_near_the_entropy_of_the_tables(code: HiddenCode, head: OutputHead) -> None:
    sample = make_sample(2000, head, seed=9)
    levels = code.encode(sample.hidden, sample.side, head)
    magnitudes = np.abs(levels.levels).astype(np.int64)
    zero_order = 0.0
    for column in magnitudes.T:
        counts = np.bincount(column)
        shares = counts[counts > 0] / len(column)
        zero_order += -(shares * np.log2(shares)).sum() + (column > 0).mean()  # and a sign
    assert len(code.compress(levels)) * 8 / 2000 < 1.08 * zero_order + 8  # a lane's state is 4 bytes for 4 positions


def test_a_metric_of_the_rows_makes_better_rows_at_like_bytes() -> None:
    """Components that the head hardly reads get fewer bits."""
    head = make_head(24)
    reads = torch.cat([torch.ones(12), torch.full((12,), 0.01)])
    head = replace(head, dense_weight=head.dense_weight * reads)
    sample = make_sample(1500, head)
    states = torch.randn(sample.hidden.shape, generator=torch.Generator().manual_seed(2))
    sample = replace(sample, hidden=states)
    exact = head_logits(head, sample.hidden).log_softmax(-1)
    divergence, size = {}, {}
    for feeds_head, cosine in ((True, 0.97), (False, 0.97)):
        made = hidden_fit.fit(sample, head, cosine=cosine, feeds_head=feeds_head)
        data, decoded = coded(made, sample, head)
        rows = head_logits(head, decoded).log_softmax(-1)
        divergence[feeds_head] = (exact.exp() * (exact - rows)).sum(-1).mean().item()
        size[feeds_head] = len(data)
    assert divergence[True] * size[True] < 0.8 * divergence[False] * size[False]


def test_what_side_information_tells_costs_nothing(head: OutputHead) -> None:
    """States that are a linear function of the token: the predictor knows them."""
    known = make_sample(800, head)
    states = features(known.side, head) @ torch.randn(
        num_features(head), 24, generator=torch.Generator().manual_seed(3)
    )
    told = Sample(hidden=states, side=known.side)
    blind = replace(known.side, token_ids=torch.zeros_like(known.side.token_ids))
    sizes = [
        len(coded(hidden_fit.fit(sample, head, cosine=0.99, feeds_head=False), sample, head)[0])
        for sample in (told, Sample(hidden=states, side=blind))
    ]
    assert sizes[0] < 0.5 * sizes[1]


@given(
    num_positions=st.integers(0, 40),
    hidden_size=st.sampled_from([1, 2, 3, 16, 33, 70]),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 0.3, 5.0, 4000.0]),
)
@settings(max_examples=40)
def test_levels_survive_compression(num_positions: int, hidden_size: int, seed: int, spread: float) -> None:
    """Any levels that quantisation can give: beyond a bound they are even."""
    head = make_head(hidden_size)
    code = hidden_fit.fit(make_sample(30, head), head, cosine=0.98, feeds_head=False)
    draw = np.random.default_rng(seed)
    levels = np.clip(np.round(draw.normal(size=(num_positions, hidden_size)) * spread), -32766, 32766).astype(np.int64)
    bounds = code.bounds.numpy()[code.groups]
    levels = np.where(np.abs(levels) >= bounds, levels - levels % 2, levels).astype(np.int16)
    given_levels = Levels(levels=levels, scales=draw.integers(0, 4, num_positions).astype(np.uint8))
    data = code.compress(given_levels)
    assert data == compressed_step_by_step(code, given_levels)
    np.testing.assert_array_equal(code.decompress(data, num_positions), levels)


def compressed_step_by_step(code: HiddenCode, given_levels: Levels) -> bytes:
    """What `compress` has to give, by the entropy coder that is not compiled."""
    levels = given_levels.levels.astype(np.int64)
    bounds = code.bounds.numpy()[code.groups]
    escapes = ((np.abs(levels) - bounds) // 2)[np.abs(levels) >= bounds].astype("<u2")
    tables = table_rows(code.groups, given_levels.scales) + trellis.quantisers(torch.from_numpy(levels)).numpy()
    symbols = np.clip(levels, -bounds, bounds) + MAX_MAGNITUDE
    of_scales = np.full(len(levels), len(code.frequencies) - 1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for turn in entropy.turns(len(levels)):
        steps.append((of_scales[turn], given_levels.scales[turn].astype(np.int64)))
        steps += zip(tables[turn].T, symbols[turn].T, strict=True)
    return np.array([len(escapes)], "<u4").tobytes() + escapes.tobytes() + entropy.encode(steps, code.tables)


@pytest.mark.parametrize("num_positions", [1, 2, 7])
@pytest.mark.parametrize("hidden_size", [1, 2, 40])
def test_the_smallest_samples(num_positions: int, hidden_size: int) -> None:
    head = make_head(hidden_size)
    sample = make_sample(num_positions, head)
    code = hidden_fit.fit(sample, head, cosine=0.99, feeds_head=True)
    fresh = make_sample(5, head, seed=3)
    decoded = coded(code, fresh, head)[1]
    assert decoded.shape == fresh.hidden.shape
    assert decoded.isfinite().all()


def test_constant_states(head: OutputHead) -> None:
    sample = make_sample(50, head)
    constant = Sample(hidden=torch.full_like(sample.hidden, 3.0), side=sample.side)
    code = hidden_fit.fit(constant, head, cosine=0.99, feeds_head=True)
    torch.testing.assert_close(coded(code, constant, head)[1], constant.hidden, atol=0.3, rtol=0)


def test_an_outlier_is_not_clipped(code: HiddenCode, head: OutputHead) -> None:
    sample = make_sample(9, head)
    hidden = sample.hidden.clone()
    hidden[4] *= 30
    decoded = coded(code, Sample(hidden=hidden, side=sample.side), head)[1]
    assert mean_cosine(decoded[4:5], hidden[4:5]) > 0.99


def test_a_state_as_far_away_as_levels_reach_is_decoded(code: HiddenCode, head: OutputHead) -> None:
    sample = make_sample(9, head)
    hidden = sample.hidden * 0.9 * MAX_VALUE / (sample.hidden @ code.forward).abs().max()
    assert np.abs(code.encode(hidden, sample.side, head).levels).max() > 2**14
    decoded = coded(code, Sample(hidden=hidden, side=sample.side), head)[1]
    assert mean_cosine(decoded, hidden) > 0.999


@pytest.mark.parametrize("factor", [1e5, 1e20, 1e30])
def test_a_state_beyond_all_levels_is_refused(code: HiddenCode, head: OutputHead, factor: float) -> None:
    sample = make_sample(3, head)
    with pytest.raises(UserError, match=r"far outside .* use hidden.code: float16"):
        code.encode(sample.hidden * factor, sample.side, head)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_states_that_are_not_finite_are_refused(code: HiddenCode, head: OutputHead, value: float) -> None:
    sample = make_sample(3, head)
    sample.hidden[1, 2] = value
    with pytest.raises(UserError, match="not finite"):
        code.encode(sample.hidden, sample.side, head)


def test_damaged_bytes_are_refused(code: HiddenCode, head: OutputHead) -> None:
    sample = make_sample(40, head)
    data = coded(code, sample, head)[0]
    for damaged in (b"", data[:3], data[:-2], data[: len(data) // 2], data + b"\0\0", b"\xff\xff\xff\xff" + data[4:]):
        with pytest.raises(UserError, match="damaged"):
            code.decompress(damaged, 40)
    for num_positions in (39, 41):
        with pytest.raises(UserError, match="damaged"):
            code.decompress(data, num_positions)


def test_statistics_survive_a_file(code: HiddenCode, head: OutputHead) -> None:
    sample = make_sample(20, head)
    again = HiddenCode.from_tensors(code.tensors())
    assert coded(again, sample, head)[0] == coded(code, sample, head)[0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("forward", torch.zeros(3, 3), "forward has shape"),
        ("inverse", torch.full((24, 24), torch.nan), "inverse is not finite"),
        ("bounds", torch.full((24,), 3), "bounds must be even"),
        ("frequencies", torch.ones(24 * 8 + 1, 253, dtype=torch.int32), "add up to 4096"),
    ],
)
def test_statistics_that_cannot_be_are_refused(code: HiddenCode, name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = HiddenCode.from_tensors(code.tensors() | {name: value}).tables


def test_missing_statistics_are_named(code: HiddenCode) -> None:
    tensors = code.tensors()
    del tensors["inverse"]
    with pytest.raises(UserError, match="inverse missing"):
        HiddenCode.from_tensors(tensors)


def test_neighbours_end_with_the_sequence() -> None:
    side = gather(
        torch.tensor([[5, 6, 7, 0], [1, 2, 3, 4]]),
        torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
        label_places=torch.tensor([2, 5]),
        kept_places=torch.tensor([0, 2, 4, 5, 7]),
        soft_labels=SoftLabels(
            topk_ids=torch.zeros(5, 1, dtype=torch.int64), topk_logits=torch.zeros(5, 1), rest_log_sum_exp={}
        ),
    )
    assert side.token_ids.tolist() == [[5, 5, 6], [7, 6, 7], [1, 1, 2], [2, 1, 3], [4, 3, 4]]
    assert side.is_masked.tolist() == [False, True, False, True, False]
