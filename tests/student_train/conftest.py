"""Caches that several tests read; none of them writes into one."""

import pytest

from teacher_cache.format.cache import Cache
from tests import caches


@pytest.fixture(scope="session")
def exact_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Every position, float32, top 8, two views of 40 sequences in shards of 8."""
    return caches.build_cache(tmp_path_factory.mktemp("exact") / "cache", views=2, **caches.EXACT)


@pytest.fixture(scope="session")
def default_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The default rates and codes, but 30 % of the unmasked positions; two views of 50 sequences in shards of 8."""
    folder = tmp_path_factory.mktemp("default") / "cache"
    return caches.build_cache(folder, views=2, num_documents=50, keep={"unmasked": 0.3})


@pytest.fixture(scope="session")
def labels_only_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """No hidden states; the rest's mass at temperatures 1 and 2."""
    folder = tmp_path_factory.mktemp("labels") / "cache"
    return caches.build_cache(folder, hidden={"code": "none"}, soft_labels={"top_k": 8, "temperatures": [1, 2]})
