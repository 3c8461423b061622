"""Documents, names and tensors whose author means harm: nothing is believed, and nothing is written elsewhere."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import safetensors.torch
import torch

from teacher_cache.errors import UserError
from teacher_cache.format import documents, manifest, sequences, spec, tensors, token_counts
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.format.teacher_files import SavedTeacher, fetch
from teacher_cache.storage.store import Store
from tests import caches
from tests.teacher_cache.format.forgery import read_in_little_memory

HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**53 - 1, 1.5, "", "../../x", "\0", "x" * 1000),
    *([], {}, [[]], {"a": None}),
)
TEACHER_MANIFEST = "teacher/manifest.json"
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return caches.build_cache(tmp_path_factory.mktemp("built") / "cache", num_documents=42)


@pytest.fixture
def cache(built: Cache, tmp_path: Path) -> Cache:
    """A copy to be spoilt."""
    shutil.copytree(built.url, tmp_path / "cache")
    return open_cache(str(tmp_path / "cache"))


def forged(value: Any, draw: random.Random) -> Any:
    """A document in which one value, anywhere, is missing or another."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        if draw.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return value | {key: forged(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        return [*value[:place], forged(value[place], draw), *value[place + 1 :]]
    return draw.choice(HOSTILE_VALUES)


READERS: dict[str, Callable[[Cache], Any]] = {
    "spec.json": lambda cache: spec.read(cache.store),
    TEACHER_MANIFEST: lambda cache: fetch(cache.store),
    "sequences/commits/000000.json": lambda cache: sequences.read_commit(cache.store, 0),
    "commits/00000/000000000.json": lambda cache: manifest.read_commit(cache.store, 0, 0, cache.fingerprint),
}


@pytest.mark.parametrize("key", READERS)
def test_a_document_of_any_content_is_read_or_refused_with_a_remedy(cache: Cache, key: str) -> None:
    path, draw, told = Path(cache.url) / key, random.Random(0), []
    document = documents.parse(path.read_bytes(), name=key)
    for _ in range(200):
        content = forged(document, draw)
        path.write_bytes(documents.dump(content if isinstance(content, dict) else {"content": content}))
        try:
            READERS[key](cache)
        except UserError as error:
            told.append(str(error))
    assert len(told) > 60
    assert [message for message in told if "cache/" not in message or "run `teacher-cache" not in message] == []


def bracketed(start: str, repeated: str) -> bytes:
    return (start + repeated * ((documents.MAX_DOCUMENT_BYTES - len(start)) // len(repeated))).encode()


@pytest.mark.parametrize(("start", "repeated"), [("", "["), ('{"a":[', "[],")])
def test_a_document_of_many_brackets_is_refused_at_once(start: str, repeated: str) -> None:
    data, begun = bracketed(start, repeated), time.perf_counter()
    told = read_in_little_memory(lambda: documents.parse(data, name="here/x"))
    assert told.startswith("here/x is")
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1,"sha256":"%s"}' % documents.digest_of({"a": 1}).encode(),
        b'{"a": 1,"sha256":"%s"}' % documents.digest_of({"a": 1}).encode(),
        b'{"sha256":"%s","a":1}' % documents.digest_of({"a": 1}).encode(),
        json.dumps({"a": 1, "sha256": documents.digest_of({"a": 1})}).encode("utf-16"),
    ],
)
def test_a_document_that_is_not_in_canonical_form_is_refused(data: bytes) -> None:
    """Two readers might read it differently."""
    with pytest.raises(UserError, match="here/x is damaged: it is not in canonical form"):
        documents.parse(data, name="here/x")


def listing(**changes: Any) -> bytes:
    """A manifest of a teacher with one file."""
    return documents.dump({"files": [{"key": "teacher/config.json", "sha256": "0" * 64, "num_bytes": 2} | changes]})


@pytest.mark.parametrize(
    "changes",
    [
        *({"key": key} for key in ("../outside", "/outside", "teacher/../../outside", "teacher/a/b", "spec.json")),
        *({"key": key} for key in ("teacher/a\\b", "teacher/a\0b", "teacher/.hidden", "teacher/", "teacher/a\n", "")),
        *({"sha256": digest} for digest in ("../../outside", "/outside", "0" * 63 + "/", "A" * 64, "")),
    ],
)
def test_a_name_that_leaves_its_folder_is_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    files = fsspec.filesystem("memory")
    files.pipe({"/hostile/teacher/manifest.json": listing(**changes), "/hostile/teacher/config.json": b"{}"})
    with pytest.raises(UserError, match=r"teacher/manifest\.json is refused: .* is no file of a teacher; delete"):
        fetch(Store("memory://hostile", disk_cache=tmp_path / "copies"))
    assert not list(tmp_path.rglob("outside*"))
    assert not (tmp_path / "copies").exists()


def test_a_link_in_a_local_folder_is_followed_and_what_it_leads_to_is_checked(cache: Cache, tmp_path: Path) -> None:
    """Whoever may put links there may put files there: the digest decides."""
    path = Path(cache.url) / cache.manifest(0).shards[0].labels.key
    outside = tmp_path / "another-disk"
    os.rename(path, outside)
    path.symlink_to(outside)
    assert len(list(open_cache(cache.url).rows(stop=1))) == 1
    outside.write_bytes(b"other")
    with pytest.raises(UserError, match=rf"{path.name} is damaged: .*; run `teacher-cache verify"):
        list(open_cache(cache.url).rows(stop=1))
    assert outside.read_bytes() == b"other"


def test_a_shard_of_fewer_sequences_than_its_manifest_says_is_refused(cache: Cache) -> None:
    first, second = cache.manifest(0).shards[0], cache.manifest(0).shards[-1]
    assert first.num_sequences != second.num_sequences
    mixed = type(first)(**{**vars(first), "labels": second.labels, "hidden": second.hidden})
    with pytest.raises(UserError, match=rf"holds {second.num_sequences} sequences, its manifest says"):
        cache.open_shard(mixed)


def pickled() -> bytes:
    return pickle.dumps({"bert.embeddings.word_embeddings.weight": [0.0]})


def zipped() -> bytes:
    """As torch.save writes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled())
    return buffer.getvalue()


def header(values: Any, data: bytes = b"") -> bytes:
    encoded = json.dumps(values).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pickled(),
        zipped(),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99 * MEBIBYTE) + b"{" * 1000,
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [2**62, 2**62 + 4]}}, b"1234"),
        header({}),
    ],
)
def test_weights_that_are_no_safetensors_are_refused(cache: Cache, data: bytes) -> None:
    (cache.teacher.folder / "model.safetensors").write_bytes(data)
    told = read_in_little_memory(SavedTeacher(cache.teacher.folder).read_head)
    assert "model.safetensors with its config.json is" in told
    assert "run `teacher-cache build` again" in told


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("cls.predictions.transform.dense.weight", lambda x: x[0]),
        ("cls.predictions.transform.dense.weight", lambda x: x[:, :-1]),
        ("cls.predictions.transform.dense.bias", lambda x: x[:-1]),
        ("cls.predictions.bias", lambda x: x[:-1]),
        ("cls.predictions.bias", lambda x: x.long()),
        ("bert.embeddings.word_embeddings.weight", lambda x: x[:-1]),
    ],
)
def test_a_head_of_other_sizes_is_refused(cache: Cache, name: str, spoil: Any) -> None:
    path = cache.teacher.folder / "model.safetensors"
    whole = safetensors.torch.load(path.read_bytes())
    assert SavedTeacher(cache.teacher.folder).read_head()
    path.write_bytes(safetensors.torch.save(whole | {name: spoil(whole[name]).contiguous()}))
    with pytest.raises(UserError, match=r"of its head is .*; it must be floats"):
        SavedTeacher(cache.teacher.folder).read_head()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"[]",
        b"[" * MEBIBYTE,
        *(json.dumps({"model_type": "bert", "hidden_size": value}).encode() for value in (None, "32", -1, 1e300, True)),
        b'{"model_type": ["bert"]}',
        b'{"model_type": "bert", "hidden_size": ' + b"9" * 5000 + b"}",
        b"{}",
    ],
)
def test_a_configuration_that_cannot_be_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(UserError, match=r"config\.json .*; delete its folder teacher and run"):
        _ = SavedTeacher(tmp_path).hidden_size


@pytest.mark.parametrize(
    "values", [np.zeros((2, 2)), np.zeros(2, np.float32), np.array([0.5, 1.5]), np.array([np.nan]), np.array([-0.1])]
)
def test_masking_probabilities_that_cannot_be_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    store = Store(str(tmp_path / "cache"))
    token_counts.create(store, np.ones(2, np.int64), values)
    with pytest.raises(UserError, match=r"token_counts\.safetensors is refused: mask_probability must .* build` again"):
        token_counts.read_mask_probability(store)


def test_any_flipped_bit_in_tensors_is_found() -> None:
    """Before a first view is sealed, nothing else vouches for them."""
    values: dict[str, np.ndarray] = {"a": np.arange(5, dtype=np.float32), "b": np.ones((2, 3))}
    whole = tensors.save(values)
    same = 0
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        try:
            found = tensors.load(bytes(flipped))
        except (UserError, ValueError, safetensors.SafetensorError):
            continue
        assert found.keys() == values.keys()
        assert all(np.array_equal(found[name], values[name]) for name in values), place
        same += 1
    assert same < len(whole)


def test_tensors_of_another_program_are_taken_as_they_are() -> None:
    found = tensors.load(safetensors.torch.save({"a": torch.ones(2)}))
    np.testing.assert_array_equal(found["a"], np.ones(2, np.float32))
