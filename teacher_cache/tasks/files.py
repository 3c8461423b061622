"""Which files a task is read from, and their text."""

from teacher_cache.errors import UserError
from teacher_cache.storage.streams import size_and_sha256, text_chunks
from teacher_cache.storage.urls import normal_url
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.record import TaskFile

_MNLI = {"train": "train.tsv", "dev": "dev_matched.tsv", "mismatched": "dev_mismatched.tsv"}


def task_urls(config: TaskConfig) -> dict[str, str]:
    """The URLs of `train` and `dev`, of MNLI's folder also `mismatched`; empty for a hub data set.

    Raises:
        UserError: a URL carries a password or a query.
    """
    if config.folder is not None:
        names = _MNLI if config.layout == "MNLI" else {"train": "train.tsv", "dev": "dev.tsv"}
        return {split: f"{normal_url(config.folder)}/{name}" for split, name in names.items()}
    if config.train is None or config.dev is None:
        return {}
    return {"train": normal_url(config.train), "dev": normal_url(config.dev)}


def describe(urls: dict[str, str]) -> tuple[TaskFile, ...]:
    """Size and digest of each file.

    Raises:
        UserError: a file cannot be read, or two are the same.
    """
    seen: dict[str, str] = {}
    files = []
    for url in urls.values():
        num_bytes, sha256 = size_and_sha256(url)
        if sha256 in seen:
            raise UserError(
                f"{url} holds the same bytes as {seen[sha256]}: the score would be of examples that were learned from; "
                "name another file"
            )
        seen[sha256] = url
        files.append(TaskFile(name=url, num_bytes=num_bytes, sha256=sha256))
    return tuple(files)


def read_text(url: str) -> str:
    """A whole file, decompressed by its extension, without a byte order mark.

    Raises:
        UserError: it cannot be read, is damaged, or is not UTF-8.
    """
    return "".join(text_chunks(url))


def read_lines(url: str) -> list[str]:
    """A file's lines without their ends: only line feeds end one, not Unicode's other separators, which are text."""
    return [line.removesuffix("\r") for line in read_text(url).split("\n")]
