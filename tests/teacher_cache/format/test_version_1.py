"""A cache of the format's version 1, which had no codes of its own: nothing reads it, nothing builds on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from student_train import StudentSpec, train
from teacher_cache import UserError, build, open_cache
from teacher_cache.format import documents
from teacher_cache.shell.settings import parse, to_dict
from tests import caches
from tests.student_train import runs

EXACT: dict[str, Any] = {"soft_labels": {"code": "float32"}, "hidden": {"code": "float16"}}
MESSAGE = r"cache/spec\.json has format version 1; this program reads version 2: use the release that wrote it, or .*$"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole cache whose spec.json is as version 1 wrote it."""
    folder = tmp_path_factory.mktemp("version-1") / "cache"
    cache = caches.build_cache(folder, num_documents=8, **EXACT)
    identity = to_dict(cache.spec) | {"format_version": 1}
    del identity["hidden"]["quality"]
    assert set(identity["soft_labels"]) == {"top_k", "temperatures", "code"}
    document = {"fingerprint": documents.digest_of(identity), "identity": identity, "notes": cache.notes}
    (folder / "spec.json").write_bytes(documents.dump(document))
    return folder


def builds(folder: Path) -> None:
    build(caches.make_spec(folder, num_documents=8, **EXACT), progress=False)


def builds_in_default_codes(folder: Path) -> None:
    build(caches.make_spec(folder, num_documents=8), progress=False)


def trains(folder: Path) -> None:
    values = {"caches": [str(folder)], "output": str(folder.with_name("run")), "execution": runs.make_execution()}
    train(parse(StudentSpec, values))


@pytest.mark.parametrize("use", [lambda folder: open_cache(str(folder)), builds, builds_in_default_codes, trains])
def test_it_is_refused_by_its_version_and_left_alone(use: Callable[[Path], object], folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=MESSAGE):
        use(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
