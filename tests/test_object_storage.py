"""The whole path on object storage: in-process S3 by default, a real Ceph gateway with `-m integration`."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from student_train import train
from teacher_cache import UserError, build, open_cache
from teacher_cache.format import documents
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store
from teacher_cache.verify import verify
from tests import races
from tests import s3 as s3_server
from tests.families import save_pretrained
from tests.object_storage import cache_spec, put_corpus, student_spec

NUM_THREADS = 8


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def local(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and its cache."""
    folder = tmp_path_factory.mktemp("local")
    put_corpus(f"{folder}/corpus")
    build(cache_spec(str(folder), teacher), progress=False)
    return folder


@pytest.fixture
def cache_url(bucket: str, local: Path) -> str:
    """A copy in the bucket of the local cache and its corpus."""
    for path in local.rglob("*"):
        if path.is_file():
            s3_server.put(f"{bucket}/{path.relative_to(local)}", path.read_bytes())
    return f"{bucket}/cache"


def shards_of(url: str) -> list[tuple[str, str]]:
    """Keys and digests of all objects of all views."""
    cache = open_cache(url)
    shards = [shard for view in range(cache.num_views) for shard in cache.manifest(view).shards]
    return [(ref.key, ref.sha256) for shard in shards for ref in (shard.labels, shard.hidden) if ref]


def flip(url: str) -> None:
    """Flips a bit in the middle of an object."""
    data = bytearray(s3_server.get(url))
    data[len(data) // 2] ^= 1
    s3_server.put(url, bytes(data))


def delete(url: str) -> None:
    s3_server.client().delete_object(**s3_server.split(url))


def download(url: str, folder: Path) -> Path:
    """A folder of a bucket."""
    prefix = s3_server.split(url)["Key"]
    bucket = url.removesuffix(f"/{prefix}")
    for key in s3_server.keys(bucket):
        if key.startswith(f"{prefix}/"):
            (folder / key.rsplit("/", 1)[1]).write_bytes(s3_server.get(f"{bucket}/{key}"))
    return folder


def test_from_a_corpus_to_a_student_on_object_storage(bucket: str, teacher: Path, tmp_path: Path) -> None:
    put_corpus(f"{bucket}/corpus")
    spec = cache_spec(bucket, teacher)
    first, again = build(spec, progress=False), build(spec, progress=False)
    assert first.num_units_built > 4
    assert again.num_units_built == 0
    of_the_call = {"num_units_built": 0, "seconds": 0, "teacher_seconds": 0, "tokens_per_s": 0}
    assert replace(again, **of_the_call) == replace(first, **of_the_call)

    cache = open_cache(spec.cache)
    rows = list(cache.rows(1))
    assert [row.sequence_id for row in rows] == list(range(first.num_sequences))
    replayed = np.concatenate([cache.replay(row, 2.0) for row in rows])
    np.testing.assert_allclose(replayed.sum(axis=1), 1, atol=1e-4)
    verification = verify(open_cache(spec.cache), ask_teacher=True)
    assert verification.ok, verification.problems
    assert verification.num_objects == len(shards_of(spec.cache)) == 2 * first.num_units_built
    assert verification.teacher is not None
    assert verification.teacher["logit"] < 0.032
    assert verification.teacher["rest_log_sum_exp"] < 0.02
    assert verification.teacher["hidden"] < 1

    summary = train(student_spec(bucket))
    assert (summary.num_steps, summary.fingerprints) == (3, [first.fingerprint])
    folder = download(summary.model, tmp_path)
    student = AutoModelForMaskedLM.from_pretrained(folder)
    inputs = AutoTokenizer.from_pretrained(folder)("the old dog", return_tensors="pt")
    assert torch.isfinite(student(**inputs).logits).all()
    metrics = s3_server.get(f"{bucket}/student/metrics.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3]


def test_a_cache_in_a_bucket_holds_the_same_bytes_as_a_local_one(bucket: str, teacher: Path, local: Path) -> None:
    put_corpus(f"{bucket}/corpus")
    spec = cache_spec(bucket, teacher)
    build(spec, progress=False)
    assert open_cache(spec.cache).fingerprint == open_cache(str(local / "cache")).fingerprint
    assert shards_of(spec.cache) == shards_of(str(local / "cache"))
    written = {key.removeprefix("cache/") for key in s3_server.keys(bucket) if key.startswith("cache/shards/")}
    assert written == {key for key, _ in shards_of(spec.cache)}


def test_a_build_goes_on_where_another_stopped(bucket: str, cache_url: str, teacher: Path) -> None:
    expected = shards_of(cache_url)
    for key in ("manifests/00001-00000.parquet", "commits/00001/000000001.json"):
        delete(f"{cache_url}/{key}")
    assert build(cache_spec(bucket, teacher), progress=False).num_units_built == 1
    assert shards_of(cache_url) == expected


@pytest.mark.parametrize("part", [0, 1], ids=["labels", "hidden"])
def test_a_flipped_bit_in_a_bucket_is_found_by_readers_and_verify(cache_url: str, part: int) -> None:
    key = shards_of(cache_url)[2 + part][0]
    flip(f"{cache_url}/{key}")
    with pytest.raises(UserError, match=rf"{cache_url}/{key} is damaged.*`teacher-cache verify {cache_url}`"):
        list(open_cache(cache_url).rows(0))
    verification = verify(open_cache(cache_url))
    assert not verification.ok
    assert [problem.split(" is damaged")[0] for problem in verification.problems] == [f"{cache_url}/{key}"]


def test_a_missing_shard_is_found_by_readers_and_verify(cache_url: str) -> None:
    key = shards_of(cache_url)[0][0]
    delete(f"{cache_url}/{key}")
    with pytest.raises(UserError, match=rf"{cache_url}/{key} is missing"):
        list(open_cache(cache_url).rows(0))
    assert [problem.split(";")[0] for problem in verify(open_cache(cache_url)).problems] == [
        f"{cache_url}/{key} is missing"
    ]


def test_verify_asks_the_bucket_and_not_the_local_copies(cache_url: str) -> None:
    list(open_cache(cache_url).rows(0))
    flip(f"{cache_url}/{shards_of(cache_url)[0][0]}")
    assert not verify(open_cache(cache_url)).ok


def test_a_damaged_local_copy_is_dropped_and_fetched_again(bucket: str, tmp_path: Path) -> None:
    writer = Store(f"{bucket}/cache")
    data = b"x" * 1000
    digest = documents.sha256(data)
    writer.create("shards/a", data)
    copy = Store(writer.url, disk_cache=tmp_path).fetch("shards/a", digest=digest, num_bytes=1000)
    copy.write_bytes(b"y" * 1000)
    assert Store(writer.url, disk_cache=tmp_path).fetch("shards/a", digest=digest, num_bytes=1000) == copy
    assert copy.read_bytes() == data
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == [copy]


@pytest.mark.usefixtures("cache_url")
def test_another_spec_is_refused_with_its_difference(bucket: str, teacher: Path) -> None:
    other = cache_spec(bucket, teacher, unit_sequences=8, masking={"seed": 1})
    with pytest.raises(UserError, match=r"masking.seed: 0 in the cache, 1 in the spec\n  unit_sequences: 16 in the"):
        build(other, progress=False)


def test_of_many_concurrent_creations_one_wins_whole(bucket: str) -> None:
    store = Store(f"{bucket}/cache")
    for attempt in range(5):
        key = f"race/{attempt}"
        contents = [bytes([65 + thread]) * 10_000 for thread in range(NUM_THREADS)]
        won = races.create_at_once(store, key, contents)
        assert won.count(True) == 1
        assert s3_server.get(f"{bucket}/cache/{key}") == contents[won.index(True)]


def test_concurrent_creations_of_the_same_bytes_all_succeed(bucket: str) -> None:
    store = Store(f"{bucket}/cache")
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        assert all(threads.map(lambda _: store.create("same", b"bytes"), range(NUM_THREADS)))


def test_objects_behave_as_in_a_local_folder(bucket: str) -> None:
    store = Store(f"{bucket}/cache/")
    for key in ("a/2", "a/10", "a/deep/1", "ab/1"):
        assert store.create(key, b"content")
    assert not store.create("a/2", b"other")
    assert not store.create("a/2", b"content and more" * 2**16)
    assert store.list("a") == ["a/10", "a/2", "a/deep"]
    assert store.list("missing") == []
    store.replace("a/2", b"")
    assert store.read("a/2", max_bytes=10) == b""
    assert not store.create("a/2", b"x")
    with pytest.raises(UserError, match="a/10 is larger than the 6 bytes allowed here"):
        store.read("a/10", max_bytes=6)
    with pytest.raises(FileNotFoundError):
        store.read("a/missing", max_bytes=10)
    store.delete_folder("a")
    store.delete_folder("a")
    assert s3_server.keys(bucket) == ["cache/ab/1"]


@pytest.mark.integration
@pytest.mark.ray
def test_command_lines_work_on_ceph_through_a_ray_of_their_own(ceph: str, teacher: Path, tmp_path: Path) -> None:
    """Processes of their own: a Ray that another test started would not know this store's credentials."""
    put_corpus(f"{ceph}/corpus")
    config, student = tmp_path / "cache.yaml", tmp_path / "student.yaml"
    config.write_text(json.dumps(to_dict(cache_spec(ceph, teacher))))
    student.write_text(json.dumps(to_dict(student_spec(ceph))))
    built = run_command("teacher_cache.cli", "build", str(config), "execution.num_workers=1")
    again = run_command("teacher_cache.cli", "build", str(config), "execution.num_workers=1")
    assert (built["num_units_built"] > 4, again["num_units_built"]) == (True, 0)
    trained = run_command("student_train.cli", "run", str(student), "execution.num_workers=2")
    assert (trained["num_steps"], trained["num_workers"]) == (3, 2)
    AutoModelForMaskedLM.from_pretrained(download(f"{ceph}/student/model", tmp_path))


def run_command(module: str, *arguments: str) -> dict[str, object]:
    """What a command line prints as JSON."""
    command = [sys.executable, "-m", module, arguments[0], "--json", *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, object] = json.loads(done.stdout[done.stdout.index("{\n") :])
    return result


@pytest.mark.integration
@pytest.mark.parametrize("num_builders", [2, 4])
def test_builders_at_once_make_one_cache(num_builders: int, ceph: str, teacher: Path, tmp_path: Path) -> None:
    put_corpus(f"{ceph}/corpus")
    spec = cache_spec(ceph, teacher, unit_sequences=6)
    config = tmp_path / "cache.yaml"
    config.write_text(json.dumps(to_dict(spec)))
    with ThreadPoolExecutor(num_builders) as builders:
        told = list(builders.map(lambda _: run_command("teacher_cache.cli", "build", str(config)), range(num_builders)))
    assert len({summary["num_bytes"] for summary in told}) == 1
    cache = open_cache(spec.cache)
    for view in (0, 1):
        shards = cache.manifest(view).shards
        assert [shard.unit for shard in shards] == list(range(len(shards)))
    assert verify(cache).ok
    assert Store(spec.cache).list("attempts/00000") == []
