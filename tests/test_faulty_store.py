"""The whole way on stores and networks that fail: what comes out is what comes out of good ones, or a clear message."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from student_train import train
from teacher_cache import CacheSpec, UserError, build, open_cache
from teacher_cache.format import manifest
from teacher_cache.format.cache import Cache
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store
from tests import caches, faults, s3
from tests.ceph import Gateway
from tests.faults import Faults, Proxy
from tests.student_train import runs

SHARE = 0.2
DISTURBANCES = {
    "refused": Faults(refused=SHARE),
    "reset": Faults(reset=SHARE),
    "lost": Faults(lost=SHARE),
    "truncated": Faults(truncated=SHARE),
    "delayed": Faults(delayed=SHARE, delay_s=0.1),
    "mixed": Faults(refused=0.04, reset=0.04, lost=0.04, truncated=0.04, delayed=0.04, delay_s=0.1),
}
NUM_RACERS, NUM_RACES = 4, 25


@dataclass(frozen=True)
class Undisturbed:
    """A local cache, and what a student learned from it."""

    spec: CacheSpec
    cache: Cache
    student: bytes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    spec = caches.make_spec(folder / "cache", views=2, keep={"masked": 1.0, "unmasked": 0.2})
    build(spec, progress=False)
    cache = open_cache(spec.cache)
    return Undisturbed(spec, cache, taught(cache, str(folder / "student")))


def taught(cache: Cache, output: str) -> bytes:
    """The weights of a student after a few steps with checkpoints."""
    execution = runs.make_execution(checkpoint_steps=2)
    train(runs.make_spec(cache, output, steps=3, execution=execution))
    return Store(output).read("model/model.safetensors", max_bytes=2**30)


@pytest.fixture(scope="module")
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """A proxy before the server whose account's fixture is the parameter."""
    with faults.proxy(request.getfixturevalue(request.param), seed=56) as proxy:
        yield proxy


def on(*servers: str) -> pytest.MarkDecorator:
    """Runs a test behind a proxy before each of these servers."""
    marks = {"moto_account": pytest.mark.s3, "ceph_account": pytest.mark.integration}
    return pytest.mark.parametrize("proxy", [pytest.param(name, marks=marks[name]) for name in servers], indirect=True)


@pytest.fixture
def bucket(proxy: Proxy, tmp_path: Path) -> Iterator[str]:
    """A fresh bucket behind the proxy, which lets everything pass at first and in the end."""
    with proxy.account.bucket(tmp_path) as url:
        yield url
        proxy.use(Faults())


def check_same(url: str, undisturbed: Undisturbed) -> Cache:
    """The cache at `url`, after it is compared with the undisturbed one: objects, commits, manifests and rows."""
    cache, expected = open_cache(url), undisturbed.cache
    for view in range(expected.num_views):
        shards = cache.manifest(view).shards
        assert [(s.labels, s.hidden) for s in shards] == [(s.labels, s.hidden) for s in expected.manifest(view).shards]
        assert manifest.committed_units(cache.store, view) == set(range(len(shards)))
        commits = [manifest.read_commit(cache.store, view, shard.unit, cache.fingerprint) for shard in shards]
        assert commits == list(shards)
        for row, expected_row in zip(cache.rows(view), expected.rows(view), strict=True):
            np.testing.assert_equal(vars(row), vars(expected_row))
    return cache


def check_nothing_else(bucket: str, undisturbed: Undisturbed) -> None:
    """No object is there that the undisturbed build did not make."""
    folder = Path(undisturbed.cache.url)
    expected = {f"cache/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}
    assert {key for key in s3.keys(bucket) if key.startswith("cache/")} == expected


@on("moto_account")
def test_a_mixture_of_faults_changes_nothing(proxy: Proxy, bucket: str, undisturbed: Undisturbed) -> None:
    check_undisturbed_by(DISTURBANCES["mixed"], proxy, bucket, undisturbed)


@on("ceph_account")
@pytest.mark.parametrize("name", DISTURBANCES)
def test_faults_change_nothing_of_a_cache_and_its_student(
    proxy: Proxy, bucket: str, undisturbed: Undisturbed, name: str
) -> None:
    check_undisturbed_by(DISTURBANCES[name], proxy, bucket, undisturbed)


def check_undisturbed_by(disturbance: Faults, proxy: Proxy, bucket: str, undisturbed: Undisturbed) -> None:
    proxy.use(disturbance)
    spec = replace(undisturbed.spec, cache=f"{bucket}/cache")
    build(spec, progress=False)
    cache = check_same(spec.cache, undisturbed)
    assert taught(cache, f"{bucket}/student") == undisturbed.student
    assert build(spec, progress=False).num_units_built == 0
    assert proxy.num_faults > 20
    proxy.use(Faults())
    check_nothing_else(bucket, undisturbed)


RACER = f"""
import json, sys
from teacher_cache.storage.store import Store
store, body = Store(sys.argv[1]), sys.argv[2].encode()
sys.stdin.read(1)
print(json.dumps([store.create(f"race/{{race}}", body) for race in range({NUM_RACES})]))
"""


@on("ceph_account")
def test_of_processes_that_race_through_lost_answers_one_is_told_that_it_won(proxy: Proxy, bucket: str) -> None:
    proxy.use(Faults(lost=0.2, reset=0.1, refused=0.1))
    bodies = [f"racer {number}" for number in range(NUM_RACERS)]
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, bucket, body], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for body in bodies
    ]
    outputs = [racer.communicate(b"go")[0] for racer in racers]
    won = np.array([json.loads(output) for output in outputs])
    assert won.sum(axis=0).tolist() == [1] * NUM_RACES
    proxy.use(Faults())
    winners = [s3.get(f"{bucket}/race/{race}").decode() for race in range(NUM_RACES)]
    assert winners == [bodies[index] for index in won.argmax(axis=0)]


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Acts in another thread; it is done at the end."""
    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join()


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@on("ceph_account")
def test_a_build_outlasts_a_store_that_stands_still(
    proxy: Proxy, bucket: str, ceph_gateway: Gateway, undisturbed: Undisturbed
) -> None:
    proxy.use(Faults())
    spec = replace(undisturbed.spec, cache=f"{bucket}/cache")

    def freeze() -> None:
        wait_until(lambda: proxy.happened.total() > 60)
        with ceph_gateway.frozen():
            time.sleep(20)  # longer than clients wait for an answer

    start = time.monotonic()
    with meanwhile(freeze):
        build(spec, progress=False)
        assert time.monotonic() - start > 20
    check_same(spec.cache, undisturbed)
    check_nothing_else(bucket, undisturbed)


@on("ceph_account")
@pytest.mark.parametrize("max_objects", [5, 25], ids=["teacher", "units"])
def test_a_build_ends_at_a_full_store_and_goes_on_when_there_is_room(
    proxy: Proxy, bucket: str, ceph_gateway: Gateway, undisturbed: Undisturbed, max_objects: int
) -> None:
    spec = replace(undisturbed.spec, cache=f"{bucket}/cache")
    start = time.monotonic()
    with ceph_gateway.quota(max_objects=max_objects):
        with pytest.raises(UserError, match=r"it is full \(QuotaExceeded\); free space .* run the command again"):
            build(spec, progress=False)
    assert time.monotonic() - start < 30
    build(spec, progress=False)
    check_same(spec.cache, undisturbed)


def killed_when(command: list[str], happened: Callable[[], object]) -> None:
    """Runs a command until something happened."""
    process = subprocess.Popen(command)
    try:
        wait_until(happened)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL


LANDING_S = 4
BUILDER = """
import json, sys
from teacher_cache import CacheSpec, build
from teacher_cache.shell.settings import parse
build(parse(CacheSpec, json.loads(sys.argv[1])), progress=False)
"""


UPLOADER = """
import sys
from teacher_cache.storage.store import Store
Store(sys.argv[1]).create("large", bytes(64 * 2**20))
"""


@on("ceph_account")
def test_an_upload_that_its_killed_process_cut_short_is_no_object(proxy: Proxy, bucket: str) -> None:
    proxy.use(Faults(delayed=1.0, delay_s=1, matching="PUT"))
    killed_when([sys.executable, "-c", UPLOADER, bucket], lambda: proxy.num_faults)
    time.sleep(2)  # the proxy finds that the rest of the body never comes
    assert Store(bucket).list("large") == []
    assert Store(bucket).create("large", b"another's")


@on("ceph_account")
@pytest.mark.parametrize("what", ["shards", "commits"])
def test_a_builder_killed_in_an_upload_leaves_nothing_that_is_taken_for_whole(
    proxy: Proxy, bucket: str, undisturbed: Undisturbed, what: str
) -> None:
    spec = replace(undisturbed.spec, cache=f"{bucket}/cache")
    proxy.use(Faults(delayed=1.0, delay_s=LANDING_S, matching=f"PUT .*/cache/{what}/", at_most=1))
    killed_when([sys.executable, "-c", BUILDER, json.dumps(to_dict(spec))], lambda: proxy.num_faults)
    killed = time.monotonic()
    assert Store(spec.cache).list(what) == []
    build(spec, progress=False)
    time.sleep(max(0.0, killed + LANDING_S + 1 - time.monotonic()))  # now the dead builder's object lands
    check_same(spec.cache, undisturbed)
    check_nothing_else(bucket, undisturbed)
