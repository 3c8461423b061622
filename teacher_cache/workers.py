"""What runs on Ray workers: corpus files described and tokenised, units asked of the teacher.

Each call takes and gives back a small dictionary. What goes wrong comes back as `error`, because an exception would
stop the whole dataset.
"""

import logging
from dataclasses import asdict
from functools import cached_property, lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from teacher_cache.corpus.documents import pieces
from teacher_cache.corpus.files import describe
from teacher_cache.corpus.sequences import sequences as tokenise
from teacher_cache.errors import UserError
from teacher_cache.format import manifest, sequences, token_counts
from teacher_cache.format.cache import open_cache
from teacher_cache.format.manifest import Shard
from teacher_cache.format.objects import ObjectRef
from teacher_cache.format.sequences import Sequences, TokenisedFile
from teacher_cache.format.spec import Identity
from teacher_cache.format.store import Store

if TYPE_CHECKING:  # torch is loaded only by teachers' workers
    from teacher_cache.format.coder import Coder


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
        file = int(item["file"])
        stream = tokenise(
            str(item["url"]),
            format=str(item["format"]),
            text_field=identity.corpus.text_field,
            tokenizer=tokenizer,
            sequence_length=identity.corpus.sequence_length,
            packing=identity.corpus.packing,
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


class _TeacherWorker:
    """A Ray Data actor with a teacher. Gets paths and names, never weights."""

    def __init__(self, url: str, batch_tokens: int, num_threads: int, on_gpu: bool) -> None:
        import torch

        from teacher_cache.teacher import Teacher, load_teacher
        from teacher_cache.units import vocabulary_of

        torch.set_num_threads(num_threads)
        self._cache = open_cache(url)
        self._identity, self._store = self._cache.spec, self._cache.store
        self._device = torch.device("cuda" if on_gpu else "cpu")
        loaded = load_teacher(str(self._cache.teacher.folder))
        is_rare = self._identity.masking.policy == "rare"
        mask_probability = token_counts.read_mask_probability(self._store) if is_rare else None
        self._sequences = Sequences(self._store)
        self._asking = {
            "teacher": Teacher(loaded, getattr(torch, self._identity.teacher.dtype), self._device),
            "vocabulary": vocabulary_of(loaded.tokenizer, mask_probability),
            "pad_id": loaded.tokenizer.pad_token_id,
            "identity": self._identity,
            "batch_tokens": batch_tokens,
        }


class CodebookWorker(_TeacherWorker):
    """Makes the cache's codebook of the sequences named in `ids`."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        try:
            self._make([int(sequence) for sequence in item["ids"]])
        except Exception as failure:
            return {"error": _told(failure, "the codebook failed")}
        return {"error": ""}

    def _make(self, ids: list[int]) -> None:
        from teacher_cache.codebooks import make_codebook
        from teacher_cache.format import codebook

        made = make_codebook(
            [next(self._sequences.read(sequence, sequence + 1)) for sequence in ids],
            head=self._cache.head.to(self._device),
            num_layers=self._cache.teacher.num_layers,
            **self._asking,
        )
        codebook.create(self._store, made)


class UnitWorker(_TeacherWorker):
    """Asks the teacher unit by unit, and commits what it said."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        view, unit = int(item["view"]), int(item["unit"])
        try:
            shard, error = self._build(view, unit), ""
        except Exception as failure:
            shard, error = None, _told(failure, f"unit {unit} of view {view} failed")
        return {
            "unit": unit,
            "error": error,
            "num_tokens": shard.num_tokens if shard else 0,
            "num_bytes": shard.num_bytes if shard else 0,
        }

    def _build(self, view: int, unit: int) -> Shard:
        from teacher_cache.format.shard import put_shard
        from teacher_cache.units import compute_unit

        size = self._identity.unit_sequences
        stored = list(self._sequences.read(unit * size, (unit + 1) * size))
        rows = compute_unit(stored, view, **self._asking)
        shard = put_shard(self._store, rows, self._identity, self._coder, view=view, unit=unit)
        return manifest.commit(self._store, view, shard, self._identity.fingerprint)

    @cached_property
    def _coder(self) -> "Coder":
        return self._cache.coder.to(self._device)


def _told(failure: Exception, what: str) -> str:
    """The message of a failure, for a receipt: an exception would stop the whole dataset."""
    logging.getLogger(__name__).exception(what, exc_info=failure)
    return str(failure) if isinstance(failure, UserError) else f"{type(failure).__name__}: {failure}"
