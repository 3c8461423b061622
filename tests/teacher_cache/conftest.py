"""What builds are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teacher_cache import CacheSpec
from tests import families
from tests.teacher_cache.builds import DOCUMENTS


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.save_pretrained(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return path


@pytest.fixture
def make_spec(tmp_path: Path, corpus: Path, teacher: Path) -> Callable[..., CacheSpec]:
    """A small cache of 5 units a view; keywords replace whole values, and are merged into sections."""

    def make(cache: str = "cache", **changes: Any) -> CacheSpec:
        values: dict[str, Any] = {
            "cache": str(tmp_path / cache),
            "corpus": {"paths": [str(corpus)], "sequence_length": 16},
            "teacher": {"model": str(teacher)},
            "views": 1,
            "unit_sequences": 16,
            "execution": {"num_workers": 0, "cpus_per_worker": 1},  # the last bits depend on the threads
        }
        for key, value in changes.items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
        return CacheSpec(**values)

    return make
