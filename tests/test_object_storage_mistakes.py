"""What a user gets wrong about a store is one clear error, soon."""

import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from student_train import train
from teacher_cache import UserError, build, open_cache
from tests import s3 as s3_server
from tests.families import save_pretrained
from tests.object_storage import cache_spec, put_corpus, student_spec


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pretrained(tmp_path_factory.mktemp("teacher"))


@dataclass(frozen=True)
class Mistake:
    """Something that a user gets wrong, and what he is told."""

    environment: dict[str, str | None]
    url: str
    message: str


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


NO_KEYS: dict[str, str | None] = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
# Without it botocore tries five times, for some seconds.
UNREACHABLE: dict[str, str | None] = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{closed_port()}", "AWS_MAX_ATTEMPTS": "1"}
MISTAKES = {
    "unreachable endpoint": Mistake(UNREACHABLE, "{bucket}", r"http://127\.0\.0\.1:\d+"),
    "missing credentials": Mistake(NO_KEYS, "{bucket}", "(?i)credentials"),
    "missing bucket": Mistake({}, "s3://no-such-bucket", "(?i)bucket does not exist"),
}
WRONG_SECRET = Mistake({"AWS_SECRET_ACCESS_KEY": "wrong"}, "{bucket}", "(?i)denied|credentials|signature")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """To be changed by the test; clients are forgotten with it."""
    yield monkeypatch
    s3_server.forget_clients()


def make(mistake: Mistake, bucket: str, environment: pytest.MonkeyPatch) -> str:
    """Makes the mistake; gives the URL that it concerns."""
    for name, value in mistake.environment.items():
        if value is None:
            environment.delenv(name)
        else:
            environment.setenv(name, value)
    s3_server.forget_clients()
    return mistake.url.format(bucket=bucket)


def check_one_clear_error(raised: pytest.ExceptionInfo[UserError], url: str, message: str) -> None:
    text = str(raised.value)
    assert url in text
    assert re.search(message, text)
    assert len(text) < 500
    assert "\n" not in text


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("what", ["build", "open", "corpus", "train"])
def test_a_mistake_about_the_store_is_one_clear_error_soon(
    request: pytest.FixtureRequest,
    bucket: str,
    teacher: Path,
    tmp_path: Path,
    environment: pytest.MonkeyPatch,
    name: str,
    what: str,
) -> None:
    put_corpus(str(tmp_path / "corpus"))
    mistake = MISTAKES[name]
    url = make(mistake, bucket, environment)
    check_mistake(what, url, mistake, teacher, tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize("what", ["build", "open", "corpus", "train"])
def test_a_wrong_secret_is_one_clear_error(
    request: pytest.FixtureRequest,
    ceph: str,
    teacher: Path,
    tmp_path: Path,
    environment: pytest.MonkeyPatch,
    what: str,
) -> None:
    put_corpus(str(tmp_path / "corpus"))
    url = make(WRONG_SECRET, ceph, environment)
    check_mistake(what, url, WRONG_SECRET, teacher, tmp_path)


def check_mistake(what: str, url: str, mistake: Mistake, teacher: Path, folder: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=mistake.message) as raised:
        USES[what](url, teacher, folder)
    assert time.monotonic() - start < 30
    check_one_clear_error(raised, url, mistake.message)


def build_to(url: str, teacher: Path, folder: Path) -> None:
    build(replace(cache_spec(str(folder), teacher), cache=f"{url}/cache"), progress=False)


def open_at(url: str, teacher: Path, folder: Path) -> None:
    open_cache(f"{url}/cache")


def build_from(url: str, teacher: Path, folder: Path) -> None:
    corpus = {"paths": (f"{url}/corpus/*.txt",), "sequence_length": 16}
    build(cache_spec(str(folder), teacher, corpus=corpus), progress=False)


def train_from(url: str, teacher: Path, folder: Path) -> None:
    train(replace(student_spec(str(folder)), caches=(f"{url}/cache",)))


USES = {"build": build_to, "open": open_at, "corpus": build_from, "train": train_from}
