"""URLs of stores: one spelling each, and no secret in any that is written down or shown."""

import os
import re
from urllib.parse import urlsplit

from teacher_cache.errors import UserError

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")
_NO_PLACE = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:/(?!/[^/]).*")
"""A scheme without a bucket, or with a slash lost: as a path, it would be a folder called `s3:`."""
_QUERY_SECRET = re.compile(
    r"(?i)([?&][\w-]*(?:signature|sig|token|credential|accesskeyid|password|secret)=)[^&\s\"')]+"
)


def normal_url(url: str) -> str:
    """Local paths become absolute (workers run elsewhere), URLs lose a trailing slash.

    Raises:
        UserError: the URL names no place; or it carries a password or a query, such as a signature, which would be
            written into the cache.
    """
    if _NO_PLACE.fullmatch(url):
        raise UserError(f"{url!r} is no folder and no URL; write scheme://bucket/prefix, or a folder as ./{url}")
    if "://" in url and not url.startswith("file://"):
        refuse_secrets(url)
        return url.rstrip("/")
    return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))


def folders(*names: str | None) -> tuple[str, ...]:
    """Those of models' and data sets' names that are folders here, and so no names on a hub."""
    return tuple(name for name in names if name and os.path.isdir(os.path.expanduser(name)))


def refuse_url(name: str) -> str:
    """A folder or a hub's name, as it is; for what is loaded by libraries that know no object storage.

    Raises:
        ValueError: it is a URL.
    """
    if "://" in name:
        raise ValueError(
            f"{redacted(name)} is a URL, and only a folder or a hub name is read here; `student-train export` copies a"
            " model from a URL to a folder"
        )
    return name


def redacted(text: str) -> str:
    """A text, for example an error's, without passwords and signatures of the URLs in it."""
    return _QUERY_SECRET.sub(r"\1…", _PASSWORD.sub("…@", text))


def refuse_secrets(url: str) -> None:
    """Raises UserError where a URL carries a password or a query, such as a signature."""
    shown = redacted(url)
    if urlsplit(url).password is not None:
        raise UserError(f"{shown} carries a password, which would be written down; give credentials by the environment")
    if "?" in url:
        # What an unknown parameter means is not known either, so that none is repeated.
        raise UserError(
            f"{shown.partition('?')[0]}?… carries a query, as signed URLs do; "
            "give the folder's URL alone, and credentials by the environment"
        )
