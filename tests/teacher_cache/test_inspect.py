"""Looking into a cache: what it holds, whether it is whole, what the teacher said."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from teacher_cache import CacheSpec, UserError, build, open_cache
from teacher_cache.format import documents
from teacher_cache.format.cache import Cache
from teacher_cache.format.objects import ObjectRef
from teacher_cache.format.row import Row
from teacher_cache.inspect import info, render_rows, sample, show
from teacher_cache.storage.store import file_sha256
from teacher_cache.verify import verify
from tests import families


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two views of 3 units each."""
    folder = tmp_path_factory.mktemp("whole")
    rng = random.Random(0)
    text = "\n\n".join(" ".join(rng.choices(families.WORDS, k=rng.randint(4, 20))) for _ in range(30))
    (folder / "corpus.txt").write_text(text)
    values: dict[str, Any] = {
        "cache": str(folder / "cache"),
        "corpus": {"paths": [str(folder / "corpus.txt")], "sequence_length": 24},
        "teacher": {"model": str(families.save_pretrained(folder / "teacher"))},
        "soft_labels": {"code": "float32", "top_k": 4},
        "hidden": {"code": "float32", "layers": [2, -1]},
        "views": 2,
        "unit_sequences": 10,
        "execution": {"num_workers": 0},
    }
    build(CacheSpec(**values), progress=False)
    return str(values["cache"])


@pytest.fixture
def cache(whole: str, tmp_path: Path) -> str:
    """A copy to be damaged."""
    return str(shutil.copytree(whole, tmp_path / "cache"))


def only(cache: str, pattern: str) -> Path:
    found = sorted(Path(cache).glob(pattern))
    assert found
    return found[0]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class TestInfo:
    def test_it_counts_what_the_rows_hold(self, whole: str) -> None:
        opened = open_cache(whole)
        told = info(whole)
        assert (told["cache"], told["fingerprint"], told["num_views"]) == (whole, opened.fingerprint, 2)
        assert told["spec"]["soft_labels"]["top_k"] == 4
        assert told["notes"]["corpus"] == [str(Path(whole).with_name("corpus.txt"))]
        for view in range(2):
            rows, of_view = list(opened.rows(view)), told["views"][view]
            assert (of_view["num_shards"], of_view["num_sequences"]) == (3, 30)
            assert of_view["num_tokens"] == sum(len(row.input_ids) for row in rows)
            assert of_view["num_labels"] == sum(len(row.label_positions) for row in rows)
            assert of_view["num_kept"] == sum(len(row.kept_positions) for row in rows)
            for part in ("label", "hidden"):
                files = Path(whole).glob(f"shards/{view:05d}/*.{part}*")
                assert of_view[f"{part}_bytes"] == sum(path.stat().st_size for path in files) > 0

    def test_a_view_that_is_being_built_counts_its_units(self, cache: str) -> None:
        only(cache, "manifests/00001-*").unlink()
        only(cache, "commits/00001/*").unlink()
        told = info(cache)
        assert (told["num_views"], len(told["views"]), told["units_committed_in_next_view"]) == (1, 1, 2)


class TestVerify:
    def test_a_whole_cache_is_ok(self, whole: str) -> None:
        found = verify(open_cache(whole))
        assert (found.ok, found.problems, found.num_views, found.num_objects) == (True, [], 2, 12)
        assert found.num_bytes == sum(path.stat().st_size for path in Path(whole, "shards").rglob("*.parquet"))
        assert found.teacher is None

    @pytest.mark.parametrize(
        "pattern",
        [
            "shards/00000/*.labels.parquet",
            "shards/00001/*.labels.parquet",
            "shards/00000/*.hidden*",
            "sequences/parts/*",
            "teacher/model.safetensors",
            "teacher/tokenizer.json",
        ],
    )
    @pytest.mark.parametrize("harm", [flip, Path.unlink])
    def test_each_damaged_or_missing_object_is_named(
        self, pattern: str, harm: Callable[[Path], None], cache: str
    ) -> None:
        path = only(cache, pattern)
        harm(path)
        found = verify(open_cache(cache))
        assert not found.ok
        assert len(found.problems) == 1
        assert f"{path} is {'damaged' if harm is flip else 'missing'}" in found.problems[0]

    def test_all_problems_are_listed_at_once(self, cache: str) -> None:
        for pattern in ("shards/00000/*.labels.parquet", "shards/00001/*.hidden*", "teacher/config.json"):
            flip(only(cache, pattern))
        assert len(verify(open_cache(cache)).problems) == 3

    def test_what_a_view_was_not_built_from_is_named(self, cache: str) -> None:
        """Whole by their own digests, but not what the manifests say."""
        spec = only(cache, "spec.json")
        document = documents.parse(spec.read_bytes(), name="spec")
        spec.write_bytes(documents.dump(document | {"notes": {}}))
        swap_weights(cache)
        problems = [f"{cache}: spec.json, teacher: not what view {view} was built from" for view in range(2)]
        assert verify(open_cache(cache)).problems == problems

    @pytest.mark.parametrize("view", [0, 1])
    def test_a_damaged_manifest_is_a_problem_and_other_views_are_checked(self, view: int, cache: str) -> None:
        path = only(cache, f"manifests/{view:05d}-*")
        path.write_bytes(path.read_bytes()[:-4])
        flip(only(cache, f"shards/{1 - view:05d}/*.labels.parquet"))
        problems = "\n".join(verify(open_cache(cache)).problems)
        assert problems.count("\n") == 1
        assert f"{path} is damaged" in problems
        assert f"{cache}/shards/{1 - view:05d}/" in problems

    def test_missing_sequences_are_a_problem(self, cache: str) -> None:
        path = only(cache, "sequences/manifest.parquet")
        path.unlink()
        problems = verify(open_cache(cache)).problems
        assert problems
        assert all(f"an object is missing: [Errno 2] No such file or directory: '{path}'" in line for line in problems)

    def test_without_a_sealed_view_there_is_nothing_to_verify(self, cache: str) -> None:
        for path in Path(cache, "manifests").iterdir():
            path.unlink()
        with pytest.raises(UserError, match=r"view 0 is not sealed; finish it with `teacher-cache build`"):
            verify(open_cache(cache))


def swap_weights(cache: str) -> None:
    """Another teacher in place of the cache's own, its list of files made to fit."""
    weights = Path(cache, "teacher/model.safetensors")
    tensors = load_file(weights)
    save_file({name: torch.flip(value, (0,)) for name, value in tensors.items()}, weights, {"format": "pt"})
    listed = Path(cache, "teacher/manifest.json")
    document = documents.parse(listed.read_bytes(), name="manifest")
    for file in document["files"]:
        path = Path(cache, ObjectRef(**file).key)
        file |= {"sha256": file_sha256(path), "num_bytes": path.stat().st_size}
    listed.write_bytes(documents.dump(document))


class TestTeacherAskedAgain:
    def test_it_says_the_same(self, whole: str) -> None:
        found = verify(open_cache(whole), ask_teacher=True).teacher
        assert found is not None
        assert set(found) == {"logit", "rest_log_sum_exp", "hidden"}
        assert max(found.values()) < 1e-4

    def test_it_says_nearly_the_same_as_lossy_codes(self, whole: str, tmp_path: Path) -> None:
        folder = Path(whole).parent
        values: dict[str, Any] = {
            "cache": str(tmp_path / "cache"),
            "corpus": {"paths": [str(folder / "corpus.txt")], "sequence_length": 24},
            "teacher": {"model": str(folder / "teacher")},
            "views": 1,
            "execution": {"num_workers": 0},
        }
        build(CacheSpec(**values), progress=False)
        found = verify(open_cache(values["cache"]), ask_teacher=True).teacher
        assert found is not None
        assert 1e-4 < found["logit"] < 0.032
        assert 1e-4 < found["rest_log_sum_exp"] < 0.02
        assert 1e-4 < found["hidden"] < 1

    def test_a_damaged_cache_is_not_compared(self, cache: str) -> None:
        flip(only(cache, "shards/00000/*.labels.parquet"))
        assert verify(open_cache(cache), ask_teacher=True).teacher is None

    @pytest.mark.parametrize("wrong", ["logit", "rest_log_sum_exp", "hidden"])
    def test_one_wrong_row_of_any_kind_is_seen(self, wrong: str, whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """As from a cache that was built wrongly: every digest matches."""

        def spoiled(cache: Cache, num_rows: int) -> Iterator[Row]:
            *rows, last = sample(cache, num_rows)
            yield from rows
            changes = {
                "logit": {"topk_logits": last.topk_logits + 0.5},
                "rest_log_sum_exp": {
                    "rest_log_sum_exp": {t: rest + 0.5 * (t == 2) for t, rest in last.rest_log_sum_exp.items()}
                },
                "hidden": {"hidden": {layer: states + 0.5 * (layer == 2) for layer, states in last.hidden.items()}},
            }
            yield replace(last, **changes[wrong])

        monkeypatch.setattr("teacher_cache.verify.sample", spoiled)
        found = verify(open_cache(whole), ask_teacher=True).teacher
        assert found is not None
        assert found.pop(wrong) == pytest.approx(0.5, abs=1e-3)
        assert max(found.values()) < 1e-4


class TestShow:
    def test_rows_are_text_with_what_the_teacher_said(self, whole: str) -> None:
        shown = show(open_cache(whole), view=1, start=8, stop=12)
        rows = list(open_cache(whole).rows(1, 8, 12))
        assert [row["sequence_id"] for row in shown] == [8, 9, 10, 11]
        vocabulary = {token_id: token for token, token_id in families.make_tokenizer().get_vocab().items()}
        for told, row in zip(shown, rows, strict=True):
            assert told["text"] == " ".join(vocabulary[token] for token in row.input_ids.tolist())
            assert [label["position"] for label in told["labels"]] == row.label_positions.tolist()
            assert [label["true"] for label in told["labels"]] == [vocabulary[token] for token in row.label_ids]
            for label in told["labels"]:
                place = row.kept_positions.tolist().index(label["position"])
                said = dict(zip(row.topk_ids[place].tolist(), row.topk_logits[place].tolist(), strict=True))
                best_first = sorted(said, key=lambda token: -said[token])
                assert list(label["teacher"]) == [vocabulary[token] for token in best_first]
                assert list(label["teacher"].values()) == [round(said[token], 2) for token in best_first]
        assert any("[MASK]" in row["text"] for row in shown)

    def test_the_text_for_a_person_holds_all_of_it(self, whole: str) -> None:
        shown = show(open_cache(whole), view=0, start=0, stop=2)
        printed = render_rows(shown)
        for row in shown:
            assert (
                f"sequence {row['sequence_id']}, document {row['document_id']}, {row['kept']} positions kept" in printed
            )
            assert row["text"] in printed
            for label in row["labels"]:
                said = ", ".join(f"{token} {logit:g}" for token, logit in label["teacher"].items())
                assert f"at {label['position']}: {label['true']!r}; teacher: {said}" in printed

    def test_a_label_that_is_not_kept_says_so(self) -> None:
        labels = [{"position": 3, "true": "cat"}]
        row = {"sequence_id": 1, "document_id": 0, "kept": 0, "text": "the [MASK]", "labels": labels}
        assert "at 3: 'cat'; teacher: not kept" in render_rows([row])

    def test_an_unsealed_view_is_refused(self, whole: str) -> None:
        with pytest.raises(UserError, match=r"view 2 is not sealed"):
            show(open_cache(whole), view=2, start=0, stop=1)
