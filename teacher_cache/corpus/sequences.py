"""Documents to token sequences: `[CLS] run [SEP]`, by one of two packings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from teacher_cache.corpus.documents import Piece, pieces
from teacher_cache.errors import UserError

BATCH_CHARACTERS = 1 << 20
BATCH_PIECES = 1024
"""A batch for the tokenizer ends with the piece that reaches either: a token takes it some hundred bytes."""

Tokens = Iterable[tuple[int, Sequence[int]]]
"""(document, token ids) in order, never empty; a long document comes as several in a row."""


@dataclass(frozen=True, eq=False)
class TokenSequence:
    document: int
    """Of the first token after [CLS]: counted from 0 in the file, over documents that have tokens."""
    num_documents: int
    """That were read so far; by a file's last sequence, all."""
    input_ids: NDArray[np.int32]
    """[CLS] and [SEP] included."""


def sequences(
    url: str,
    *,
    format: str,
    text_field: str,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    packing: str,
) -> Iterator[TokenSequence]:
    """Tokenises and packs one file; `packing` is `documents` or `full`, as `pack` tells.

    Text that reads like a special token, such as `[MASK]`, is tokenised as any other text.

    Args:
        sequence_length: most tokens of a sequence, [CLS] and [SEP] included; at least 3.

    Raises:
        UserError: the file cannot be read (see `pieces`), or the tokenizer has no [CLS] or [SEP].
    """
    cls, sep = _special_id(tokenizer, "cls_token"), _special_id(tokenizer, "sep_token")
    num_documents = 0

    def counted() -> Tokens:
        nonlocal num_documents
        for document, ids in _tokenise(pieces(url, format=format, text_field=text_field), tokenizer):
            num_documents = document + 1
            yield document, ids

    for document, run in pack(counted(), length=sequence_length - 2, packing=packing, separator=sep):
        yield TokenSequence(document, num_documents, np.array([cls, *run, sep], dtype=np.int32))


def pack(tokens: Tokens, *, length: int, packing: str, separator: int) -> Iterator[tuple[int, list[int]]]:
    """Cuts token streams into runs of `length`, each with the document of its first token.

    `documents` cuts each document by itself, so its last run may be short. `full` cuts all documents as one
    stream with a `separator` between two of them, which belongs to the later one; only the last run may be
    short, and a run of nothing but a separator is dropped.
    """
    if packing == "documents":
        for _, document in groupby(tokens, key=itemgetter(0)):
            yield from _runs(document, length)
    elif packing == "full":
        joined = _runs(_join(tokens, separator), length)
        yield from ((document, run) for document, run in joined if run != [separator])
    else:
        raise ValueError(f"packing must be documents or full, not {packing!r}")


def _runs(tokens: Tokens, length: int) -> Iterator[tuple[int, list[int]]]:
    run: list[int] = []
    owners: list[int] = []  # the document of each token of `run`
    for document, ids in tokens:
        run += ids
        owners += [document] * len(ids)
        complete = len(run) - len(run) % length
        for start in range(0, complete, length):
            yield owners[start], run[start : start + length]
        del run[:complete], owners[:complete]
    if run:
        yield owners[0], run


def _join(tokens: Tokens, separator: int) -> Tokens:
    before = None
    for document, ids in tokens:
        if before not in (None, document):
            yield document, [separator]
        yield document, ids
        before = document


def _tokenise(texts: Iterable[Piece], tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Token ids of each piece that has some, documents counted anew over those."""
    tokens = (encoded for batch in _batches(texts) for encoded in _encode(batch, tokenizer))
    documents = groupby((encoded for encoded in tokens if encoded[1]), key=itemgetter(0))
    for document, (_, parts) in enumerate(documents):
        for _, ids in parts:
            yield document, ids


def _batches(texts: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in texts:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_PIECES:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(batch: list[Piece], tokenizer: PreTrainedTokenizerBase) -> Tokens:
    encoded = tokenizer(
        [piece.text for piece in batch],
        add_special_tokens=False,
        split_special_tokens=True,  # a text about BERT must not put a real [MASK] or [PAD] into the input
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # documents longer than the model's input are cut here, not by the tokenizer
    )
    return zip((piece.document for piece in batch), encoded["input_ids"], strict=True)


def _special_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    token_id = getattr(tokenizer, f"{name}_id")
    if token_id is None:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no {name}; use that of a BERT-family teacher")
    return int(token_id)
