"""No secret of a URL is written down or shown."""

import pytest

from teacher_cache.errors import UserError
from teacher_cache.storage.errors import store_errors
from teacher_cache.storage.store import Store
from teacher_cache.storage.urls import redacted

SECRET = "hunter2"
URLS = [
    f"s3://someone:{SECRET}@bucket/cache",
    f"https://someone:{SECRET}@host:8080/cache",
    f"https://host/cache?X-Amz-Credential=x&X-Amz-Signature={SECRET}",
    f"https://account.blob/cache?sv=2020&sig={SECRET}",
    f"s3://bucket/cache?unheard-of={SECRET}",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UserError, match=r"carries a (password|query).*by the environment") as raised:
        Store(url)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///cache", "s3:/bucket/cache", "gs://"])
def test_a_url_without_a_bucket_is_no_folder(url: str) -> None:
    with pytest.raises(UserError, match=r"is no folder and no URL; write scheme://bucket/prefix"):
        Store(url)


@pytest.mark.parametrize("url", URLS[:4])
@pytest.mark.parametrize("error", [ConnectionError, PermissionError, ImportError])
def test_errors_of_a_url_repeat_no_secret(url: str, error: type[Exception]) -> None:
    """Corpus files may have such URLs, and clients put the endpoint's into what they throw."""
    with pytest.raises(UserError) as raised, store_errors(url):
        raise error(f"cannot connect to {url!r}")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b:c",
        "abfs://container@account.dfs.core.windows.net/cache",
        "http://127.0.0.1:9000/bucket?list-type=2&prefix=a",
        "a signature=4 in words",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert redacted(text) == text


def test_a_container_before_an_at_sign_is_no_password() -> None:
    with pytest.raises(UserError, match="install the fsspec package"):
        Store("abfs://container@account.dfs.core.windows.net/cache")
