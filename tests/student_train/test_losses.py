"""The triple loss against plain, dense arithmetic."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from student_train import losses
from student_train.batch import MicroBatch, collate
from student_train.config import LossConfig
from student_train.divergence import LossAndGradient, bucket_divergence, cross_entropy, divergence
from student_train.losses import TripleLoss, step_denominators, teacher_parts
from teacher_cache.errors import UserError
from teacher_cache.shell.settings import parse
from teacher_cache.targets.heads import OutputHead, head_logits
from teacher_cache.targets.soft_labels import keep_top, replay_log_probabilities
from tests.student_train import runs

VOCAB, WIDTH, NUM_TOKENS = 11, 6, 10
KEPT, LABELLED = [0, 3, 7, 2, 9], [2, 9, 5]
"""Places that are kept, that are labelled: some both, some one, most none."""
PLACES = [0, 3, 7, 2, 9, 5]


def random_logits(num_rows: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def make_head(seed: int) -> OutputHead:
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return OutputHead(
        dense_weight=tensor(WIDTH, WIDTH),
        dense_bias=tensor(WIDTH),
        norm_weight=1 + tensor(WIDTH) / 4,
        norm_bias=tensor(WIDTH),
        decoder_weight=tensor(VOCAB, WIDTH),
        decoder_bias=tensor(VOCAB),
        norm_eps=1e-12,
        activation="gelu",
    )


STUDENT_HEAD, TEACHER_HEAD = make_head(1), make_head(2)


def make_states(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def make_batch(*, top_k: int = 3, rates: tuple[float, ...] = (1.0, 0.5, 1.0, 0.25, 1.0)) -> MicroBatch:
    """One sequence of `NUM_TOKENS` tokens, answered by `TEACHER_HEAD`."""
    hidden = make_states(len(KEPT), seed=3)
    return MicroBatch(
        input_ids=torch.zeros(1, NUM_TOKENS, dtype=torch.int64),
        attention_mask=torch.ones(1, NUM_TOKENS, dtype=torch.int64),
        places=torch.tensor(PLACES),
        label_ids=torch.tensor([4, 8, 0]),
        weights=1 / torch.tensor(rates),
        soft_labels=keep_top(head_logits(TEACHER_HEAD, hidden), top_k=top_k, temperatures=(1.0, 2.0, 4.0)),
        hidden=hidden,
    )


def run_losses(
    batch: MicroBatch, *, states: torch.Tensor | None = None, projection: nn.Linear | None = None, **config: Any
) -> tuple[dict[str, float], torch.Tensor]:
    """Losses, and the gradient of the student's hidden states `[NUM_TOKENS, w]`."""
    loss = parse(LossConfig, config)
    states = (make_states(NUM_TOKENS, seed=4) if states is None else states).clone().requires_grad_()
    head = TEACHER_HEAD if "head" in teacher_parts(loss) else None
    step = step_denominators(NUM_TOKENS, len(LABELLED), unmasked_rate=0.5)
    parts = TripleLoss(loss, head, projection).backward(states * 1, STUDENT_HEAD, batch, step)
    assert states.grad is not None
    return {name: float(value) for name, value in vars(parts).items()}, states.grad


NONE = {"soft_labels": 0, "masked_lm": 0, "cosine": 0, "accuracy": 0}


def only(part: str, weight: float = 1.0) -> dict[str, float]:
    return {name: weight if name == part else 0.0 for name in ("soft_labels", "masked_lm", "cosine")}


def dense_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL of probabilities `[K, n]`, in float64."""
    teacher, student = teacher.double(), student.double()
    return (teacher * (teacher.log() - student.log())).sum(dim=-1)


def in_buckets(probabilities: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """`[K, V]` → `[K, k + 1]`: the probability of each of `ids`, and of all others together."""
    top = probabilities.gather(-1, ids)
    return torch.cat([top, 1 - top.sum(dim=-1, keepdim=True)], dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("top_k", [1, 3, VOCAB - 1])
def test_bucket_divergence_is_the_kl_of_top_k_and_one_bucket(top_k, temperature):
    teacher, student = random_logits(7, seed=0), random_logits(7, seed=1)
    soft = keep_top(teacher, top_k=top_k, temperatures=(1.0, 2.0, 4.0))
    expected = dense_kl(
        *(in_buckets((row.double() / temperature).softmax(-1), soft.topk_ids) for row in (teacher, student))
    )
    torch.testing.assert_close(
        bucket_divergence(student, soft, temperature)[0].double(), expected, rtol=1e-5, atol=1e-6
    )


def test_bucket_divergence_of_a_hand_made_row():
    """Teacher (1/2, 1/4, 1/4) and student (1/4, 1/2, 1/4), the first token kept: KL of (1/2, 1/2) and (1/4, 3/4)."""
    soft = keep_top(torch.tensor([[0.5, 0.25, 0.25]]).log(), top_k=1, temperatures=(1.0,))
    value, _ = bucket_divergence(torch.tensor([[0.25, 0.5, 0.25]]).log(), soft, 1.0)
    assert float(value) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_bucket_of_the_whole_vocabulary_is_the_dense_kl_at_any_temperature():
    teacher, student = random_logits(7, seed=0), random_logits(7, seed=1)
    soft = keep_top(teacher, top_k=VOCAB, temperatures=(1.0,))
    expected = dense_kl((teacher / 3).softmax(-1), (student / 3).softmax(-1))
    torch.testing.assert_close(bucket_divergence(student, soft, 3.0)[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_bucket_refuses_a_temperature_that_is_not_stored():
    soft = keep_top(random_logits(2, seed=0), top_k=3, temperatures=(1.0, 2.0))
    with pytest.raises(UserError, match=r"a temperature that the cache stores \(1, 2\), not 3"):
        bucket_divergence(random_logits(2, seed=1), soft, 3.0)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("top_k", [1, 3, VOCAB])
def test_replay_from_exact_states_is_the_dense_kl_at_any_temperature(top_k, temperature):
    hidden, student = make_states(7, seed=5), random_logits(7, seed=1)
    logits = head_logits(TEACHER_HEAD, hidden)
    soft = keep_top(logits, top_k=top_k, temperatures=(1.0, 2.0, 4.0))
    teacher = replay_log_probabilities(hidden, TEACHER_HEAD, soft, temperature)
    expected = dense_kl((logits / temperature).softmax(-1), (student / temperature).softmax(-1))
    torch.testing.assert_close(divergence(student, teacher, temperature)[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_replay_from_rounded_states_keeps_the_stored_logits_and_the_exact_rest():
    hidden = make_states(7, seed=5)
    logits = head_logits(TEACHER_HEAD, hidden)
    soft = keep_top(logits, top_k=3, temperatures=(2.0,))
    rough = replay_log_probabilities(hidden + 0.1 * make_states(7, seed=6), TEACHER_HEAD, soft, 2.0).exp()
    expected = (logits / 2).softmax(dim=-1)
    assert not torch.allclose(rough, expected, atol=1e-3)
    torch.testing.assert_close(in_buckets(rough, soft.topk_ids), in_buckets(expected, soft.topk_ids))


rows = st.lists(st.floats(-20, 20, width=32), min_size=VOCAB, max_size=VOCAB).map(lambda row: torch.tensor([row]))


@settings(max_examples=60, deadline=None)
@given(teacher=rows, student=rows, top_k=st.integers(1, VOCAB), temperature=st.sampled_from([1.0, 2.0, 4.0]))
def test_divergences_are_never_negative_and_zero_for_equal_rows(teacher, student, top_k, temperature):
    soft = keep_top(teacher, top_k=top_k, temperatures=(1.0, 2.0, 4.0))
    measures: list[Callable[[torch.Tensor], LossAndGradient]] = [
        lambda logits: bucket_divergence(logits, soft, temperature),
        lambda logits: divergence(logits, (teacher / temperature).log_softmax(dim=-1), temperature),
    ]
    for measure in measures:
        assert float(measure(student)[0]) >= -1e-5
        assert float(measure(teacher)[0]) == pytest.approx(0, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(teacher=rows, student=rows, top_k=st.integers(1, VOCAB - 1))
def test_buckets_lose_information_and_never_add_any(teacher, student, top_k):
    soft = keep_top(teacher, top_k=top_k, temperatures=(1.0,))
    whole = float(divergence(student, teacher.log_softmax(dim=-1), 1.0)[0])
    assert float(bucket_divergence(student, soft, 1.0)[0]) <= whole * (1 + 1e-4) + 1e-4


@pytest.mark.parametrize("way", ["bucket", "replay"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_soft_label_loss_is_t_squared_times_the_weighted_mean(way, temperature):
    batch = make_batch()
    student = head_logits(STUDENT_HEAD, make_states(NUM_TOKENS, seed=4))[KEPT] / temperature
    teacher = head_logits(TEACHER_HEAD, batch.hidden) / temperature
    dense = teacher.softmax(-1), student.softmax(-1)
    divergences = dense_kl(
        *((in_buckets(row, batch.soft_labels.topk_ids) for row in dense) if way == "bucket" else dense)
    )
    expected = temperature**2 * (divergences * batch.weights).sum() / NUM_TOKENS
    values, _ = run_losses(batch, soft_labels=way, temperature=temperature, weights=only("soft_labels"))
    assert values == NONE | {"soft_labels": pytest.approx(float(expected), rel=1e-4)}


def test_masked_lm_alone_is_the_cross_entropy_of_the_labelled_positions():
    batch = make_batch()
    states = make_states(NUM_TOKENS, seed=4).requires_grad_()
    expected = F.cross_entropy(head_logits(STUDENT_HEAD, states)[LABELLED], batch.label_ids)
    expected.backward()
    values, gradient = run_losses(batch, weights=only("masked_lm"))
    assert values == NONE | {"masked_lm": pytest.approx(expected.item())}
    torch.testing.assert_close(gradient, states.grad)


def test_cosine_alone_is_the_weighted_mean_over_kept_positions():
    batch = make_batch()
    states = make_states(NUM_TOKENS, seed=4)
    distances = 1 - F.cosine_similarity(states[KEPT], batch.hidden, dim=-1)
    values, gradient = run_losses(batch, weights=only("cosine"))
    assert values["cosine"] == pytest.approx(float((distances * batch.weights).sum() / NUM_TOKENS))
    not_kept = [place for place in range(NUM_TOKENS) if place not in KEPT]
    assert gradient[KEPT].abs().sum(dim=-1).min() > 0
    assert gradient[not_kept].abs().sum() == 0


def test_cosine_of_another_width_goes_through_the_projection():
    batch = replace(make_batch(), hidden=torch.cat([make_states(len(KEPT), seed=3)] * 2, dim=-1))
    projection = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
    states = make_states(NUM_TOKENS, seed=4)
    with torch.no_grad():
        distances = 1 - F.cosine_similarity(projection(states[KEPT]), batch.hidden, dim=-1)
    values, _ = run_losses(batch, projection=projection, weights=only("cosine"))
    assert values["cosine"] == pytest.approx(float((distances * batch.weights).sum() / NUM_TOKENS), rel=1e-5)
    assert projection.weight.grad is not None
    assert projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("part", ["soft_labels", "masked_lm", "cosine"])
def test_a_weight_scales_the_gradient_and_not_the_figure(part):
    (one, gradient), (three, thrice) = (run_losses(make_batch(), weights=only(part, weight)) for weight in (1, 3))
    assert one == three
    torch.testing.assert_close(thrice, 3 * gradient)


def test_the_gradient_is_the_weighted_sum_of_the_parts():
    weights = {"soft_labels": 5.0, "masked_lm": 2.0, "cosine": 1.0}
    _, together = run_losses(make_batch())
    parts = [weight * run_losses(make_batch(), weights=only(part))[1] for part, weight in weights.items()]
    torch.testing.assert_close(together, sum(parts))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("way", ["bucket", "replay"])
def test_the_size_of_chunks_changes_nothing(way, chunk, monkeypatch):
    expected, whole = run_losses(make_batch(), soft_labels=way)
    monkeypatch.setattr(losses, "CHUNK_POSITIONS", chunk)
    values, gradient = run_losses(make_batch(), soft_labels=way)
    assert values == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, whole)


def test_logits_are_never_held_for_more_than_a_chunk(monkeypatch):
    sizes = []

    def counting(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if weight is STUDENT_HEAD.decoder_weight:
            sizes.append(len(rows))
        return linear(rows, weight, bias)

    linear = F.linear
    monkeypatch.setattr(losses, "CHUNK_POSITIONS", 4)
    monkeypatch.setattr(F, "linear", counting)
    run_losses(make_batch())
    assert sizes == [4, 2]  # the six places that are kept or labelled


def test_a_batch_without_labels_or_kept_positions_has_no_loss():
    batch = make_batch()
    none = torch.empty(0, dtype=torch.int64)
    batch = replace(
        batch,
        places=none,
        label_ids=none,
        weights=torch.empty(0),
        soft_labels=batch.soft_labels[:0],
        hidden=torch.empty(0, WIDTH),
    )
    values, gradient = run_losses(batch)
    assert set(values.values()) == {0.0}
    assert gradient.abs().sum() == 0


@pytest.mark.parametrize(
    ("num_tokens", "num_labels", "unmasked_rate", "expected"),
    [(100, 15, 1.0, (100, 15)), (100, 15, 0.1, (100, 15)), (100, 15, 0.0, (15, 15)), (100, 0, 0.0, (1, 1))],
)
def test_denominators_are_all_tokens_or_the_masked_ones_under_restrict_to_mask(
    num_tokens, num_labels, unmasked_rate, expected
):
    step = step_denominators(num_tokens, num_labels, unmasked_rate)
    assert (step.soft_positions, step.labels) == expected


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({}, {"hidden", "head"}),
        ({"soft_labels": "bucket"}, {"hidden"}),
        (runs.BUCKET_ONLY, set()),
        ({"weights": {"soft_labels": 0}}, {"hidden"}),
        ({"weights": {"soft_labels": 0, "cosine": 0}}, set()),
    ],
)
def test_only_what_a_loss_needs_of_the_teacher_is_asked_for(config, parts):
    assert teacher_parts(parse(LossConfig, config)) == parts


def test_collated_rows_keep_every_position_at_its_place(default_cache):
    rows = list(default_cache.rows(0, 0, 5))
    batch = collate(rows, pad_id=0, hidden_layer=-1)
    length = batch.input_ids.shape[1]
    assert batch.attention_mask.sum(dim=1).tolist() == [len(row.input_ids) for row in rows]
    tokens = batch.input_ids.flatten()
    assert tokens[batch.attention_mask.flatten() == 0].eq(0).all()
    kept = {
        place * length + int(at): (row, i) for place, row in enumerate(rows) for i, at in enumerate(row.kept_positions)
    }
    labels = {
        place * length + int(at): int(label)
        for place, row in enumerate(rows)
        for at, label in zip(row.label_positions, row.label_ids, strict=True)
    }
    places = batch.places.tolist()
    assert sorted(places) == sorted(kept.keys() | labels.keys())
    assert places[: batch.num_kept] == sorted(kept, key=lambda place: (place in labels, place))
    assert dict(zip(places[batch.first_label :], batch.label_ids.tolist(), strict=True)) == labels
    assert batch.hidden is not None
    for at, place in enumerate(places[: batch.num_kept]):
        row, i = kept[place]
        assert float(1 / batch.weights[at]) == pytest.approx(row.rates[i])
        assert batch.soft_labels.topk_ids[at].tolist() == row.topk_ids[i].tolist()
        np.testing.assert_array_equal(batch.hidden[at].numpy(), row.hidden[-1][i])


@settings(max_examples=30, deadline=None)
@given(teacher=rows, student=rows, top_k=st.integers(1, VOCAB), temperature=st.sampled_from([1.0, 2.0, 4.0]))
def test_gradients_are_those_that_autograd_finds(teacher, student, top_k, temperature):
    soft = keep_top(teacher, top_k=top_k, temperatures=(1.0, 2.0, 4.0))
    target = (teacher.double() / temperature).log_softmax(dim=-1)

    def by_bucket(rows: torch.Tensor) -> torch.Tensor:
        if top_k == VOCAB:
            return rows
        outside = torch.ones_like(rows, dtype=torch.bool).scatter(-1, soft.topk_ids, False)
        rest = torch.where(outside, rows, -torch.inf).logsumexp(dim=-1, keepdim=True)
        return torch.cat([rows.gather(-1, soft.topk_ids), rest], dim=-1)

    for found, reduce in (
        (divergence(student, target.float(), temperature), lambda rows: rows),
        (bucket_divergence(student, soft, temperature), by_bucket),
    ):
        logits = student.double().requires_grad_()
        learned = reduce((logits / temperature).log_softmax(dim=-1))
        dense = F.kl_div(learned, reduce(target), reduction="none", log_target=True).sum(dim=-1)
        (gradient,) = torch.autograd.grad(dense.sum(), logits)
        torch.testing.assert_close(found[0].double(), dense.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1].double(), gradient, rtol=1e-4, atol=1e-5)


def test_cross_entropy_is_that_of_torch():
    logits, labels = random_logits(7, seed=0).requires_grad_(), torch.arange(7) % VOCAB
    expected = F.cross_entropy(logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    loss, found = cross_entropy(logits.detach(), labels)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize("chunk", [2, 4, 100])
@pytest.mark.parametrize("way", ["bucket", "replay"])
def test_measuring_gives_the_same_losses_and_the_share_of_labels_ranked_first(way, chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_POSITIONS", chunk)
    batch, states = make_batch(), make_states(NUM_TOKENS, seed=4)
    best = head_logits(STUDENT_HEAD, states)[LABELLED].argmax(dim=-1)
    batch = replace(batch, label_ids=torch.tensor([int(best[0]), int(best[1]), (int(best[2]) + 1) % VOCAB]))
    expected, _ = run_losses(batch, soft_labels=way)
    loss = TripleLoss(parse(LossConfig, {"soft_labels": way}), TEACHER_HEAD, None)
    step = step_denominators(NUM_TOKENS, len(LABELLED), unmasked_rate=0.5)
    found = loss.measure(states, STUDENT_HEAD, batch, step)
    values = {name: float(value) for name, value in vars(found).items()}
    assert values == pytest.approx(expected | {"accuracy": 2 / 3}, rel=1e-5)
