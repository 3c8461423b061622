"""What a store does to requests now and then: through a faulty proxy to the in-process S3."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from teacher_cache.errors import StoreError
from teacher_cache.format import documents
from teacher_cache.storage import retries
from teacher_cache.storage.store import Store
from tests import faults, races, s3
from tests.faults import KINDS, Faults, Proxy

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def proxy(moto_account: s3.Account) -> Iterator[Proxy]:
    with faults.proxy(moto_account) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def bucket(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with proxy.account.bucket(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def store(bucket: str, proxy: Proxy, tmp_path: Path) -> Iterator[Store]:
    """An empty store behind the proxy, which has answered already."""
    store = Store(f"{bucket}/{tmp_path.name}")
    assert not store.exists("anything")
    yield store
    proxy.use(Faults())


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds after which a store gives up."""
    monkeypatch.setattr(retries, "PATIENCE_S", 1.0)
    return 1.0


def use(store: Store) -> None:
    """Everything that is asked of stores."""
    digest = documents.sha256(b"content")
    assert store.create("folder/a", b"content")
    assert not store.create("folder/a", b"other")
    store.replace("folder/b", b"first")
    store.replace("folder/b", b"second")
    assert store.exists("folder/a")
    assert not store.exists("folder/c")
    assert store.list("folder") == ["folder/a", "folder/b"]
    assert store.read("folder/b", max_bytes=10) == b"second"
    assert store.fetch("folder/a", digest=digest, num_bytes=7).read_bytes() == b"content"
    with pytest.raises(FileNotFoundError):
        store.read("folder/c", max_bytes=10)
    store.delete_folder("folder")
    assert store.list("folder") == []
    store.drop_copy(digest)


@pytest.mark.parametrize(
    "two_faults",
    [
        Faults(refused=1.0),
        Faults(refused=1.0, status=500, code="InternalError"),
        Faults(refused=1.0, status=502, code="BadGateway"),
        Faults(refused=1.0, status=504, code="GatewayTimeout"),
        Faults(refused=1.0, status=409, code="ConditionalRequestConflict"),
        Faults(reset=1.0),
        Faults(lost=1.0),
        Faults(truncated=1.0),
    ],
    ids=lambda faults: next(kind for kind in KINDS if getattr(faults, kind)) + f" {faults.code}",
)
def test_errors_that_pass_are_not_seen(store: Store, proxy: Proxy, two_faults: Faults) -> None:
    for matching in ("PUT", "HEAD|GET", "POST|DELETE"):
        proxy.use(replace(two_faults, matching=matching, at_most=2))
        use(store)
        assert proxy.num_faults >= 1


def test_a_creation_whose_answer_was_lost_is_known_as_one_s_own(store: Store, proxy: Proxy) -> None:
    proxy.use(Faults(lost=1.0, matching="PUT", at_most=1))
    assert store.create("mine", b"my bytes")
    proxy.use(Faults(lost=1.0, matching="PUT", at_most=1))
    assert not store.create("mine", b"other bytes")


def test_a_creation_is_read_back_although_that_fails_at_first(store: Store, proxy: Proxy) -> None:
    proxy.use(Faults(lost=1.0, at_most=5))
    assert store.create("mine", b"my bytes")
    assert proxy.num_faults == 5
    proxy.use(Faults(refused=1.0, matching="GET", at_most=2))
    assert not store.create("mine", b"other bytes")
    assert proxy.num_faults == 2


def test_of_many_writers_whose_answers_are_lost_one_wins(store: Store, proxy: Proxy) -> None:
    for attempt in range(5):
        proxy.use(Faults(lost=0.5, matching="PUT", at_most=20))
        contents = [f"writer {number}".encode() for number in range(8)]
        won = races.create_at_once(store, f"race/{attempt}", contents)
        assert won.count(True) == 1
        assert store.read(f"race/{attempt}", max_bytes=100) == contents[won.index(True)]


def test_a_store_that_stays_ill_is_one_message_in_time(store: Store, proxy: Proxy, impatience: float) -> None:
    proxy.use(Faults(refused=1.0))
    start = time.monotonic()
    with pytest.raises(
        StoreError, match=f"^{store.url}: creating a/b failed .*SlowDown.*run the command again"
    ) as raised:
        store.create("a/b", b"x")
    assert time.monotonic() - start < impatience + 3
    message = str(raised.value)
    assert len(message) < 500
    assert "\n" not in message
    assert f"failed {proxy.num_faults} times in " in message, "no other place tries again and waits"
    assert proxy.num_faults > 1


def test_a_store_that_never_answered_is_given_up_soon(store: Store, proxy: Proxy) -> None:
    proxy.use(Faults(reset=1.0))
    s3.forget_clients()
    start = time.monotonic()
    with pytest.raises(StoreError, match="check AWS_ENDPOINT_URL and the network"):
        Store(store.url).read("a", max_bytes=1)
    assert time.monotonic() - start < retries.FIRST_ANSWER_S + 2


def test_who_cleans_up_does_not_wait_for_a_store_that_is_gone(store: Store, proxy: Proxy) -> None:
    proxy.use(Faults(reset=1.0))
    start = time.monotonic()
    with pytest.raises(StoreError), retries.hurried():
        store.replace("a", b"x")
    assert time.monotonic() - start < retries.HURRIED_S + 3
    assert proxy.num_faults > 1, "what is well a moment later is still cleaned up"


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "InvalidArgument"), (403, "QuotaExceeded")])
def test_an_answer_that_will_not_change_is_final(store: Store, proxy: Proxy, status: int, code: str) -> None:
    proxy.use(Faults(refused=1.0, matching="PUT", status=status, code=code))
    with pytest.raises(StoreError, match=f"^{store.url}: .*{code}"):
        store.create("a", b"x")
    assert proxy.num_faults == 1


def test_a_full_store_says_that_the_command_can_be_run_again(store: Store, proxy: Proxy) -> None:
    proxy.use(Faults(refused=1.0, matching="PUT", status=403, code="QuotaExceeded"))
    with pytest.raises(StoreError, match=r"it is full \(QuotaExceeded\); free space .* run the command again"):
        store.create("a", b"x")


def test_a_large_object_is_one_conditional_put(store: Store, proxy: Proxy) -> None:
    """s3fs would send it in parts, and several stores ignore the condition on those."""
    proxy.use(Faults(refused=0.0))
    data = bytes(101 * 2**20)
    assert store.create("large", data)
    assert store.create("large", data)
    assert not store.create("large", b"other")
    assert proxy.happened.total() == 3 + 2, "three PUTs, two of them read back"


def test_a_download_goes_on_where_it_broke(store: Store, proxy: Proxy) -> None:
    data = bytes(range(256)) * 2**17
    assert len(data) > 2 * 2**20
    store.create("large", data)
    proxy.use(Faults(truncated=1.0, at_most=1))
    path = store.fetch("large", digest=documents.sha256(data), num_bytes=len(data))
    assert path.read_bytes() == data
    assert proxy.happened.total() == 3, "two parts, one of them twice"


def test_waits_double_to_a_bound_and_are_spread() -> None:
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    waits = list(islice(retries.waits_s(), len(longest)))
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, longest, strict=True))
    assert waits != list(islice(retries.waits_s(), len(longest)))
