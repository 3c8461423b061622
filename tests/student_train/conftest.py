"""Caches that several tests read, none of which writes into one; and a browser."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from teacher_cache.format.cache import Cache
from tests import caches

CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium, whose console and requests are logged."""
    if missing := [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]:
        pytest.skip(f"needs Chromium: {', '.join(missing)} not found; apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()
