"""Codebooks of real caches: made of a sample, once, and the only one that the cache's shards are read with."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache import UserError, build, open_cache
from teacher_cache.codebooks import SAMPLE_POSITIONS, sample_ids
from teacher_cache.config import CacheSpec
from teacher_cache.format import codebook, documents
from teacher_cache.format.cache import Cache
from teacher_cache.storage.store import Store
from teacher_cache.teacher import Teacher
from teacher_cache.verify import verify
from tests import caches, families
from tests.teacher_cache.format.samples import flip, identity

KEY = codebook.KEY
SMALL: dict[str, Any] = {"num_documents": 16, "keep": {"unmasked": 0.5}}
EXACT: dict[str, Any] = {"soft_labels": {"code": "float32"}, "hidden": {"code": "none"}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.save_pretrained(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """One view of two units, in the default codes."""
    return caches.build_cache(tmp_path_factory.mktemp("whole") / "cache", **SMALL, teacher=teacher)


@pytest.fixture(scope="module")
def other(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The same settings over another text, and so another codebook."""
    return caches.build_cache(tmp_path_factory.mktemp("other") / "cache", **SMALL, teacher=teacher, text_seed=1)


@pytest.fixture
def copy(whole: Cache, tmp_path: Path) -> Path:
    """To be damaged."""
    return Path(shutil.copytree(whole.url, tmp_path / "cache"))


def small_spec(folder: Path, teacher: Path, **changes: Any) -> CacheSpec:
    return caches.make_spec(folder, teacher=teacher, **SMALL | changes)


def shard_codebooks(cache: Cache) -> set[str | None]:
    """Digests of the codebooks that a cache's shards name."""
    shards = [shard for view in range(cache.num_views) for shard in cache.manifest(view).shards]
    return {cache.open_shard(shard, layers=()).metadata["codebook"] for shard in shards}


def sha256(cache: Cache) -> str:
    return documents.sha256(Path(cache.url, KEY).read_bytes())


class TestSampleIds:
    @given(num_sequences=st.integers(1, 3000), length=st.integers(3, 512), unmasked=st.floats(0, 1))
    def test_they_are_spread_evenly_over_the_corpus(self, num_sequences: int, length: int, unmasked: float) -> None:
        spec = identity(keep={"masked": 0.5, "unmasked": unmasked})
        asked = {"num_sequences": num_sequences, "num_tokens": num_sequences * length}
        ids = sample_ids(spec, **asked)
        assert ids == sample_ids(spec, **asked)
        assert ids == sorted(set(ids))
        assert ids[0] == 0
        assert ids[-1] < num_sequences
        gaps = np.diff([*ids, num_sequences])
        assert gaps.max() - gaps.min() <= 1
        kept_a_sequence = length * (0.15 * 0.5 + 0.85 * unmasked)
        assert len(ids) == num_sequences or len(ids) * kept_a_sequence == pytest.approx(SAMPLE_POSITIONS, rel=0.1)

    def test_a_large_corpus_costs_no_more_than_a_small_one(self) -> None:
        few, many = (sample_ids(identity(), num_sequences=n, num_tokens=128 * n) for n in (10**5, 10**9))
        assert len(few) == len(many) < 1000
        assert many[1] - many[0] == pytest.approx(10**9 / len(many), abs=1)

    def test_where_almost_nothing_is_kept_the_sample_is_the_corpus(self) -> None:
        spec = identity(keep={"masked": 0.0, "unmasked": 1e-12})
        assert sample_ids(spec, num_sequences=7, num_tokens=70) == list(range(7))


class TestOnce:
    def test_shards_and_manifests_name_it(self, whole: Cache) -> None:
        assert shard_codebooks(whole) == {whole.manifest(0).digests.codebook} == {sha256(whole)}
        assert whole.coder.codebook.sha256 == sha256(whole)

    def test_it_is_the_same_on_the_same_machine(self, whole: Cache, teacher: Path, tmp_path: Path) -> None:
        again = caches.build_cache(tmp_path / "cache", teacher=teacher, **SMALL | {"unit_sequences": 5})
        assert sha256(again) == sha256(whole)

    def test_a_second_build_does_not_make_it_again(
        self, copy: Path, whole: Cache, teacher: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("teacher_cache.pipeline.codebook.CodebookWorker", None)
        for path in [*copy.glob("commits/*/000000001.json"), *copy.glob("manifests/*")]:
            path.unlink()
        assert build(small_spec(copy, teacher, views=2), progress=False).num_units_built == 1 + 2
        assert sha256(open_cache(str(copy))) == sha256(whole)
        assert shard_codebooks(open_cache(str(copy))) == {sha256(whole)}

    def test_one_that_is_there_is_used_whoever_made_it(
        self, other: Cache, whole: Cache, teacher: Path, tmp_path: Path
    ) -> None:
        Store(str(tmp_path / "cache")).create(KEY, Path(other.url, KEY).read_bytes())
        cache = caches.build_cache(tmp_path / "cache", teacher=teacher, **SMALL)
        assert shard_codebooks(cache) == {cache.manifest(0).digests.codebook} == {sha256(other)} != {sha256(whole)}
        assert verify(cache).ok

    def test_of_two_builders_the_first_wins(
        self, other: Cache, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second looks before the first has put its own, makes one too, and commits with the first's."""
        made: list[codebook.Codebook] = []
        create = codebook.create

        def create_late(store: Store, late: codebook.Codebook) -> None:
            store.create(KEY, Path(other.url, KEY).read_bytes())
            create(store, late)
            made.append(late)

        monkeypatch.setattr(codebook, "create", create_late)
        cache = caches.build_cache(tmp_path / "cache", teacher=teacher, **SMALL)
        assert len(made) == 1
        assert shard_codebooks(cache) == {cache.manifest(0).digests.codebook} == {sha256(other)}
        exact_cache = caches.build_cache(tmp_path / "exact", teacher=teacher, **SMALL | EXACT)
        for row, exact in zip(cache.rows(), exact_cache.rows(), strict=True):
            np.testing.assert_array_equal(row.topk_ids, exact.topk_ids)

    def test_a_lost_one_is_made_again(self, copy: Path, whole: Cache, teacher: Path) -> None:
        (copy / KEY).unlink()
        with pytest.raises(UserError, match=r"cache has no codebook\.safetensors; run `teacher-cache build` again"):
            next(open_cache(str(copy)).rows())
        assert build(small_spec(copy, teacher), progress=False).num_units_built == 0
        assert len(list(open_cache(str(copy)).rows())) == 16


class TestWhatItHolds:
    def test_there_is_none_where_no_code_needs_one(self, teacher: Path, tmp_path: Path) -> None:
        cache = caches.build_cache(tmp_path / "cache", teacher=teacher, **SMALL | EXACT)
        assert not Path(cache.url, KEY).exists()
        assert cache.manifest(0).digests.codebook is None
        assert shard_codebooks(cache) == {None}
        assert cache.coder.codebook == codebook.Codebook()
        assert verify(cache).ok

    @pytest.mark.parametrize(
        ("labels", "hidden", "prefixes"),
        [
            ("packed", {"code": "none"}, {"labels"}),
            ("float32", {"layers": [2, -1]}, {"hidden.2", "hidden.-1"}),
            ("packed", {"layers": [0]}, {"labels", "hidden.0"}),
        ],
    )
    def test_it_holds_what_the_codes_need(
        self, labels: str, hidden: dict[str, Any], prefixes: set[str], teacher: Path, tmp_path: Path
    ) -> None:
        changes = SMALL | {"soft_labels": {"code": labels}, "hidden": hidden}
        cache = caches.build_cache(tmp_path / "cache", teacher=teacher, **changes)
        names = safetensors.torch.load_file(Path(cache.url, KEY))
        assert {name.rpartition(".")[0] for name in names} == prefixes
        assert len(list(cache.rows())) == 16


@contextmanager
def spoilt(spoilt_calls: set[int], spoil: Callable[[dict[int, torch.Tensor]], None]) -> Iterator[None]:
    """Changes what the teacher says at some of its calls, the first being the codebook's."""
    real, calls = Teacher.encode, iter(range(1000))

    def encode(self: Teacher, *arguments: Any) -> dict[int, torch.Tensor]:
        states = {layer: state.clone() for layer, state in real(self, *arguments).items()}
        if next(calls) in spoilt_calls:
            spoil(states)
        return states

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "encode", encode)
        yield


SECOND_UNIT = {2, 3, 4}
"""The calls of its three attempts, after the codebook's and one for the first unit."""


class TestRefused:
    def test_a_sample_without_a_kept_position(self, teacher: Path, tmp_path: Path) -> None:
        spec = small_spec(tmp_path / "cache", teacher, keep={"masked": 0.0, "unmasked": 1e-9})
        message = r"^no position of the sampled sequences is kept; raise keep\.masked or keep\.unmasked$"
        with pytest.raises(UserError, match=message):
            build(spec, progress=False)
        assert not Path(spec.cache, KEY).exists()

    @pytest.mark.parametrize(("layer", "value"), [(2, torch.nan), (-1, torch.inf)])
    def test_an_answer_that_is_not_finite(self, layer: int, value: float, teacher: Path, tmp_path: Path) -> None:
        """At the codebook, and then at a unit: one layer."""
        spec = small_spec(tmp_path / "cache", teacher, hidden={"layers": [2, -1]}, unit_sequences=6)

        def spoil(states: dict[int, torch.Tensor]) -> None:
            states[layer][:, :, 5] = value

        with spoilt({0}, spoil), pytest.raises(UserError, match=r"^the teacher's answer is not finite"):
            build(spec, progress=False)
        assert not Path(spec.cache, KEY).exists()
        message = r"(?s)^1 of 3 units of view 0 failed, all others are committed:\n  unit \d .*not finite.*again"
        with spoilt(SECOND_UNIT, spoil), pytest.raises(UserError, match=message):
            build(spec, progress=False)
        assert build(spec, progress=False).num_units_built == 1

    def test_states_unlike_the_samples(self, teacher: Path, tmp_path: Path) -> None:
        spec = small_spec(tmp_path / "cache", teacher)

        def spoil(states: dict[int, torch.Tensor]) -> None:
            states[-1] *= 1e9

        message = r"\n  unit \d .*a hidden state lies far outside .*float16"
        with spoilt(SECOND_UNIT, spoil), pytest.raises(UserError, match=message):
            build(spec, progress=False)


class TestDamage:
    def problems(self, cache: Path) -> str:
        found = verify(open_cache(str(cache)))
        assert not found.ok
        return "\n".join(found.problems)

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
    def test_a_flipped_bit_is_found(self, share: float, copy: Path) -> None:
        path = copy / KEY
        flip(path, int(share * path.stat().st_size))
        assert f"{copy}: {KEY}: not what view 0 was built from" in self.problems(copy)
        with pytest.raises(UserError, match="codebook"):
            list(open_cache(str(copy)).rows())

    def test_a_missing_one_is_found(self, copy: Path) -> None:
        (copy / KEY).unlink()
        assert self.problems(copy) == f"{copy} has no {KEY}; run `teacher-cache build` again"

    def test_another_valid_one_is_refused_with_one_message(self, copy: Path, other: Cache, whole: Cache) -> None:
        shutil.copy(Path(other.url, KEY), copy / KEY)
        with pytest.raises(UserError, match=rf"was coded with another codebook: {sha256(whole)}$") as error:
            next(open_cache(str(copy)).rows())
        assert "\n" not in str(error.value)
        assert f"{copy}: {KEY}: not what view 0 was built from" in self.problems(copy)

    def test_one_of_another_teacher_is_refused(self, copy: Path, tmp_path: Path) -> None:
        wide = families.save_pretrained(tmp_path / "wide", hidden_size=48)
        shutil.copy(Path(caches.build_cache(tmp_path / "another", teacher=wide, **SMALL).url, KEY), copy / KEY)
        with pytest.raises(UserError, match=r"predictor has shape \(242, 48\), the teacher's makes it \(162, 32\)"):
            next(open_cache(str(copy)).rows())


class TestQuality:
    @pytest.fixture(scope="class")
    def found(self, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, float]]:
        """Bytes and mean cosine of layer 2 by name of quality."""
        folder = tmp_path_factory.mktemp("quality")

        def states(name: str, **hidden: Any) -> tuple[int, np.ndarray]:
            changes = {"keep": {"unmasked": 0.5}, "hidden": {"layers": [2]} | hidden, "unit_sequences": 40}
            cache = caches.build_cache(folder / name, teacher=teacher, **changes)
            (shard,) = cache.manifest(0).shards
            assert shard.hidden is not None
            return shard.hidden.num_bytes, np.concatenate([row.hidden[2] for row in cache.rows()])

        _, exact = states("exact", code="float32")
        coded = {name: states(name, quality=name) for name in ("low", "standard", "high", "highest")}
        return {
            name: (num_bytes, float(torch.cosine_similarity(*map(torch.from_numpy, (found, exact)), dim=-1).mean()))
            for name, (num_bytes, found) in coded.items()
        }

    def test_higher_quality_is_nearer_and_larger(self, found: dict[str, tuple[int, float]]) -> None:
        sizes, cosines = zip(*found.values(), strict=True)
        assert list(sizes) == sorted(set(sizes))
        assert list(cosines) == sorted(set(cosines))

    @pytest.mark.parametrize(
        ("name", "cosine"), [("low", 0.98), ("standard", 0.9935), ("high", 0.9985), ("highest", 0.9995)]
    )
    def test_each_name_has_its_cosine(self, name: str, cosine: float, found: dict[str, tuple[int, float]]) -> None:
        assert 1 - found[name][1] == pytest.approx(1 - cosine, rel=0.1)
