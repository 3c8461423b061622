"""What stops a build, and what it has left and not asked by then."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from teacher_cache import CacheSpec, UserError
from tests import families
from tests.teacher_cache.builds import MakeSpec, counted_calls, run, shard_digests, snapshot


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


class TestLeftovers:
    def test_what_is_left_of_another_cache_is_never_built_on(self, make_spec: MakeSpec) -> None:
        """A build that died while it tokenised, whose spec alone was deleted."""
        spec = make_spec()
        run(spec)
        for name in ("spec.json", "sequences/manifest.parquet"):
            Path(spec.cache, name).unlink()
        for name in ("commits", "manifests", "shards"):
            shutil.rmtree(Path(spec.cache, name))
        with pytest.raises(UserError, match=r"holds what was built of another cache .*; delete all of it, or choose"):
            run(make_spec(corpus={"sequence_length": 12}))
        Path(spec.cache, "spec.json").unlink()
        assert run(spec).num_units_built == 5, "of its own leftovers it goes on"


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
