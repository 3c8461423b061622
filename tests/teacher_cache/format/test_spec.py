"""Identity and spec.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.errors import UserError
from teacher_cache.format import documents, spec
from teacher_cache.format.spec import Identity, differences
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.storage.store import Store
from tests.teacher_cache.format.samples import flip, identity

GOLDEN_FINGERPRINT = "7da2c56bd3f11e134a5d742e58f0ddaed41bfa50ae60ad5580d8b7aa7ec72821"
NOTES = {"corpus": ["/data/a.txt"], "teacher": {"model": "bert", "revision": None}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "cache"))


def rewrite(store: Store, **changes: Any) -> None:
    """Changes spec.json, and gives it the right digest of its own."""
    document = json.loads(store.read("spec.json", max_bytes=10**6))
    del document["sha256"]
    store.replace("spec.json", documents.dump(document | changes))


def test_golden_fingerprint() -> None:
    """If this fails, every existing cache has lost its name: raise FORMAT_VERSION, or undo."""
    assert identity().fingerprint == GOLDEN_FINGERPRINT


def test_every_section_is_part_of_the_fingerprint() -> None:
    corpus, same = to_dict(identity())["corpus"], identity().fingerprint
    changes: list[dict[str, Any]] = [
        {"corpus": corpus | {"sequence_length": 64}},
        {"corpus": corpus | {"packing": "full"}},
        {"corpus": corpus | {"files": corpus["files"] * 2}},
        {"corpus": corpus | {"tokenizer_sha256": "4" * 64}},
        {"teacher": {"sha256": "4" * 64, "dtype": "float32"}},
        {"teacher": {"sha256": "3" * 64, "dtype": "bfloat16"}},
        {"masking": {"rate": 0.15, "seed": 8}},
        {"keep": {"masked": 1.0, "unmasked": 0.5}},
        {"soft_labels": {"top_k": 3, "temperatures": (1.0, 2.0)}},
        {"soft_labels": {"top_k": 2, "temperatures": (1.0, 2.0), "code": "packed"}},
        {"hidden": {"layers": (-1,), "code": "float16"}},
        {"hidden": {"layers": (-1,), "code": "transform"}},
        {"hidden": {"layers": (-1,), "code": "transform", "quality": "high"}},
        {"unit_sequences": 5},
    ]
    fingerprints = {identity(**change).fingerprint for change in changes}
    assert len(fingerprints | {same}) == len(changes) + 1


def test_an_identity_survives_plain_values() -> None:
    assert parse(Identity, to_dict(identity())) == identity()


def test_creating_a_cache_again_from_the_same_spec_is_fine(store: Store) -> None:
    spec.create_or_check(store, identity(), NOTES)
    spec.create_or_check(store, identity(), {"corpus": ["s3://mirror/a.txt"]})
    assert spec.read(store) == (identity(), NOTES)


@pytest.mark.parametrize("notes", [NOTES, {}, {"corpus": ["/data/a.txt"] * 1000}])
def test_another_spec_is_refused_with_every_differing_field(store: Store, notes: dict[str, Any]) -> None:
    spec.create_or_check(store, identity(), NOTES)
    other = identity(keep={"masked": 1.0, "unmasked": 0.5}, teacher={"sha256": "4" * 64, "dtype": "float32"})
    with pytest.raises(UserError) as error:
        spec.create_or_check(store, other, notes)
    assert str(error.value).splitlines() == [
        f"{store.url} was built from another spec:",
        "  keep.unmasked: 0.25 in the cache, 0.5 in the spec",
        f"  teacher.sha256: '{'3' * 64}' in the cache, '{'4' * 64}' in the spec",
        "choose another `cache` URL, or the cache's own values",
    ]
    assert spec.read(store) == (identity(), NOTES)


def test_a_folder_without_spec_is_no_cache(store: Store) -> None:
    with pytest.raises(UserError, match=r"cache is no teacher cache: it has no spec.json"):
        spec.read(store)


def test_a_flipped_bit_in_a_value_is_found(store: Store) -> None:
    spec.create_or_check(store, identity(), NOTES)
    data = store.read("spec.json", max_bytes=10**6)
    flip(Path(store.path("spec.json")), data.index(b"/data/a.txt") + 6)
    with pytest.raises(UserError, match=r"spec.json is damaged"):
        spec.read(store)


def test_a_spec_that_is_not_json_is_refused(store: Store) -> None:
    store.create("spec.json", b"cache: here\n")
    with pytest.raises(UserError, match=r"spec.json is not a document of a teacher cache"):
        spec.read(store)


def test_another_format_version_is_named(store: Store) -> None:
    spec.create_or_check(store, identity(), NOTES)
    rewrite(store, identity=to_dict(identity()) | {"format_version": 99, "invented_later": True})
    with pytest.raises(UserError, match="has format version 99; this program reads version 2"):
        spec.read(store)


def test_an_identity_with_a_refused_value_is_named(store: Store) -> None:
    spec.create_or_check(store, identity(), NOTES)
    rewrite(store, identity=to_dict(identity()) | {"unit_sequences": 0})
    with pytest.raises(UserError, match=r"spec.json is refused:\n  unit_sequences: .*greater than 0"):
        spec.read(store)


def test_a_fingerprint_of_another_identity_is_refused(store: Store) -> None:
    spec.create_or_check(store, identity(), NOTES)
    rewrite(store, fingerprint="0" * 64)
    with pytest.raises(UserError, match="its fingerprint does not belong to its identity"):
        spec.read(store)


def test_differences_name_changed_added_and_missing_values() -> None:
    left = {"a": {"b": 1, "c": [1, 2]}, "only": None, "left": 0, "same": 5}
    right = {"a": {"b": 2, "c": [1]}, "only": None, "right": {"deep": 1}, "same": 5}
    assert differences(left, right) == [
        ("a.b", 1, 2),
        ("a.c", [1, 2], [1]),
        ("left", 0, None),
        ("right", None, {"deep": 1}),
    ]


TREES = st.recursive(
    st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=6
)


@given(TREES, TREES)
def test_trees_without_differences_are_equal(left: Any, right: Any) -> None:
    assert (differences(left, right) == []) == (left == right)
    assert differences(left, left) == []
    assert differences(right, left) == [(path, there, here) for path, here, there in differences(left, right)]
