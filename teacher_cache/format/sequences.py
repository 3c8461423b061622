"""The tokenised corpus of a cache, built once for all views.

`sequences/parts/*.parquet` hold one row a sequence, `sequences/commits/<file>.json` say which parts a corpus
file became, and `sequences/manifest.parquet`, once sealed, gives every part its place. A sequence's id is its
place in the whole, in file order.
"""

import uuid
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from teacher_cache.errors import UserError
from teacher_cache.format import documents, parquet
from teacher_cache.format.objects import ObjectRef, put_content
from teacher_cache.format.store import Store

MANIFEST_KEY = "sequences/manifest.parquet"
MAX_MANIFEST_BYTES = 2**31
PART_SEQUENCES = 65_536
ROW_GROUP_SEQUENCES = 1024


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run of sequences of one corpus file, as one object."""

    ref: ObjectRef
    file: int
    num_sequences: int
    num_tokens: int
    first_sequence: int
    first_document: int
    """Added to the document numbers in the part, which count from 0 in each file."""


@dataclass(frozen=True, kw_only=True)
class TokenisedFile:
    """What one corpus file became."""

    parts: tuple[tuple[ObjectRef, int, int], ...]
    """Object, sequences and tokens of each part."""
    num_documents: int


@dataclass(frozen=True, kw_only=True)
class StoredSequence:
    sequence_id: int
    document_id: int
    input_ids: np.ndarray


def write_part(store: Store, file: int, part: int, ids: Sequence[np.ndarray], file_documents: Sequence[int]) -> Any:
    """Stores a run of sequences; gives (object, sequences, tokens) as `TokenisedFile.parts` lists them."""
    table = pa.table(
        {"document": pa.array(file_documents, pa.int64()), "input_ids": parquet.ragged(ids, np.int32)},
    )
    data = parquet.write(table, metadata={"file": file, "part": part}, row_group_rows=ROW_GROUP_SEQUENCES)
    ref = put_content(store, f"sequences/parts/{file:06d}-{part:06d}", ".parquet", data)
    return ref, len(ids), sum(map(len, ids))


def commit_file(store: Store, file: int, tokenised: TokenisedFile) -> None:
    """Declares a corpus file's parts; the first commit wins."""
    parts = [{**asdict(ref), "sequences": rows, "tokens": tokens} for ref, rows, tokens in tokenised.parts]
    document = {"file": file, "owner": uuid.uuid4().hex, "parts": parts, "documents": tokenised.num_documents}
    store.create(_commit_key(file), documents.dump(document))


def read_commit(store: Store, file: int) -> TokenisedFile:
    """What the winning commit says of a corpus file.

    Raises:
        FileNotFoundError: the file is not committed.
    """
    key = _commit_key(file)
    data = store.read(key, max_bytes=documents.MAX_DOCUMENT_BYTES)
    document = documents.parse(data, name=f"{store.url}/{key}")
    parts = tuple(
        (
            ObjectRef(key=part["key"], sha256=part["sha256"], num_bytes=part["num_bytes"]),
            part["sequences"],
            part["tokens"],
        )
        for part in document["parts"]
    )
    return TokenisedFile(parts=parts, num_documents=document["documents"])


def committed_files(store: Store) -> set[int]:
    """Corpus files that need no tokenising again."""
    return {int(key.rsplit("/", 1)[1].removesuffix(".json")) for key in store.list("sequences/commits")}


def _commit_key(file: int) -> str:
    return f"sequences/commits/{file:06d}.json"


def seal(store: Store, num_files: int, fingerprint: str) -> None:
    """Writes the manifest from the commits of all files."""
    files = [read_commit(store, file) for file in range(num_files)]
    rows = [(file, *part) for file, tokenised in enumerate(files) for part in tokenised.parts]
    first_documents = [0, *accumulate(tokenised.num_documents for tokenised in files)]
    first_sequences = [0, *accumulate(row[2] for row in rows)]
    listed = [
        {
            **asdict(ref),
            "file": file,
            "num_sequences": num_sequences,
            "num_tokens": num_tokens,
            "first_sequence": first_sequence,
            "first_document": first_documents[file],
        }
        for (file, ref, num_sequences, num_tokens), first_sequence in zip(rows, first_sequences, strict=False)
    ]
    metadata = {"fingerprint": fingerprint, "num_documents": first_documents[-1]}
    data = parquet.write_list(listed, _SCHEMA, metadata=metadata)
    if not store.create(MANIFEST_KEY, data):
        raise UserError(f"{store.url}/{MANIFEST_KEY} exists and lists other sequences; use a new cache URL")


class Sequences:
    """The sealed sequences of a cache, readable by id.

    Raises:
        FileNotFoundError: they are not sealed yet.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        data = store.read(MANIFEST_KEY, max_bytes=MAX_MANIFEST_BYTES)
        self.sha256 = documents.sha256(data)
        rows, metadata = parquet.read_list(data, name=f"{store.url}/{MANIFEST_KEY}")
        self.fingerprint: str = metadata["fingerprint"]
        self.num_documents: int = metadata["num_documents"]
        self.parts = [_part(row) for row in rows]
        self._firsts = [part.first_sequence for part in self.parts]
        self.num_sequences = sum(part.num_sequences for part in self.parts)
        self.num_tokens = sum(part.num_tokens for part in self.parts)

    def read(self, start: int, stop: int) -> Iterator[StoredSequence]:
        """Sequences `start` to `stop` (excluded), in order."""
        place = max(bisect_right(self._firsts, start) - 1, 0)
        for part in self.parts[place:]:
            if part.first_sequence >= stop:
                return
            yield from self._read_part(part, max(start - part.first_sequence, 0), stop - part.first_sequence)

    def _read_part(self, part: Part, start: int, stop: int) -> Iterator[StoredSequence]:
        reader, _ = parquet.open_file(part.ref.fetch(self._store), name=part.ref.key)
        first_group = start // ROW_GROUP_SEQUENCES
        last_group = (min(stop, part.num_sequences) - 1) // ROW_GROUP_SEQUENCES
        for group in range(first_group, last_group + 1):
            table = reader.read_row_group(group)
            rows = parquet.split(*parquet.unragged(table["input_ids"]))
            for offset, (document, ids) in enumerate(zip(table["document"].to_pylist(), rows, strict=True)):
                row = group * ROW_GROUP_SEQUENCES + offset
                if start <= row < stop:
                    yield StoredSequence(
                        sequence_id=part.first_sequence + row,
                        document_id=part.first_document + document,
                        input_ids=ids,
                    )


_SCHEMA = pa.schema(
    [("key", pa.string()), ("sha256", pa.string())]
    + [
        (name, pa.int64())
        for name in ("num_bytes", "file", "num_sequences", "num_tokens", "first_sequence", "first_document")
    ]
)


def _part(row: dict[str, Any]) -> Part:
    ref = ObjectRef(key=row.pop("key"), sha256=row.pop("sha256"), num_bytes=row.pop("num_bytes"))
    return Part(ref=ref, **row)
