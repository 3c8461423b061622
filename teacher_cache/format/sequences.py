"""The tokenised corpus of a cache, built once for all views.

`sequences/parts/*.parquet` hold one row a sequence, `sequences/commits/<file>.json` say which parts a corpus
file became, and `sequences/manifest.parquet`, once sealed, gives every part its place. A sequence's id is its
place in the whole, in file order.
"""

import re
import uuid
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from teacher_cache.errors import UserError
from teacher_cache.format import documents, parquet, tensors
from teacher_cache.format.objects import MAX_LIST_BYTES, ObjectRef, content_key, create_list, put_content
from teacher_cache.format.parquet import Column
from teacher_cache.format.refusal import refusing
from teacher_cache.format.spec import MAX_SEQUENCE_LENGTH
from teacher_cache.storage.parallel import in_blocks
from teacher_cache.storage.store import Store

MANIFEST_KEY = "sequences/manifest.parquet"
PART_SUFFIX = ".parquet"
PART_KEY = re.compile(r"sequences/parts/\d+-\d+-[0-9a-f]{16}\.parquet")
PART_SEQUENCES = 65_536
ROW_GROUP_SEQUENCES = 1024
PART_REMEDY = "restore it, or delete its folder sequences and run `teacher-cache build` again, which writes that anew"
COMMIT_REMEDY = "move it away and run `teacher-cache build` again"
_REF_FIELDS = ("key", "sha256", "num_bytes")
_LABELS = {"label_positions": np.uint16, "label_ids": np.int32}
"""Columns that parts of a task's sequences have, too."""


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
    """Of a task's: the example."""
    input_ids: np.ndarray
    label_positions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """int64, ascending: where a task has a true class; none in a corpus."""
    label_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    """int32: the classes there."""


def write_part(
    store: Store,
    file: int,
    part: int,
    ids: Sequence[np.ndarray],
    file_documents: Sequence[int],
    *,
    labels: Sequence[StoredSequence] = (),
) -> Any:
    """Stores a run of sequences; gives (object, sequences, tokens) as `TokenisedFile.parts` lists them.

    `labels` are the same sequences where a task says what is true of them.
    """
    columns = {"document": pa.array(file_documents, pa.int64()), "input_ids": parquet.ragged(ids, np.int32)}
    for name, dtype in _LABELS.items() if labels else ():
        columns[name] = parquet.ragged([getattr(sequence, name) for sequence in labels], dtype)
    table = pa.table(columns)
    data = parquet.write(table, metadata={"file": file, "part": part}, row_group_rows=ROW_GROUP_SEQUENCES)
    ref = put_content(store, _part_prefix(file, part), PART_SUFFIX, data)
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
    document = documents.read(store, key, remedy=COMMIT_REMEDY)
    with refusing(f"{store.url}/{key}", COMMIT_REMEDY):
        parts = [
            (ObjectRef(**{name: part[name] for name in _REF_FIELDS}), part["sequences"], part["tokens"])
            for part in document["parts"]
        ]
        return TypeAdapter(TokenisedFile).validate_python({"parts": parts, "num_documents": document["documents"]})


def committed_files(store: Store) -> set[int]:
    """Corpus files that need no tokenising again."""
    names = (key.rsplit("/", 1)[1].removesuffix(".json") for key in store.list("sequences/commits"))
    return {int(name) for name in names if name.isdecimal()}


def _commit_key(file: int) -> str:
    return f"sequences/commits/{file:06d}.json"


def seal(store: Store, num_files: int, fingerprint: str) -> None:
    """Writes the manifest from the commits of all files.

    Raises:
        FileNotFoundError: a file is not committed.
        UserError: a commit is refused, see `read_commit`; or other sequences are sealed.
    """
    files = [file for block in in_blocks(lambda file: read_commit(store, file), num_files) for file in block]
    first_documents = [0, *accumulate(tokenised.num_documents for tokenised in files)]
    columns = _columns(files, first_documents[:-1])
    metadata = {"fingerprint": fingerprint, "num_documents": first_documents[-1]}
    if not create_list(store, MANIFEST_KEY, columns, metadata=metadata):
        raise UserError(f"{store.url}/{MANIFEST_KEY} exists and lists other sequences; use a new cache URL")


def digest_of(sequences: Sequence[StoredSequence]) -> str:
    """SHA-256 of what a task's sequences hold: see `tensors.digest_of`."""
    columns = {"document": np.array([sequence.document_id for sequence in sequences], np.int64)}
    for name, dtype in {"input_ids": np.int32, **_LABELS}.items():
        values = [getattr(sequence, name) for sequence in sequences]
        columns[name] = np.concatenate(values).astype(dtype)
        columns[f"num_{name}"] = np.array([len(value) for value in values], np.int64)
    return tensors.digest_of(columns)


class Sequences:
    """The sealed sequences of a cache, readable by id.

    Raises:
        FileNotFoundError: they are not sealed yet.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        data = store.read(MANIFEST_KEY, max_bytes=MAX_LIST_BYTES)
        self.sha256 = documents.sha256(data)
        name = f"{store.url}/{MANIFEST_KEY}"
        columns, metadata = parquet.read_list(data, name=name)
        with refusing(name, parquet.LIST_REMEDY):
            self.fingerprint: str = metadata["fingerprint"]
            self.num_documents: int = metadata["num_documents"]
            self.parts = _parts(columns)
        self._firsts = [part.first_sequence for part in self.parts]
        self.num_sequences = sum(part.num_sequences for part in self.parts)
        self.num_tokens = sum(part.num_tokens for part in self.parts)

    def check(self, fingerprint: str) -> None:
        """Refuses sequences of another identity than the cache's.

        Raises:
            UserError: they are, as where only `spec.json` was moved away.
        """
        if self.fingerprint != fingerprint:
            raise UserError(
                f"{self._store.url}/{MANIFEST_KEY} is of another configuration than {self._store.url}/spec.json; "
                "choose another `cache` URL, or move all of this one away"
            )

    def read(self, start: int, stop: int) -> Iterator[StoredSequence]:
        """Sequences `start` to `stop` (excluded), in order."""
        place = max(bisect_right(self._firsts, start) - 1, 0)
        for part in self.parts[place:]:
            if part.first_sequence >= stop:
                return
            yield from self._read_part(part, max(start - part.first_sequence, 0), stop - part.first_sequence)

    def _read_part(self, part: Part, start: int, stop: int) -> Iterator[StoredSequence]:
        name = f"{self._store.url}/{part.ref.key}"
        remedy = f"run `teacher-cache verify {self._store.url}`"
        with refusing(name, remedy):
            opened, _ = parquet.open_file(part.ref.fetch(self._store), name=name, remedy=remedy)
            file = opened.expecting(_part_columns(part, opened.reader.schema_arrow.names))
            if file.metadata.num_rows != part.num_sequences:
                raise UserError(f"it holds {file.metadata.num_rows:,} sequences, not {part.num_sequences:,}")
        first_group = start // ROW_GROUP_SEQUENCES
        last_group = (min(stop, part.num_sequences) - 1) // ROW_GROUP_SEQUENCES
        for group in range(first_group, last_group + 1):
            with refusing(name, remedy):
                documents_of, columns = _read_group(file, group)
            for offset, document in enumerate(documents_of):
                row = group * ROW_GROUP_SEQUENCES + offset
                if start <= row < stop:
                    yield StoredSequence(
                        sequence_id=part.first_sequence + row,
                        document_id=part.first_document + document,
                        **{name: values[offset] for name, values in columns.items()},
                    )


def _part_columns(part: Part, names: Sequence[str]) -> dict[str, Column]:
    """What a part with columns of some names must hold."""
    most = min(part.num_tokens, ROW_GROUP_SEQUENCES * MAX_SEQUENCE_LENGTH)
    columns = {
        "document": Column(type=pa.int64(), max_values=ROW_GROUP_SEQUENCES),
        "input_ids": Column(type=pa.list_(pa.int32()), max_values=most),
    }
    if set(_LABELS) & set(names):
        types = {name: pa.from_numpy_dtype(dtype) for name, dtype in _LABELS.items()}
        columns |= {name: Column(type=pa.list_(kind), max_values=most) for name, kind in types.items()}
    return columns


def _read_group(file: parquet.File, group: int) -> tuple[list[int], dict[str, list[np.ndarray]]]:
    """Documents of a row group's sequences, and what else it holds of each."""
    table = file.read_group(group, list(file.columns))
    expected = min(ROW_GROUP_SEQUENCES, file.metadata.num_rows - group * ROW_GROUP_SEQUENCES)
    found = {name: parquet.unragged(table[name]) for name in file.columns if name != "document"}
    has_negative = any(values.min(initial=0) < 0 for values, _ in found.values())
    if len(table) != expected or table["document"].null_count or has_negative:
        raise UserError(f"row group {group} does not hold {expected:,} sequences of a document and token ids")
    if "label_ids" in found and not np.array_equal(found["label_positions"][1], found["label_ids"][1]):
        raise UserError(f"row group {group} has label_positions and label_ids that differ in number")
    columns = {name: parquet.split(values, offsets) for name, (values, offsets) in found.items()}
    return table["document"].to_pylist(), columns


_NUMBERS = ("num_bytes", "file", "num_sequences", "num_tokens", "first_sequence", "first_document")


def _columns(files: Sequence[TokenisedFile], first_documents: Sequence[int]) -> dict[str, np.ndarray]:
    """What the manifest lists: one row a part, file after file."""
    rows = [(file, place, *part) for file, tokenised in enumerate(files) for place, part in enumerate(tokenised.parts)]
    for file, place, ref, *_ in rows:
        if not parquet.PATTERNS["sha256"].fullmatch(ref.sha256) or ref.key != _part_key(file, place, ref.sha256):
            raise UserError(f"part {place} of corpus file {file} cannot lie at {ref.key!r} with SHA-256 {ref.sha256!r}")
    sizes = [size for _, _, _, size, _ in rows]
    numbers = {
        "num_bytes": [ref.num_bytes for _, _, ref, _, _ in rows],
        "file": [file for file, *_ in rows],
        "num_sequences": sizes,
        "num_tokens": [tokens for *_, tokens in rows],
        "first_sequence": [0, *accumulate(sizes)][: len(rows)],
        "first_document": [first_documents[file] for file, *_ in rows],
    }
    digests = np.frombuffer(b"".join(bytes.fromhex(ref.sha256) for _, _, ref, _, _ in rows), np.uint8)
    return {"sha256": digests.reshape(-1, 32)} | {name: np.array(numbers[name], np.int64) for name in _NUMBERS}


def _parts(columns: Mapping[str, np.ndarray]) -> list[Part]:
    """What the manifest lists.

    Raises:
        UserError: it is not one of parts, or they do not follow each other.
    """
    if tuple(columns) != ("sha256", *_NUMBERS):
        raise UserError(f"its columns are {', '.join(columns)}; they must be sha256, {', '.join(_NUMBERS)}")
    files, sizes = columns["file"], columns["num_sequences"]
    if (np.diff(files) < 0).any() or not np.array_equal(columns["first_sequence"], np.cumsum(sizes) - sizes):
        raise UserError("its parts do not follow each other")
    places = np.arange(len(files)) - np.searchsorted(files, files)
    rows = zip(*(columns[name].tolist() for name in _NUMBERS), strict=True)
    return [
        _part(values, int(place), digest.tobytes().hex())
        for values, place, digest in zip(rows, places, columns["sha256"], strict=True)
    ]


def _part(values: Sequence[int], place: int, sha256: str) -> Part:
    """The part of a row of the manifest, at a place among its file's."""
    num_bytes, file, *others = values
    ref = ObjectRef(key=_part_key(file, place, sha256), sha256=sha256, num_bytes=num_bytes)
    return Part(ref=ref, file=file, **dict(zip(_NUMBERS[2:], others, strict=True)))


def _part_key(file: int, place: int, sha256: str) -> str:
    return content_key(_part_prefix(file, place), PART_SUFFIX, sha256)


def _part_prefix(file: int, place: int) -> str:
    return f"sequences/parts/{file:06d}-{place:06d}"
