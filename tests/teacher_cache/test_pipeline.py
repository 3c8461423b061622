"""From corpus files to a sealed cache, in this process and on Ray."""

import gzip
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from teacher_cache import CacheSpec, UserError, build, open_cache
from teacher_cache.pipeline import BuildSummary
from teacher_cache.teacher import Teacher
from teacher_cache.workers import UnitWorker
from tests import caches, families

NUM_DOCUMENTS = 40
MaskedInput = tuple[bytes, ...]


def make_documents(seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(families.WORDS, k=rng.randint(2, 40))) for _ in range(NUM_DOCUMENTS)]


DOCUMENTS = make_documents()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.save_pretrained(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return path


@pytest.fixture
def make_spec(tmp_path: Path, corpus: Path, teacher: Path) -> Callable[..., CacheSpec]:
    """A small cache of 5 units a view; keywords replace whole values, and are merged into sections."""

    def make(cache: str = "cache", **changes: Any) -> CacheSpec:
        values: dict[str, Any] = {
            "cache": str(tmp_path / cache),
            "corpus": {"paths": [str(corpus)], "sequence_length": 16},
            "teacher": {"model": str(teacher)},
            "views": 1,
            "unit_sequences": 16,
            "execution": {"num_workers": 0},
        }
        for key, value in changes.items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
        return CacheSpec(**values)

    return make


MakeSpec = Callable[..., CacheSpec]


def run(spec: CacheSpec) -> BuildSummary:
    return build(spec, progress=False)


def shard_digests(cache: str, view: int = 0) -> list[tuple[int, str, str | None]]:
    shards = open_cache(cache).manifest(view).shards
    return [(shard.unit, shard.labels.sha256, shard.hidden.sha256 if shard.hidden else None) for shard in shards]


def masked_inputs(cache: str, view: int = 0) -> list[MaskedInput]:
    """Bytes of what masking decided of each sequence."""
    names = ("input_ids", "label_positions", "label_ids", "kept_positions", "rates")
    return [tuple(getattr(row, name).tobytes() for name in names) for row in open_cache(cache).rows(view)]


def snapshot(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def forget(cache: str, unit: int, view: int = 0) -> None:
    """As if the builder had been killed before it committed this unit."""
    (Path(cache) / f"commits/{view:05d}/{unit:09d}.json").unlink()
    (Path(cache) / f"manifests/{view:05d}-00000.parquet").unlink()


@contextmanager
def counted_calls(answer: Callable[[int, torch.Tensor], torch.Tensor] | None = None) -> Iterator[list[int]]:
    """Lists the sequences of each call of the teacher; `answer` may change what a call gives."""
    calls: list[int] = []
    real = Teacher.encode

    def encode(self: Teacher, input_ids: torch.Tensor, *arguments: Any) -> dict[int, torch.Tensor]:
        calls.append(len(input_ids))
        states = real(self, input_ids, *arguments)
        return {layer: answer(len(calls), state) for layer, state in states.items()} if answer else states

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "encode", encode)
        yield calls


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
        exact: Any = {"soft_labels": {"code": "float32"}, "hidden": {"code": "float32"}}
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


class TestRefusedBeforeAnythingIsWritten:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"corpus": {"paths": ["/nowhere/a.txt"]}}, r"/nowhere/a\.txt does not exist"),
            ({"corpus": {"paths": ["/tmp/nothing-here-*.txt"]}}, r"nothing-here-\*\.txt matches no file"),
            ({"corpus": {"sequence_length": 65}}, r"sequence_length is 65, the teacher has 64 positions; lower it"),
            ({"soft_labels": {"top_k": 61}}, r"top_k is 61, the teacher's vocabulary has 60 tokens"),
            ({"hidden": {"layers": [5]}}, r"hidden\.layers names 5, the teacher has layers 0 to 4, or -5 to -1"),
            ({"teacher": {"model": "/nowhere/teacher"}}, r"teacher '/nowhere/teacher' cannot be loaded"),
        ],
    )
    def test_bad_values(self, changes: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
        spec = make_spec(**changes)
        with pytest.raises(UserError, match=message):
            run(spec)
        assert not Path(spec.cache).exists()

    def test_layers_that_are_not_stored_are_not_checked(self, make_spec: MakeSpec) -> None:
        assert run(make_spec(hidden={"layers": [5], "code": "none"})).num_views == 1

    def test_a_tokenizer_that_does_not_fit(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        folder = families.save_pretrained(tmp_path / "other", vocab_size=40)
        spec = make_spec(teacher={"model": str(folder)})
        with pytest.raises(UserError, match=r"a vocabulary of 40, its tokenizer one of 60"):
            run(spec)
        assert not Path(spec.cache).exists()

    def test_another_model_type(self, make_spec: MakeSpec, tmp_path: Path) -> None:
        folder = families.save_pretrained(tmp_path / "other")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
        spec = make_spec(teacher={"model": str(folder)})
        with pytest.raises(UserError, match=r"model type 'gpt2' is not supported; supported are bert, roberta"):
            run(spec)
        assert not Path(spec.cache).exists()

    def test_a_cache_of_another_spec_names_each_field_with_both_values(self, make_spec: MakeSpec) -> None:
        run(make_spec())
        before = snapshot(make_spec().cache)
        changed = make_spec(masking={"seed": 7}, soft_labels={"top_k": 3}, views=2)
        message = (
            r"built from another spec:\n"
            r"  masking\.seed: 0 in the cache, 7 in the spec\n"
            r"  soft_labels\.top_k: 8 in the cache, 3 in the spec\n"
            r"choose another"
        )
        with counted_calls() as calls, pytest.raises(UserError, match=message):
            run(changed)
        assert calls == []
        assert snapshot(make_spec().cache) == before

    def test_another_teacher_or_corpus_is_another_spec(self, make_spec: MakeSpec, corpus: Path, tmp_path: Path) -> None:
        run(make_spec())
        other = families.save_pretrained(tmp_path / "other", seed=1)
        with pytest.raises(UserError, match=r"\n  teacher\.sha256: '\w{64}' in the cache, '\w{64}' in the spec\n"):
            run(make_spec(teacher={"model": str(other)}))
        corpus.write_text("the cat sat")
        with pytest.raises(UserError, match=r"\n  corpus\.files: .* in the cache, .* in the spec\n"):
            run(make_spec())


class TestRefusedBeforeTheTeacherIsAsked:
    def refused(self, spec: CacheSpec, message: str) -> None:
        """Twice, because the first attempt may have left something."""
        for _ in range(2):
            with counted_calls() as calls, pytest.raises(UserError, match=message):
                run(spec)
            assert calls == []
            assert not Path(spec.cache).exists()

    @pytest.mark.parametrize("text", ["", " \n\n \t\n"])
    def test_an_empty_corpus(self, text: str, corpus: Path, make_spec: MakeSpec) -> None:
        corpus.write_text(text)
        self.refused(make_spec(), r"the corpus has no usable text: 1 files, no token; check corpus\.paths")

    def test_a_wrong_text_field(self, tmp_path: Path, make_spec: MakeSpec) -> None:
        (tmp_path / "c.jsonl").write_text(json.dumps({"body": "the cat", "id": 1}))
        spec = make_spec(corpus={"paths": [str(tmp_path / "c.jsonl")]})
        self.refused(spec, r"c\.jsonl line 1: no field 'text', there are: body, id; set corpus\.text_field")

    def test_a_file_that_is_not_utf8(self, corpus: Path, make_spec: MakeSpec) -> None:
        corpus.write_bytes(b"the cat sat\nthe d\xf6g sat\n")
        self.refused(make_spec(), r"corpus\.txt is not UTF-8 at byte 17 ")

    def test_a_mended_corpus_is_built_at_the_same_url(self, corpus: Path, make_spec: MakeSpec) -> None:
        text = corpus.read_text()
        corpus.write_bytes(b"\xff")
        self.refused(make_spec(), "is not UTF-8")
        corpus.write_text(text)
        assert run(make_spec()).num_units_built == 5


class TestTeacherOfAnotherBuilder:
    """As another version of transformers writes it, put by a builder that died before it listed the files."""

    def test_files_written_otherwise_are_taken_if_they_are_the_same_teacher(self, make_spec: MakeSpec) -> None:
        spec, reference = make_spec(), make_spec("reference")
        run(reference)
        there = Path(spec.cache, "teacher/config.json")
        there.parent.mkdir(parents=True)
        config = json.loads(Path(reference.cache, "teacher/config.json").read_text())
        there.write_text(json.dumps(config | {"transformers_version": "4.0.0"}))
        run(spec)
        assert json.loads(there.read_text())["transformers_version"] == "4.0.0"
        assert shard_digests(spec.cache) == shard_digests(reference.cache)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
    def test_files_of_another_teacher_or_damaged_ones_are_refused(self, name: str, make_spec: MakeSpec) -> None:
        spec, reference = make_spec(), make_spec("reference")
        run(reference)
        there = Path(spec.cache, "teacher", name)
        there.parent.mkdir(parents=True)
        data = Path(reference.cache, "teacher", name).read_bytes()
        changed = {
            "config.json": re.sub(rb'"layer_norm_eps": [^,]*', b'"layer_norm_eps": 0.1', data),
            "model.safetensors": data[:-1] + bytes([data[-1] ^ 1]),
            "tokenizer.json": data.replace(b'"cat"', b'"dog"'),
        }[name]
        assert changed != data
        there.write_bytes(changed)
        for _ in range(2):
            with pytest.raises(UserError, match=r"/teacher holds files of another teacher, or damaged ones; delete"):
                run(spec)


class DiesOnce(UnitWorker):
    """Its first call anywhere ends the process, as the out-of-memory killer would."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        try:
            os.close(os.open(f"{self._store.url}.died", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().__call__(item)
        os._exit(9)


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
        monkeypatch.setattr("teacher_cache.views.UnitWorker", DiesOnce)
        run(on_ray)
        assert Path(f"{on_ray.cache}.died").exists()
        assert [unit for unit, *_ in shard_digests(on_ray.cache)] == list(range(5))
        assert shard_digests(on_ray.cache) == shard_digests(here.cache)

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
