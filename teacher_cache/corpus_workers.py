"""What runs on Ray workers before there is a teacher: corpus files described and tokenised.

Each call takes and gives back a small dictionary. A user's mistake comes back as `error`, because an exception would
stop the whole dataset.
"""

from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from typing import Any

from teacher_cache.corpus.documents import pieces
from teacher_cache.corpus.files import describe
from teacher_cache.corpus.sequences import sequences as tokenise
from teacher_cache.errors import UserError
from teacher_cache.format import sequences
from teacher_cache.format.cache import open_cache
from teacher_cache.format.objects import ObjectRef
from teacher_cache.format.sequences import TokenisedFile
from teacher_cache.format.spec import CorpusIdentity, Identity
from teacher_cache.storage.store import Store


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

    def __init__(self, url: str, fingerprint: str) -> None:
        self._url, self._fingerprint = url, fingerprint

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        try:
            self._tokenise(item)
        except UserError as error:
            return {"file": item["file"], "error": str(error)}
        return {"file": item["file"], "error": ""}

    def _tokenise(self, item: dict[str, Any]) -> None:
        store, identity, tokenizer = tokeniser(self._url, self._fingerprint)
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
            num_documents = places[-1] + 1
        sequences.commit_file(store, file, TokenisedFile(parts=tuple(parts), num_documents=num_documents))


@lru_cache(maxsize=4)
def tokeniser(url: str, fingerprint: str) -> tuple[Store, Identity, Any]:
    """Once per worker process and cache, not per file.

    A process may outlive a cache: under one URL another may be built, which the fingerprint tells apart.
    """
    from transformers import AutoTokenizer

    cache = open_cache(url)
    return cache.store, cache.spec, AutoTokenizer.from_pretrained(cache.teacher.folder)
