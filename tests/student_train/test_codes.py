"""Learning from packed and transform-coded targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from student_train.batch import collate, decode_hidden
from student_train.reader import Reader
from student_train.run_folder import StepReport
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from teacher_cache.targets.batching import group_by_tokens
from tests import caches
from tests.student_train import runs

KEEP: dict[str, Any] = {"keep": {"unmasked": 0.3}}


@pytest.fixture(scope="module")
def teacher(default_cache: Cache) -> Path:
    return Path(default_cache.notes["teacher"]["model"])


@pytest.fixture(scope="module")
def other(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Of the same teacher, over another text and of another quality."""
    folder = tmp_path_factory.mktemp("other") / "cache"
    options = KEEP | {"num_documents": 21, "text_seed": 9, "hidden": {"quality": "high"}}
    return caches.build_cache(folder, teacher=teacher, views=2, **options)


@pytest.fixture(scope="module")
def exact(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """What `default_cache` holds, without a rounding."""
    codes = {"soft_labels": {"code": "float32"}, "hidden": {"code": "float32"}}
    folder = tmp_path_factory.mktemp("exact") / "cache"
    return caches.build_cache(folder, teacher=teacher, views=2, num_documents=50, **KEEP | codes)


def read_rows(sources: list[Cache], view: int = 0) -> list[Row]:
    batches = Reader(sources, view=view, layers=(-1,)).batches(seed=0, epoch=0, batch_sequences=30)
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("tokens", [100, 10_000])
def test_each_row_is_decoded_by_its_own_caches_codebook(default_cache: Cache, other: Cache, view: int, tokens: int):
    sources = [default_cache, other]
    coders = [cache.coder for cache in sources]
    assert coders[0].codebook.sha256 != coders[1].codebook.sha256
    expected = {(source, row.sequence_id): row for source, cache in enumerate(sources) for row in cache.rows(view)}
    rows = read_rows(sources, view)
    assert {row.source for row in rows} == {0, 1}
    for group in group_by_tokens([len(row.input_ids) for row in rows], tokens):
        taken = [rows[place] for place in group]
        batch = decode_hidden(collate(taken, pad_id=0, hidden_layer=-1), coders, -1)
        in_order = batch.places[: batch.num_kept].argsort()
        found = np.split(batch.hidden[in_order].numpy(), np.cumsum([len(row.kept_positions) for row in taken])[:-1])
        for row, states in zip(taken, found, strict=True):
            whole = expected[row.source, row.sequence_id]
            np.testing.assert_array_equal(row.topk_logits, whole.topk_logits)
            np.testing.assert_allclose(states, whole.hidden[-1], rtol=0, atol=1e-4)


def test_a_wrong_codebook_would_be_seen(default_cache: Cache, other: Cache) -> None:
    """The comparison above is worth something."""
    batch = collate(read_rows([default_cache]), pad_id=0, hidden_layer=-1)
    right, wrong = (decode_hidden(batch, [cache.coder], -1).hidden for cache in (default_cache, other))
    assert right is not None
    assert wrong is not None
    assert (right - wrong).abs().max() > 0.1


def test_exact_states_need_no_decoding(exact: Cache) -> None:
    batch = collate(list(exact.rows(0, 0, 5)), pad_id=0, hidden_layer=-1)
    assert batch.levels is None
    assert decode_hidden(batch, [exact.coder], -1) is batch


@pytest.mark.parametrize("loss", [{}, {"soft_labels": "bucket"}], ids=["replay", "bucket"])
def test_lossy_codes_teach_what_exact_ones_teach(default_cache: Cache, exact: Cache, loss: dict[str, Any]) -> None:
    """The order of sequences is of the cache's name, so a step takes all of them."""

    def reports(cache: Cache) -> list[StepReport]:
        options = {"steps": 4, "batch_sequences": 50, "loss": loss, "optimizer": {"lr": 1e-3}}
        found: list[StepReport] = []
        runs.make_trainer(runs.make_spec(cache, **options)).train(found.append)
        return found

    for lossy, true in zip(reports(default_cache), reports(exact), strict=True):
        assert lossy.losses["masked_lm"] == pytest.approx(true.losses["masked_lm"], rel=0.001)
        for name in ("soft_labels", "cosine", "total"):
            assert lossy.losses[name] == pytest.approx(true.losses[name], rel=0.01), name


def test_two_micro_batches_of_mixed_caches_teach_what_one_teaches(default_cache: Cache, other: Cache) -> None:
    sources = [default_cache, other]
    lengths = [len(row.input_ids) for row in read_rows(sources)]
    losses, gradients = [], []
    for num_groups, tokens in ((1, 10_000), (2, 1200)):
        assert len(list(group_by_tokens(lengths, tokens))) == num_groups
        execution = runs.make_execution(micro_batch_tokens=tokens)
        trainer = runs.make_trainer(runs.make_spec(sources, steps=3, batch_sequences=71, execution=execution))
        reports: list[StepReport] = []
        trainer.train(reports.append)
        losses.append([report.losses for report in reports])
        gradients.append(runs.gradient_of(trainer))
    for whole, split in zip(*losses, strict=True):
        assert split == pytest.approx(whole, rel=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "codes",
    [
        {"hidden": {"code": "float16"}},
        {"hidden": {"code": "float32"}},
        {"soft_labels": {"code": "float32"}},
    ],
)
def test_caches_of_different_codes_are_refused_together(
    default_cache: Cache, teacher: Path, codes: dict[str, Any], tmp_path: Path
) -> None:
    mixed = caches.build_cache(tmp_path / "cache", teacher=teacher, num_documents=6, **KEEP | codes)
    with pytest.raises(UserError, match=r"differ in soft_labels, hidden\.code or the name of the last hidden layer"):
        runs.make_trainer(runs.make_spec([default_cache, mixed]))


def test_a_cache_whose_codebook_was_replaced_teaches_nobody(default_cache: Cache, other: Cache, tmp_path: Path) -> None:
    cache = caches.copy_without(default_cache, tmp_path / "cache", "codebook.safetensors")
    (tmp_path / "cache" / "codebook.safetensors").write_bytes(Path(other.url, "codebook.safetensors").read_bytes())
    for loss in ({}, runs.BUCKET_ONLY):
        trainer = runs.make_trainer(runs.make_spec(cache, loss=loss))
        with pytest.raises(UserError, match="was coded with another codebook"):
            trainer.train(runs.ignore)
