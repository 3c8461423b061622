"""Objects in a local folder; object stores are tried in tests/test_object_storage.py."""

from pathlib import Path

import pytest

from teacher_cache.errors import StoreError, UserError
from teacher_cache.format import documents
from teacher_cache.storage.store import Store
from tests import races
from tests.disks import small_disk
from tests.teacher_cache.format.samples import flip

NUM_THREADS = 16


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "cache"))


def files(store: Store) -> set[str]:
    """All files below a store's folder, whatever their names."""
    root = Path(store.root)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def put(store: Store, data: bytes, key: str = "a/b") -> tuple[str, int]:
    """Creates an object; its digest and size, as `fetch` takes them."""
    assert store.create(key, data)
    return documents.sha256(data), len(data)


def test_of_many_concurrent_creations_one_wins_whole(store: Store) -> None:
    for attempt in range(5):
        key = f"race/{attempt}"
        contents = [bytes([thread]) * 100_000 for thread in range(NUM_THREADS)]
        won = races.create_at_once(store, key, contents)
        assert won.count(True) == 1
        assert store.read(key, max_bytes=10**6) == contents[won.index(True)]
    assert files(store) == {f"race/{attempt}" for attempt in range(5)}


def test_creating_the_same_bytes_again_succeeds(store: Store) -> None:
    assert store.create("a", b"same")
    assert store.create("a", b"same")


@pytest.mark.parametrize("other", [b"", b"x", b"same" * 100, b"sama"])
def test_creating_other_bytes_is_refused_and_changes_nothing(store: Store, other: bytes) -> None:
    store.create("a", b"same")
    assert not store.create("a", other)
    assert store.read("a", max_bytes=4) == b"same"
    assert files(store) == {"a"}


def test_replace_overwrites_and_leaves_no_temporary_file(store: Store) -> None:
    store.replace("a/b", b"long content")
    store.replace("a/b", b"short")
    assert store.read("a/b", max_bytes=100) == b"short"
    assert files(store) == {"a/b"}


def test_list_gives_the_sorted_keys_directly_below_a_prefix(store: Store) -> None:
    for key in ("a/2", "a/10", "a/deep/1", "ab/1", "b"):
        store.create(key, b"")
    (Path(store.root) / "a" / ".hidden.tmp").touch()
    assert store.list("a") == ["a/10", "a/2", "a/deep"]
    assert store.list("missing") == []


def test_delete_folder_deletes_what_is_below_and_nothing_else(store: Store) -> None:
    for key in ("a/1", "a/deep/2", "ab"):
        store.create(key, b"")
    store.delete_folder("a")
    store.delete_folder("a")
    assert files(store) == {"ab"}


@pytest.mark.parametrize("key", ["", "../x", "a/../../x", "/abs", "a//b", ".hidden", "a/.hidden", "a/", "a b", "a\n"])
def test_a_key_that_could_leave_the_folder_is_refused(store: Store, key: str) -> None:
    refused = pytest.raises(UserError, match="is not a name that a cache may use")
    with refused:
        store.create(key, b"x")
    with refused:
        store.replace(key, b"x")
    with refused:
        store.read(key, max_bytes=10)
    with refused:
        store.fetch(key, digest="0" * 64, num_bytes=1)


def test_read_refuses_more_than_allowed(store: Store) -> None:
    store.create("a", b"12345")
    assert store.read("a", max_bytes=5) == b"12345"
    with pytest.raises(UserError, match="a is larger than the 4 bytes allowed here"):
        store.read("a", max_bytes=4)


def test_reading_a_missing_object_is_a_file_not_found_error(store: Store) -> None:
    assert not store.exists("a")
    with pytest.raises(FileNotFoundError):
        store.read("a", max_bytes=4)


def test_fetch_gives_a_local_file_with_the_bytes(store: Store) -> None:
    digest, num_bytes = put(store, b"content")
    assert store.fetch("a/b", digest=digest, num_bytes=num_bytes).read_bytes() == b"content"


@pytest.mark.parametrize("place", [0, 500, 999])
def test_fetch_refuses_a_flipped_bit(store: Store, place: int) -> None:
    digest, num_bytes = put(store, b"x" * 1000)
    flip(Path(store.path("a/b")), place)
    with pytest.raises(UserError, match=r"cache/a/b is damaged.*`teacher-cache verify .*cache`"):
        store.fetch("a/b", digest=digest, num_bytes=num_bytes)


def test_fetch_refuses_a_truncated_object(store: Store) -> None:
    digest, num_bytes = put(store, b"x" * 1000)
    store.replace("a/b", b"x" * 999)
    with pytest.raises(UserError, match=r"cache/a/b is damaged.*`teacher-cache verify .*cache`"):
        store.fetch("a/b", digest=digest, num_bytes=num_bytes)


def test_fetch_names_a_missing_object(store: Store) -> None:
    with pytest.raises(UserError, match=r"cache/a/b is missing; run `teacher-cache verify .*cache`"):
        store.fetch("a/b", digest="0" * 64, num_bytes=1)


@pytest.mark.parametrize("single_writer", [False, True])
def test_a_full_disk_is_one_message_and_nothing_half_written(tmp_path: Path, single_writer: bool) -> None:
    with small_disk(tmp_path / "disk", num_kib=64) as disk:
        store = Store(str(disk / "cache"), single_writer=single_writer)
        assert store.create("a", bytes(20_000))
        message = rf"^{store.url}: it is full \(No space left.*; free space .* run the command again"
        with pytest.raises(StoreError, match=message):
            store.create("b", bytes(60_000))
        assert files(store) == {"a"}
        assert store.create("c", bytes(20_000)), "the failed attempt takes no room"


def test_a_local_url_is_absolute_wherever_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("here").url == Store("file://here/").url == str(tmp_path / "here")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(UserError, match="carrier-pigeon"):
        Store("carrier-pigeon://bucket/cache")
