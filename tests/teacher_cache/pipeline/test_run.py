"""From corpus files to a sealed cache, in this process and on Ray."""

import gzip
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from teacher_cache import UserError, open_cache
from teacher_cache.format import attempts
from teacher_cache.format.sequences import Sequences
from teacher_cache.pipeline import tokenise
from teacher_cache.pipeline.workers import CodebookWorker, UnitWorker
from teacher_cache.storage.store import Store
from tests import caches, families
from tests.teacher_cache.builds import DOCUMENTS, NUM_DOCUMENTS, MakeSpec, counted_calls, run, shard_digests, snapshot

MaskedInput = tuple[bytes, ...]


def masked_inputs(cache: str, view: int = 0) -> list[MaskedInput]:
    """Bytes of what masking decided of each sequence."""
    names = ("input_ids", "label_positions", "label_ids", "kept_positions", "rates")
    return [tuple(getattr(row, name).tobytes() for name in names) for row in open_cache(cache).rows(view)]


def forget(cache: str, unit: int, view: int = 0) -> None:
    """As if the builder had been killed before it committed this unit."""
    (Path(cache) / f"commits/{view:05d}/{unit:09d}.json").unlink()
    (Path(cache) / f"manifests/{view:05d}-00000.parquet").unlink()


class TestCorpus:
    @pytest.mark.parametrize("format", ["text", "text_file", "jsonl", "jsonl.gz", "parquet"])
    def test_every_format_becomes_the_same_cache(self, format: str, tmp_path: Path, make_spec: MakeSpec) -> None:
        lines = "".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS)
        if format == "text_file":
            for place, text in enumerate(DOCUMENTS):
                (tmp_path / f"{place:03d}.doc").write_text(text)
            paths = {"paths": [str(tmp_path / "*.doc")], "format": "text_file"}
        elif format == "parquet":
            pq.write_table(pa.table({"body": DOCUMENTS}), tmp_path / "c.parquet")
            paths = {"paths": [str(tmp_path / "c.parquet")], "text_field": "body"}
        elif format == "text":
            paths = {}
        else:
            (tmp_path / f"c.{format}").write_bytes(
                lines.encode() if format == "jsonl" else gzip.compress(lines.encode())
            )
            paths = {"paths": [str(tmp_path / f"c.{format}")], "text_field": "body"}
        spec = make_spec(corpus=paths)
        summary = run(spec)
        reference = make_spec("reference")
        run(reference)
        assert masked_inputs(spec.cache) == masked_inputs(reference.cache)
        rows = list(open_cache(spec.cache).rows())
        assert [row.sequence_id for row in rows] == list(range(summary.num_sequences))
        assert {row.document_id for row in rows} == set(range(NUM_DOCUMENTS))
        assert summary.num_tokens == sum(len(row.input_ids) for row in rows)
        assert summary.num_kept == sum(len(row.kept_positions) for row in rows)

    def test_no_sequence_holds_two_documents(self, make_spec: MakeSpec) -> None:
        spec = make_spec(corpus={"packing": "documents"}, masking={"mask_share": 0, "random_share": 0, "keep_share": 1})
        run(spec)
        found = [""] * NUM_DOCUMENTS
        for row in open_cache(spec.cache).rows():
            assert (row.input_ids[0], row.input_ids[-1]) == (2, 3)
            assert 3 not in row.input_ids[1:-1]
            found[row.document_id] += "".join(f"{families.WORDS[token - 5]} " for token in row.input_ids[1:-1])
        assert [text.strip() for text in found] == DOCUMENTS

    def test_full_packing_fills_every_sequence_but_the_last(self, make_spec: MakeSpec) -> None:
        spec = make_spec(corpus={"packing": "full"})
        run(spec)
        lengths = [len(row.input_ids) for row in open_cache(spec.cache).rows()]
        assert set(lengths[:-1]) == {16}
        num_words = sum(len(text.split()) for text in DOCUMENTS)
        assert sum(lengths) == num_words + NUM_DOCUMENTS - 1 + 2 * len(lengths)

    def test_documents_are_counted_over_all_files_also_where_sequences_hold_several(
        self, tmp_path: Path, make_spec: MakeSpec
    ) -> None:
        (tmp_path / "a.txt").write_text("the dog\n\nsaw a\n\ncat")
        (tmp_path / "b.txt").write_text("a bird")
        corpus = {"packing": "full", "paths": [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]}
        spec = make_spec(corpus=corpus)
        run(spec)
        assert [row.document_id for row in open_cache(spec.cache).rows()] == [0, 3]
        assert Sequences(Store(spec.cache)).num_documents == 4

    def test_a_file_that_changes_while_it_is_read_is_refused(
        self, corpus: Path, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = tokenise.tokenise

        def changing(url: str, **options: Any) -> Any:
            yield from real(url, **options)
            corpus.write_text("the dog")

        monkeypatch.setattr(tokenise, "tokenise", changing)
        with pytest.raises(UserError, match=r"corpus\.txt was changed while it was read; run the build again"):
            run(make_spec())

    def test_sequences_of_another_configuration_are_refused(self, make_spec: MakeSpec) -> None:
        spec = make_spec()
        run(spec)
        for name in ("spec.json", "teacher", "manifests", "commits", "shards", "codebook.safetensors"):
            path = Path(spec.cache) / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(UserError, match=r"sequences/manifest\.parquet is of another configuration than "):
            run(make_spec(keep={"unmasked": 0.7}))


class TestAgain:
    def test_a_whole_cache_is_left_alone_and_the_teacher_not_asked(self, make_spec: MakeSpec) -> None:
        spec = make_spec(views=2)
        first = run(spec)
        before = snapshot(spec.cache)
        with counted_calls() as calls:
            second = run(spec)
        assert calls == []
        assert snapshot(spec.cache) == before
        assert (first.num_units_built, second.num_units_built) == (10, 0)
        assert (second.num_kept, second.num_bytes) == (first.num_kept, first.num_bytes)

    def test_a_sealed_view_is_not_built_again_even_without_its_commits(self, make_spec: MakeSpec) -> None:
        spec = make_spec()
        run(spec)
        shutil.rmtree(f"{spec.cache}/commits")
        with counted_calls() as calls:
            run(spec)
        assert calls == []

    @pytest.mark.parametrize("unit", [0, 4])
    def test_only_what_is_not_committed_is_done(self, unit: int, make_spec: MakeSpec) -> None:
        spec = make_spec()
        run(spec)
        before = snapshot(spec.cache)
        digests = shard_digests(spec.cache)
        forget(spec.cache, unit)
        with counted_calls() as calls:
            assert run(spec).num_units_built == 1
        assert calls == [open_cache(spec.cache).manifest(0).shards[unit].num_sequences]
        assert shard_digests(spec.cache) == digests
        commit = f"{spec.cache}/commits/00000/{unit:09d}.json"  # has a new owner
        assert {**snapshot(spec.cache), commit: b""} == {**before, commit: b""}

    def test_another_view_is_added_and_the_first_left_alone(self, make_spec: MakeSpec) -> None:
        run(make_spec())
        cache = make_spec().cache
        before = snapshot(cache)
        assert run(make_spec(views=2)).num_units_built == 5
        after = snapshot(cache)
        assert before.items() <= after.items()
        assert open_cache(cache).num_views == 2
        assert masked_inputs(cache, 0) != masked_inputs(cache, 1)

    def test_a_folder_emptied_between_builds_is_a_new_cache(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        """Nothing of the first cache may be remembered under its URL."""
        run(make_spec())
        Path(make_spec().cache).rename(tmp_path / "elsewhere")
        spec = make_spec(corpus={"sequence_length": 8})
        run(spec)
        assert max(len(row.input_ids) for row in open_cache(spec.cache).rows()) == 8


class TestSameContent:
    def test_two_builds_give_the_same_shards(self, make_spec: MakeSpec) -> None:
        first, second = make_spec("first", views=2), make_spec("second", views=2)
        assert run(first).fingerprint == run(second).fingerprint
        for view in range(2):
            assert shard_digests(first.cache, view) == shard_digests(second.cache, view)
        assert shard_digests(first.cache, 0) != shard_digests(first.cache, 1)

    @pytest.mark.parametrize("policy", ["uniform", "rare", "strided"])
    def test_masking_depends_on_neither_units_nor_batches(self, policy: str, make_spec: MakeSpec) -> None:
        specs = [
            make_spec("one", masking={"policy": policy}, views=2),
            make_spec("two", masking={"policy": policy}, views=2, unit_sequences=7, execution={"batch_tokens": 33}),
        ]
        for spec in specs:
            run(spec)
        for view in range(2):
            one, two = (masked_inputs(spec.cache, view) for spec in specs)
            assert one == two

    def test_answers_depend_on_units_and_batches_by_rounding_only(self, make_spec: MakeSpec) -> None:
        rows = {"code": "float32", "top_k": families.VOCAB_SIZE}  # whole ones: rounding would break ties of a top k
        exact: Any = {"soft_labels": rows, "hidden": {"code": "float32"}}
        specs = [
            make_spec("one", **exact),
            make_spec("two", **exact, unit_sequences=7, execution={"batch_tokens": 33}),
        ]
        for spec in specs:
            run(spec)
        for one, two in zip(*(open_cache(spec.cache).rows() for spec in specs), strict=True):
            np.testing.assert_array_equal(one.topk_ids, two.topk_ids)
            np.testing.assert_allclose(one.topk_logits, two.topk_logits, rtol=0, atol=1e-4)
            np.testing.assert_allclose(one.hidden[-1], two.hidden[-1], rtol=0, atol=1e-5)

    def test_a_moved_corpus_is_the_same_corpus(self, make_spec: MakeSpec, corpus: Path, tmp_path: Path) -> None:
        run(make_spec())
        moved = corpus.rename(tmp_path / "moved.txt")
        assert run(make_spec(corpus={"paths": [str(moved)]})).num_units_built == 0


class TestPolicies:
    def test_strided_views_mask_each_position_once(self, make_spec: MakeSpec) -> None:
        spec = make_spec(masking={"policy": "strided", "rate": 0.34}, views=3)
        run(spec)
        views = [list(open_cache(spec.cache).rows(view)) for view in range(3)]
        for rows in zip(*views, strict=True):
            labels = np.sort(np.concatenate([row.label_positions for row in rows]))
            assert labels.tolist() == list(range(1, len(rows[0].input_ids) - 1))

    def test_rare_masks_rare_words_more_and_the_whole_at_the_rate(self, make_spec: MakeSpec, corpus: Path) -> None:
        common, rare = families.WORDS[:2], families.WORDS[2:]
        rng = random.Random(0)
        words = [rng.choice(rare if rng.random() < 0.2 else common) for _ in range(3000)]
        corpus.write_text(" ".join(words))
        spec = make_spec(masking={"policy": "rare"}, unit_sequences=1000)
        run(spec)
        labels = np.concatenate([row.label_ids for row in open_cache(spec.cache).rows()])
        num_common = int((labels < 5 + len(common)).sum())
        num_rare = len(labels) - num_common
        assert len(labels) == pytest.approx(0.15 * len(words), rel=0.15)
        assert num_rare / sum(word in rare for word in words) > 3 * num_common / sum(word in common for word in words)


class TestHidden:
    def test_none_stores_no_hidden_object(self, make_spec: MakeSpec) -> None:
        spec = make_spec(hidden={"code": "none"})
        run(spec)
        assert not list(Path(spec.cache).rglob("*.hidden*"))
        assert all(row.hidden == {} for row in open_cache(spec.cache).rows())

    def test_float16_rounds_what_float32_stores(self, make_spec: MakeSpec) -> None:
        caches = [make_spec(code, hidden={"code": code, "layers": [1, -1]}) for code in ("float32", "float16")]
        for spec in caches:
            run(spec)
        for full, half in zip(*(open_cache(spec.cache).rows() for spec in caches), strict=True):
            for layer in (1, -1):
                assert (full.hidden[layer].dtype, half.hidden[layer].dtype) == (np.float32, np.float16)
                np.testing.assert_array_equal(full.hidden[layer].astype(np.float16), half.hidden[layer])


class DiesOnce(UnitWorker):
    """Its first call anywhere ends the process, as the out-of-memory killer would."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        try:
            os.close(os.open(f"{self._store.url}.died", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().__call__(item)
        os._exit(9)


class HasNoTeacher(UnitWorker):
    def __init__(self, **_: Any) -> None:
        raise UserError("the teacher is on strike")


class DiesAtCodebook(CodebookWorker):
    def _make(self, ids: list[int], batch_tokens: int) -> None:
        os._exit(9)


def test_a_codebook_that_others_try_too_is_not_given_up(make_spec: MakeSpec) -> None:
    spec = make_spec()
    for other in ("one", "two", "three"):
        attempts.begin(Store(spec.cache), view=0, unit=attempts.CODEBOOK, run=other)
    assert run(spec).num_units_built == 5


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
class TestOnRay:
    @pytest.mark.parametrize("workers", [2, [1, 2]])
    def test_the_cache_is_the_one_built_in_process(self, workers: Any, make_spec: MakeSpec) -> None:
        here, on_ray = make_spec("here"), make_spec("ray", execution={"num_workers": workers})
        run(here)
        assert run(on_ray).num_units_built == 5
        assert shard_digests(on_ray.cache) == shard_digests(here.cache)

    def test_a_killed_actor_costs_no_unit_and_doubles_none(
        self, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, on_ray = make_spec("here"), make_spec("ray", execution={"num_workers": 2})
        run(here)
        monkeypatch.setattr("teacher_cache.pipeline.job.UnitWorker", DiesOnce)
        run(on_ray)
        assert Path(f"{on_ray.cache}.died").exists()
        assert [unit for unit, *_ in shard_digests(on_ray.cache)] == list(range(5))
        assert shard_digests(on_ray.cache) == shard_digests(here.cache)

    def test_a_worker_that_cannot_start_says_why(self, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("teacher_cache.pipeline.job.UnitWorker", HasNoTeacher)
        with pytest.raises(UserError, match=r"^a worker cannot start: .*the teacher is on strike$"):
            run(make_spec(execution={"num_workers": 1}))

    def test_a_codebook_that_ends_every_process_ends_the_build(
        self, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("teacher_cache.pipeline.codebook.CodebookWorker", DiesAtCodebook)
        spec = make_spec(execution={"num_workers": 1})
        with pytest.raises(UserError, match="the codebook is given up: 3 times the process that made it died"):
            run(spec)
        assert not list(Path(spec.cache).glob("attempts/*/*"))

    def test_a_mistake_comes_back_as_its_message_and_ray_is_left_as_it_was(
        self, corpus: Path, make_spec: MakeSpec
    ) -> None:
        import ray

        corpus.write_bytes(b"the d\xf6g")
        bars = ray.data.DataContext.get_current().enable_progress_bars
        with pytest.raises(UserError, match=r"corpus\.txt is not UTF-8 at byte 5 "):
            run(make_spec(execution={"num_workers": 1}))
        assert ray.is_initialized()
        assert ray.data.DataContext.get_current().enable_progress_bars == bars


def test_a_build_in_this_process_leaves_its_threads_as_they_were(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        caches.build_cache(tmp_path / "cache")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
