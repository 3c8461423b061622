"""Corpus files become sequences, once: what the driver asks for, and the Ray tasks that do it file by file.

Each task takes and gives back a small dictionary. A user's mistake comes back as `error`, because an exception would
stop the whole dataset.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from typing import Any

from tqdm import tqdm

from teacher_cache.corpus.documents import pieces
from teacher_cache.corpus.files import CorpusFile, describe
from teacher_cache.corpus.sequences import sequences as tokenise
from teacher_cache.errors import UserError
from teacher_cache.format import sequences
from teacher_cache.format.cache import Cache
from teacher_cache.format.objects import ObjectRef
from teacher_cache.format.sequences import Sequences, TokenisedFile
from teacher_cache.format.spec import CorpusIdentity, Identity
from teacher_cache.pipeline.executors import Executor, checked
from teacher_cache.storage.store import Store


def describe_files(corpus: Sequence[tuple[str, str]], workers: Executor, *, text_field: str | None) -> list[CorpusFile]:
    """Size and digest of every corpus file, in order; with `text_field`, every document is read as well.

    Raises:
        UserError: a file cannot be used, or there is no text in any.
    """
    items = [{"file": file, "url": url, "format": format} for file, (url, format) in enumerate(corpus)]
    described = {row["file"]: row for row in checked(workers.tasks(items, DescribeFile(text_field)))}
    if not any(row["has_text"] for row in described.values()):
        raise _no_text(len(items))
    return [CorpusFile(**_without(described[file], "file", "has_text")) for file in range(len(corpus))]


def _no_text(num_files: int) -> UserError:
    return UserError(f"the corpus has no usable text: {num_files} files, no token; check corpus.paths and format")


def build_sequences(
    store: Store, identity: Identity, files: Sequence[CorpusFile], workers: Executor, *, progress: bool
) -> Sequences:
    """Tokenises the files that are not committed yet, in parallel, and seals the sequences.

    Raises:
        UserError: a file cannot be used, or there is no text in any.
    """
    try:
        sealed = Sequences(store)
    except FileNotFoundError:
        sealed = _tokenise(store, identity, files, workers, progress=progress)
    if not sealed.num_sequences:
        raise _no_text(len(files))
    return sealed


def _tokenise(
    store: Store, identity: Identity, files: Sequence[CorpusFile], workers: Executor, *, progress: bool
) -> Sequences:
    done = sequences.committed_files(store)
    items = [
        {"file": place, "url": file.url, "format": file.format} for place, file in enumerate(files) if place not in done
    ]
    results = checked(workers.tasks(items, TokeniseFile(store, identity.fingerprint)))
    for _ in tqdm(results, "tokenising", len(items), unit=" files", disable=not progress):
        pass
    sequences.seal(store, len(files), identity.fingerprint)
    return Sequences(store)


class DescribeFile:
    """A Ray task: size and digest of one corpus file, and whether it holds text.

    With `text_field` it reads every document too, so that what cannot be read is known before anything is written.
    """

    def __init__(self, text_field: str | None) -> None:
        self._text_field = text_field

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        url, format = str(item["url"]), str(item["format"])
        try:
            described = describe(url, format)
            has_text = self._text_field is None or self._has_text(url, format, self._text_field)
        except UserError as error:
            return {"file": item["file"], "error": str(error)}
        return {"file": item["file"], "error": "", "has_text": has_text, **asdict(described)}

    def _has_text(self, url: str, format: str, text_field: str) -> bool:
        return sum(1 for _ in pieces(url, format=format, text_field=text_field)) > 0


class TokeniseFile:
    """A Ray task: one corpus file becomes parts and a commit. A user's mistake comes back as its message."""

    def __init__(self, store: Store, fingerprint: str) -> None:
        self._place = store.url, store.single_writer, fingerprint

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        try:
            self._tokenise(item)
        except UserError as error:
            return {"file": item["file"], "error": str(error)}
        return {"file": item["file"], "error": ""}

    def _tokenise(self, item: dict[str, Any]) -> None:
        store, identity, tokenizer = tokeniser(*self._place)
        corpus = identity.corpus
        assert isinstance(corpus, CorpusIdentity), "a task's examples are no files of text"
        file = int(item["file"])
        stream = tokenise(
            str(item["url"]),
            format=str(item["format"]),
            text_field=corpus.text_field,
            tokenizer=tokenizer,
            sequence_length=corpus.sequence_length,
            packing=corpus.packing,
        )
        parts: list[tuple[ObjectRef, int, int]] = []
        num_documents = 0
        while batch := list(islice(stream, sequences.PART_SEQUENCES)):
            places = [sequence.document for sequence in batch]
            parts.append(
                sequences.write_part(store, file, len(parts), [sequence.input_ids for sequence in batch], places)
            )
            num_documents = batch[-1].num_documents
        told = corpus.files[file]
        there = describe(str(item["url"]), str(item["format"]))
        if (there.num_bytes, there.sha256) != (told.num_bytes, told.sha256):
            raise UserError(f"{there.url} was changed while it was read; run the build again when it stays as it is")
        sequences.commit_file(store, file, TokenisedFile(parts=tuple(parts), num_documents=num_documents))


@lru_cache(maxsize=4)
def tokeniser(url: str, single_writer: bool, fingerprint: str) -> tuple[Store, Identity, Any]:
    """Once per worker process and cache, not per file.

    A process may outlive a cache: under one URL another may be built, which the fingerprint tells apart.
    """
    from transformers import AutoTokenizer

    cache = Cache(Store(url, single_writer=single_writer))
    return cache.store, cache.spec, AutoTokenizer.from_pretrained(cache.teacher.folder)


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in (*names, "error")}
