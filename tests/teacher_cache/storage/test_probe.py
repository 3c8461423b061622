"""Stores that let several writers win are found out, and written by one writer alone."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from teacher_cache.storage.probe import probe
from teacher_cache.storage.store import Store
from tests import faults, s3
from tests.faults import Faults, Proxy


@pytest.fixture(scope="module")
def relay(moto_account: s3.Account) -> Iterator[Proxy]:
    with faults.proxy(moto_account) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def bucket(relay: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with relay.account.bucket(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def proxy(relay: Proxy, bucket: str) -> Iterator[Proxy]:
    """Before a bucket in which no test leaves anything."""
    yield relay
    relay.use(Faults())
    assert s3.keys(bucket) == []


@pytest.mark.s3
def test_a_store_with_put_if_absent_passes(bucket: str, proxy: Proxy) -> None:
    assert probe(Store(bucket))


@pytest.mark.s3
def test_a_store_with_put_if_absent_passes_through_a_bad_network(bucket: str, proxy: Proxy) -> None:
    proxy.use(Faults(lost=0.2, reset=0.1))
    assert probe(Store(bucket))
    assert proxy.num_faults


@pytest.mark.s3
def test_a_store_that_ignores_the_condition_is_found_out(bucket: str, proxy: Proxy) -> None:
    proxy.use(Faults(unconditional=True))
    assert not probe(Store(bucket))


@pytest.mark.s3
def test_a_store_that_does_not_know_the_condition_is_found_out(bucket: str, proxy: Proxy) -> None:
    proxy.use(Faults(refused=1.0, matching="PUT", status=501, code="NotImplemented"))
    assert not probe(Store(bucket))


@pytest.mark.s3
def test_a_single_writer_creates_once_without_a_condition(bucket: str, proxy: Proxy) -> None:
    proxy.use(Faults(unconditional=True))
    assert Store(bucket).create("b", b"first")
    assert Store(bucket).create("b", b"a condition that is ignored overwrites")
    Store(bucket).delete_folder("b")
    check_single_writer(Store(bucket, single_writer=True))


@pytest.mark.s3
def test_a_single_writer_s_lost_answers_are_its_own_success(bucket: str, proxy: Proxy) -> None:
    proxy.use(Faults(unconditional=True, lost=0.3))
    check_single_writer(Store(bucket, single_writer=True))
    assert proxy.num_faults


def check_single_writer(store: Store) -> None:
    for number in range(5):
        assert store.create(f"b/{number}", b"first")
        assert store.create(f"b/{number}", b"first")
        assert not store.create(f"b/{number}", b"second")
        assert store.read(f"b/{number}", max_bytes=10) == b"first"
    assert store.list("b") == [f"b/{number}" for number in range(5)]
    store.delete_folder("b")


def test_a_folder_with_hard_links_passes_and_keeps_nothing(tmp_path: Path) -> None:
    assert probe(Store(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def refuse_links(*_: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_folder_without_hard_links_is_for_a_single_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse_links)  # as FAT and some network file systems do
    assert not probe(Store(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
    check_single_writer(Store(str(tmp_path), single_writer=True))
    assert list(tmp_path.iterdir()) == []
