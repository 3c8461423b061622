"""How large a corpus is: a small one is tokenised whole, of a large one an even spread of slices."""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fsspec.core import url_to_fs
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from teacher_cache.config import CorpusConfig
from teacher_cache.corpus.files import resolve
from teacher_cache.corpus.sequences import TokenSequence, sequences
from teacher_cache.errors import UserError
from teacher_cache.plan.slices import NUM_SLICES, SLICE_BYTES, Slice, StoredFile, slices
from teacher_cache.storage.parallel import in_blocks
from teacher_cache.storage.streams import store_errors

COUNTED_BYTES = NUM_SLICES * SLICE_BYTES
"""Stored bytes up to which a corpus is tokenised whole: what is tokenised of any larger one."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A corpus file, or a slice of one, tokenised."""

    sequences: Sequence[TokenSequence]
    num_bytes: float
    """Of the stored file."""
    num_documents: float
    seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence.input_ids) for sequence in self.sequences)


@dataclass(frozen=True, kw_only=True)
class CorpusFigures:
    """Of a whole corpus."""

    num_files: int
    num_stored_bytes: int
    """Compressed or not."""
    num_documents: int
    num_sequences: int
    num_tokens: int
    """[CLS] and [SEP] included."""
    known: Literal["counted", "sampled", "given"]
    """How: all was tokenised, or slices, or the number of tokens was given."""
    relative_error: float | None
    """Of `num_tokens`: half of its 95 % interval, as a share; None where nothing tells it."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A corpus as it was found."""

    figures: CorpusFigures
    files: Sequence[StoredFile]
    sources: Sequence[Source]
    """What was tokenised; those with text."""
    tokenise_s: float
    """Of one process for all files."""

    def standing_for(self, num_tokens: int) -> "Survey":
        """The survey of a corpus of so many tokens, of which this one is a sample."""
        share = num_tokens / self.figures.num_tokens
        figures = replace(
            self.figures,
            num_documents=round(self.figures.num_documents * share),
            num_sequences=max(1, round(self.figures.num_sequences * share)),
            num_tokens=num_tokens,
            known="given",
            relative_error=None,
        )
        return replace(self, figures=figures, tokenise_s=self.tokenise_s * share)


def survey(
    corpus: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    counted_bytes: int = COUNTED_BYTES,
    progress: bool = False,
) -> Survey:
    """Counts a corpus of up to `counted_bytes` stored bytes, and estimates a larger one from slices.

    Raises:
        UserError: a file cannot be used, or there is no text in what was read.
    """
    files = stored_files(corpus)
    num_bytes = sum(file.num_bytes for file in files)
    is_counted = num_bytes <= counted_bytes
    found = _whole(files, corpus, tokenizer) if is_counted else _sliced(files, corpus, tokenizer)
    total = len(files) if is_counted else None
    sources = list(tqdm(found, "tokenising", total, unit=" parts", disable=not progress))
    if not any(source.sequences for source in sources):
        raise UserError(_no_text(files, is_counted))
    read = [source.num_bytes for source in sources]
    scale = 1.0 if is_counted else num_bytes / sum(read)
    tokens = [source.num_tokens for source in sources]
    figures = CorpusFigures(
        num_files=len(files),
        num_stored_bytes=num_bytes,
        num_documents=round(scale * sum(source.num_documents for source in sources)),
        num_sequences=round(scale * sum(len(source.sequences) for source in sources)),
        num_tokens=round(scale * sum(tokens)),
        known="counted" if is_counted else "sampled",
        relative_error=0.0 if is_counted else ratio_error(tokens, read, num_bytes),
    )
    return Survey(
        figures=figures,
        files=files,
        sources=[source for source in sources if source.sequences],
        tokenise_s=scale * sum(source.seconds for source in sources),
    )


def stored_files(corpus: CorpusConfig) -> list[StoredFile]:
    """The files that a configuration names, with their sizes.

    Raises:
        UserError: see `resolve`; or the store does not tell a size.
    """
    named = resolve(corpus.paths, corpus.format)
    sizes = [size for block in in_blocks(lambda place: _num_bytes(named[place][0]), len(named)) for size in block]
    return [StoredFile(url=url, format=kind, num_bytes=size) for (url, kind), size in zip(named, sizes, strict=True)]


def ratio_error(values: Sequence[float], sizes: Sequence[float], total_size: float) -> float | None:
    """Half of the 95 % interval of sum(values) / sum(sizes) as a share of it; None for fewer than two slices.

    The ratio estimator's variance with its finite population correction (Cochran, Sampling Techniques, 3rd ed.,
    section 6.4), as if the slices were drawn at random.
    """
    number = len(values)
    if number < 2:
        return None
    observed, weights = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    residuals = observed - observed.sum() / weights.sum() * weights
    left = max(0.0, 1 - weights.sum() / total_size)
    deviation = math.sqrt(left * (residuals**2).sum() / (number - 1) / number)
    return float(_student_t(number - 1) * deviation / observed.mean())


def _student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion around the normal's (Abramowitz and Stegun, 26.7.5)."""
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _whole(files: Sequence[StoredFile], corpus: CorpusConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Source]:
    for file in files:
        found, seconds = _timed(file.url, file.format, corpus, tokenizer)
        num_documents = found[-1].num_documents if found else 0
        yield Source(sequences=found, num_bytes=file.num_bytes, num_documents=num_documents, seconds=seconds)


def _sliced(files: Sequence[StoredFile], corpus: CorpusConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Source]:
    with tempfile.TemporaryDirectory() as folder:
        for part in slices(files, Path(folder)):
            try:
                found, seconds = _timed(str(part.path), part.file.format, corpus, tokenizer)
            except UserError as error:
                where = f"{part.file.url}, in a slice of it"
                raise UserError(str(error).replace(str(part.path), where)) from None
            yield Source(
                sequences=found, num_bytes=part.num_bytes, num_documents=_documents(part, found), seconds=seconds
            )


def _documents(part: Slice, found: Sequence[TokenSequence]) -> float:
    if part.file.format == "text_file":
        return part.num_bytes / part.file.num_bytes
    return found[-1].num_documents if found else 0


def _timed(
    url: str, format: str, corpus: CorpusConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenSequence], float]:
    start = time.perf_counter()
    settings: dict[str, Any] = {
        "text_field": corpus.text_field,
        "sequence_length": corpus.sequence_length,
        "packing": corpus.packing,
    }
    found = list(sequences(url, format=format, tokenizer=tokenizer, **settings))
    return found, time.perf_counter() - start


def _num_bytes(url: str) -> int:
    with store_errors(url):
        filesystem, path = url_to_fs(url)
        return int(filesystem.size(path))


def _no_text(files: Sequence[StoredFile], is_counted: bool) -> str:
    read = (
        f"{len(files)} files" if is_counted else f"{NUM_SLICES} slices of {SLICE_BYTES:,} bytes of {len(files)} files"
    )
    return f"the corpus has no usable text: {read}, no token; check corpus.paths and format"
