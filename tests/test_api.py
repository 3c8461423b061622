"""The Python API: build a cache, open it, read what the teacher said."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from teacher_cache import CacheSpec, UserError, build, open_cache
from teacher_cache.format.cache import Cache
from teacher_cache.format.row import Row
from tests import families

TOP_K = 4
LAYERS = (2, -1)
NUM_SEQUENCES = 25


def make_spec(folder: Path, **changes: Any) -> CacheSpec:
    values: dict[str, Any] = {
        "cache": str(folder / "cache"),
        "corpus": {"paths": [str(folder / "corpus.txt")], "sequence_length": 24},
        "teacher": {"model": str(folder / "teacher")},
        "keep": {"unmasked": 0.4},
        "soft_labels": {"top_k": TOP_K, "code": "float32"},
        "hidden": {"layers": LAYERS, "code": "float32"},
        "views": 2,
        "unit_sequences": 10,
        "execution": {"num_workers": 0},
    }
    return CacheSpec(**(values | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a corpus and their cache."""
    folder = tmp_path_factory.mktemp("api")
    families.save_pretrained(folder / "teacher")
    rng = random.Random(0)
    documents = [" ".join(rng.choices(families.WORDS, k=rng.randint(4, 20))) for _ in range(NUM_SEQUENCES)]
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    build(make_spec(folder), progress=False)
    return folder


@pytest.fixture
def cache(folder: Path) -> Cache:
    return open_cache(str(folder / "cache"))


def teacher_logits(folder: Path, row: Row) -> torch.Tensor:
    """What the teacher says of a row's kept positions, asked anew."""
    model = AutoModelForMaskedLM.from_pretrained(folder / "teacher")
    with torch.inference_mode():
        return torch.as_tensor(model(torch.tensor(row.input_ids, dtype=torch.long)[None]).logits[0, row.kept_positions])


class TestSpec:
    def test_sections_may_be_plain_dictionaries(self, folder: Path) -> None:
        spec = make_spec(folder)
        assert spec.corpus.paths == (str(folder / "corpus.txt"),)
        assert (spec.keep.masked, spec.keep.unmasked, spec.soft_labels.top_k) == (1.0, 0.4, TOP_K)
        assert spec.masking.rate == 0.15

    def test_unknown_keys_and_bad_values_are_errors(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"keep\.unmaskd"):
            make_spec(folder, keep={"unmaskd": 1})
        with pytest.raises(ValueError, match=r"greater than 0"):
            make_spec(folder, views=0)

    def test_it_cannot_be_changed(self, folder: Path) -> None:
        with pytest.raises(AttributeError):
            make_spec(folder).views = 3  # type: ignore[misc]


class TestBuild:
    def test_it_tells_what_the_cache_holds_and_does_nothing_twice(self, folder: Path) -> None:
        summary = build(make_spec(folder), progress=False)
        assert (summary.num_sequences, summary.num_views, summary.num_units_built) == (NUM_SEQUENCES, 2, 0)
        assert summary.fingerprint == open_cache(summary.cache).fingerprint

    def test_it_prints_nothing_without_progress(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        build(make_spec(folder, cache=str(folder / "quiet")), progress=False)
        assert capsys.readouterr().out == ""

    def test_a_mistake_is_a_user_error(self, folder: Path) -> None:
        with pytest.raises(UserError, match=r"built from another spec:\n  keep\.unmasked: 0\.4 in the cache, 1\.0 in"):
            build(make_spec(folder, keep={"unmasked": 1}), progress=False)


class TestCache:
    def test_it_knows_what_decided_its_content(self, cache: Cache) -> None:
        assert len(cache.fingerprint) == 64
        assert cache.spec.fingerprint == cache.fingerprint
        assert cache.spec.soft_labels.top_k == TOP_K
        assert cache.spec.unit_sequences == 10
        assert cache.num_views == 2

    def test_views_may_be_added_while_it_is_open(self, folder: Path, tmp_path: Path) -> None:
        spec = make_spec(folder, cache=str(tmp_path / "cache"), views=1)
        build(spec, progress=False)
        cache = open_cache(spec.cache)
        assert cache.num_views == 1
        build(make_spec(folder, cache=spec.cache, views=2), progress=False)
        assert cache.num_views == 2
        assert len(list(cache.rows(view=1))) == NUM_SEQUENCES

    def test_a_url_may_be_relative(self, folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        assert open_cache("cache").fingerprint == cache.fingerprint

    def test_no_cache_is_a_user_error(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"is no teacher cache: it has no spec\.json"):
            open_cache(str(tmp_path))


class TestRows:
    def test_a_row_holds_what_is_promised(self, cache: Cache) -> None:
        for row in cache.rows():
            kept = len(row.kept_positions)
            assert row.input_ids.ndim == 1
            assert (row.input_ids[0], row.input_ids[-1]) == (2, 3)
            assert len(row.label_positions) == len(row.label_ids)
            assert set(row.label_positions) <= set(row.kept_positions)
            assert row.rates.shape == (kept,)
            assert row.topk_ids.shape == row.topk_logits.shape == (kept, TOP_K)
            assert {t: rest.shape for t, rest in row.rest_log_sum_exp.items()} == dict.fromkeys(
                (1.0, 2.0, 4.0), (kept,)
            )
            assert {layer: states.shape for layer, states in row.hidden.items()} == dict.fromkeys(LAYERS, (kept, 32))
            is_label = np.isin(row.kept_positions, row.label_positions)
            np.testing.assert_array_equal(row.rates, np.where(is_label, np.float32(1), np.float32(0.4)))

    def test_they_are_what_the_teacher_said(self, cache: Cache, folder: Path) -> None:
        for row in cache.rows(view=1, start=9, stop=12):
            logits = teacher_logits(folder, row)
            best = logits.topk(TOP_K).indices.sort().values
            np.testing.assert_array_equal(row.topk_ids, best)
            np.testing.assert_allclose(row.topk_logits, logits.gather(-1, best), rtol=0, atol=1e-4)

    @pytest.mark.parametrize(
        ("start", "stop"), [(0, None), (0, 0), (3, 8), (9, 11), (10, 20), (20, None), (24, 99), (25, None), (12, 5)]
    )
    def test_a_range_gives_its_sequences_in_order(self, start: int, stop: int | None, cache: Cache) -> None:
        found = [row.sequence_id for row in cache.rows(start=start, stop=stop)]
        assert found == list(range(NUM_SEQUENCES))[start:stop]

    def test_documents_are_counted_over_the_corpus(self, cache: Cache) -> None:
        assert [row.document_id for row in cache.rows()] == list(range(NUM_SEQUENCES))  # each fits one sequence

    def test_views_hold_the_same_text_under_other_masks(self, cache: Cache) -> None:
        views = [list(cache.rows(view)) for view in range(2)]
        inputs = [[row.input_ids.tolist() for row in rows] for rows in views]
        texts = [[restored(row).tolist() for row in rows] for rows in views]
        assert texts[0] == texts[1]
        assert inputs[0] != inputs[1]

    def test_a_view_that_is_not_sealed_is_a_user_error(self, cache: Cache) -> None:
        with pytest.raises(UserError, match=r"view 2 is not sealed"):
            list(cache.rows(view=2))


def restored(row: Row) -> np.ndarray:
    """The text before masking."""
    ids = row.input_ids.copy()
    ids[row.label_positions] = row.label_ids
    return ids


class TestReplay:
    @pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 3.0, 0.5])
    def test_rows_are_the_teachers_probabilities(self, temperature: float, cache: Cache, folder: Path) -> None:
        for row in cache.rows(start=3, stop=6):
            found = cache.replay(row, temperature)
            assert (found.shape, found.dtype) == ((len(row.kept_positions), families.VOCAB_SIZE), np.float32)
            np.testing.assert_allclose(found.sum(-1), 1, rtol=0, atol=1e-5)
            expected = (teacher_logits(folder, row) / temperature).softmax(-1)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("temperature", [0, -1])
    def test_a_temperature_must_be_positive(self, temperature: float, cache: Cache) -> None:
        with pytest.raises(UserError, match=rf"temperature must be above 0, it is {temperature}"):
            cache.replay(next(cache.rows()), temperature)

    def test_without_the_last_states_it_is_refused(self, folder: Path) -> None:
        spec = make_spec(folder, cache=str(folder / "early"), hidden={"layers": [2]}, views=1)
        build(spec, progress=False)
        cache = open_cache(spec.cache)
        with pytest.raises(UserError, match=r"stores no last hidden states: replay needs .* hidden\.layers: \[-1\]"):
            cache.replay(next(cache.rows()), 1.0)

    def test_the_last_states_may_be_named_by_their_number(self, folder: Path) -> None:
        spec = make_spec(folder, cache=str(folder / "fourth"), hidden={"layers": [4], "code": "float16"}, views=1)
        build(spec, progress=False)
        cache = open_cache(spec.cache)
        row = next(cache.rows())
        expected = (teacher_logits(folder, row) / 2).softmax(-1)
        np.testing.assert_allclose(cache.replay(row, 2.0), expected, rtol=0, atol=1e-3)

    def test_a_unit_that_keeps_nothing_is_read_as_empty(self, folder: Path) -> None:
        changes = {"cache": str(folder / "empty"), "keep": {"masked": 0, "unmasked": 1e-9}, "views": 1}
        build(make_spec(folder, **changes), progress=False)
        cache = open_cache(changes["cache"])
        rows = list(cache.rows())
        assert len(rows) == NUM_SEQUENCES
        assert {cache.replay(row, 2.0).shape for row in rows} == {(0, families.VOCAB_SIZE)}


class TestDefaultCodes:
    """`packed` soft labels and `transform` hidden states: not what the teacher said, but near it."""

    @pytest.fixture(scope="class")
    def coded(self, folder: Path) -> Cache:
        labels, hidden = {"top_k": TOP_K}, {"layers": LAYERS}
        spec = make_spec(folder, cache=str(folder / "coded"), soft_labels=labels, hidden=hidden)
        assert (spec.soft_labels.code, spec.hidden.code, spec.hidden.quality) == ("packed", "transform", "standard")
        build(spec, progress=False)
        return open_cache(spec.cache)

    @pytest.fixture
    def pairs(self, coded: Cache, cache: Cache) -> list[tuple[Row, Row]]:
        """Rows of both views: decoded ones, and exact ones."""
        return [pair for view in range(2) for pair in zip(coded.rows(view), cache.rows(view), strict=True)]

    def test_what_is_not_of_the_teacher_is_exact(self, pairs: list[tuple[Row, Row]]) -> None:
        names = ("sequence_id", "document_id", "input_ids", "label_positions", "label_ids", "kept_positions", "rates")
        for found, exact in pairs:
            for name in names:
                np.testing.assert_array_equal(getattr(found, name), getattr(exact, name))

    def test_soft_labels_are_near_but_for_the_level_of_rows(self, pairs: list[tuple[Row, Row]]) -> None:
        for found, exact in pairs:
            np.testing.assert_array_equal(found.topk_ids, exact.topk_ids, strict=True)
            assert (found.topk_logits.max(axis=1, initial=-np.inf) == 0).all()
            highest = exact.topk_logits.max(axis=1, initial=-np.inf)
            np.testing.assert_allclose(found.topk_logits, exact.topk_logits - highest[:, None], rtol=0, atol=1 / 32)
            assert list(found.rest_log_sum_exp) == [1, 2, 4]
            for temperature, rest in found.rest_log_sum_exp.items():
                expected = exact.rest_log_sum_exp[temperature] - highest / temperature
                np.testing.assert_allclose(rest, expected, rtol=0, atol=0.02)

    @pytest.mark.parametrize("layer", LAYERS)
    def test_hidden_states_are_near(self, layer: int, pairs: list[tuple[Row, Row]]) -> None:
        """In view 0 more than in view 1: of so few sequences the codebook's sample is the whole view 0."""
        for view, lowest in ((pairs[:NUM_SEQUENCES], 0.98), (pairs[NUM_SEQUENCES:], 0.95)):
            found, exact = (np.concatenate([pair[side].hidden[layer] for pair in view]) for side in (0, 1))
            assert (found.dtype, found.shape) == (np.float32, exact.shape)
            cosines = torch.cosine_similarity(torch.from_numpy(found), torch.from_numpy(exact), dim=-1)
            assert cosines.mean() >= lowest

    @pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 3.0])
    def test_replayed_rows_are_near(self, temperature: float, coded: Cache, cache: Cache) -> None:
        distances = []
        for found, exact in zip(coded.rows(), cache.rows(), strict=True):
            rows = coded.replay(found, temperature)
            np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=0, atol=1e-5)
            distances.append(np.abs(rows - cache.replay(exact, temperature)).sum(axis=1) / 2)
        assert np.concatenate(distances).mean() < 0.03, "of total variation"
        assert np.concatenate(distances).max() < 0.15
