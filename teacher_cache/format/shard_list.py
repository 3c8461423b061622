"""The shards of a sealed view. A view may have a million: they stay columns, and a `Shard` is made when asked for.

Legend: U units; row u of each column is unit u's.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.format import parquet
from teacher_cache.format.objects import ObjectRef, content_key

Part = Literal["labels", "hidden"]
COUNTS = ("num_sequences", "num_tokens", "num_labels", "num_kept")
SHARD_KEY = re.compile(r"shards/(\d+)/\d+-[0-9a-f]{16}\.(labels|hidden)\.parquet")
"""With the view; see `shard_key`."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What a unit became."""

    unit: int
    labels: ObjectRef
    hidden: ObjectRef | None
    num_sequences: int
    num_tokens: int
    """Non-pad positions, [CLS] and [SEP] included: the denominator of the soft-label and cosine losses."""
    num_labels: int
    """Masked positions: the denominator of the masked-LM loss."""
    num_kept: int

    @property
    def num_bytes(self) -> int:
        return self.labels.num_bytes + (self.hidden.num_bytes if self.hidden else 0)


def shard_key(view: int, unit: int, part: Part, sha256: str) -> str:
    """Where an object of a unit lies: its own digest in its name keeps attempts apart."""
    return content_key(shard_prefix(view, unit), shard_suffix(part), sha256)


def shard_prefix(view: int, unit: int) -> str:
    return f"shards/{view:05d}/{unit:09d}"


def shard_suffix(part: Part) -> str:
    return f".{part}.parquet"


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards(Sequence[Shard]):
    """The shards of a view by unit; slices are tuples."""

    view: int
    columns: Mapping[str, np.ndarray]
    """As `column_names` lists them: digests uint8 `[U, 32]`, numbers int64 `[U]`."""

    @staticmethod
    def joined(view: int, blocks: Sequence[Mapping[str, np.ndarray]]) -> "Shards":
        """Of columns of units that follow each other.

        Raises:
            UserError: some units have hidden states and some have not.
        """
        names = {tuple(block) for block in blocks}
        if len(names) != 1:
            raise UserError(f"some units of view {view} have hidden states and some have not; build it at another URL")
        columns = {name: np.concatenate([block[name] for block in blocks]) for name in names.pop()}
        return Shards(view=view, columns=columns)

    @property
    def has_hidden(self) -> bool:
        return "hidden_sha256" in self.columns

    def total(self, column: str) -> int:
        return int(self.columns[column].sum())

    def __len__(self) -> int:
        return len(self.columns["labels_sha256"])

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Shard, ...]: ...
    def __getitem__(self, index: int | slice) -> Shard | tuple[Shard, ...]:
        if isinstance(index, slice):
            return tuple(self._shard(unit) for unit in range(len(self))[index])
        return self._shard(range(len(self))[operator.index(index)])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Shards) or (self.view, self.columns.keys()) != (other.view, other.columns.keys()):
            return False
        return all(np.array_equal(values, other.columns[name]) for name, values in self.columns.items())

    def _shard(self, unit: int) -> Shard:
        counts = {name: int(self.columns[name][unit]) for name in COUNTS}
        hidden = self._ref("hidden", unit) if self.has_hidden else None
        return Shard(unit=unit, labels=self._ref("labels", unit), hidden=hidden, **counts)

    def _ref(self, part: Part, unit: int) -> ObjectRef:
        sha256 = self.columns[f"{part}_sha256"][unit].tobytes().hex()
        key = shard_key(self.view, unit, part, sha256)
        return ObjectRef(key=key, sha256=sha256, num_bytes=int(self.columns[f"{part}_num_bytes"][unit]))

    def replaced(self, shards: Mapping[int, Shard]) -> "Shards":
        """These, with other shards at some units.

        Raises:
            UserError: a unit is none of this view's, or its shard has not what the others have.
        """
        if bad := [unit for unit, shard in shards.items() if shard.unit != unit or not 0 <= unit < len(self)]:
            raise UserError(f"unit {bad[0]} cannot be replaced: the view has units 0 to {len(self) - 1:,}")
        changed, columns = columns_of(self.view, list(shards.values())), dict(self.columns)
        if changed.keys() != columns.keys():
            raise UserError(f"view {self.view} has hidden states in every shard or in none; so must what replaces one")
        for name in columns:
            columns[name] = columns[name].copy()
            columns[name][list(shards)] = changed[name]
        return Shards(view=self.view, columns=columns)


def column_names(has_hidden: bool) -> tuple[str, ...]:
    parts = ("labels", "hidden") if has_hidden else ("labels",)
    return (*(f"{part}_{name}" for part in parts for name in ("sha256", "num_bytes")), *COUNTS)


def columns_of(view: int, shards: Sequence[Shard]) -> dict[str, np.ndarray]:
    """The columns that say all of some shards but their units, in the order given.

    Raises:
        UserError: a shard is none of the view's, or some have hidden states and some have not.
    """
    refs = {"labels": [shard.labels for shard in shards], "hidden": [shard.hidden for shard in shards if shard.hidden]}
    if len(refs["hidden"]) not in (0, len(shards)):
        raise UserError(f"{len(refs['hidden'])} of {len(shards)} shards of view {view} have hidden states; all or none")
    for shard in shards:
        check_shard(shard, view)
    columns: dict[str, np.ndarray] = {
        name: np.array([getattr(shard, name) for shard in shards], np.int64) for name in COUNTS
    }
    for part, found in refs.items():
        digests = np.frombuffer(b"".join(bytes.fromhex(ref.sha256) for ref in found), np.uint8)
        columns[f"{part}_sha256"] = digests.reshape(-1, 32)
        columns[f"{part}_num_bytes"] = np.array([ref.num_bytes for ref in found], np.int64)
    return {name: columns[name] for name in column_names(bool(refs["hidden"]))}


def check_shard(shard: Shard, view: int) -> None:
    """Whether a manifest can list a shard.

    Raises:
        UserError: an object lies elsewhere than its view, unit and digest say, or a count is out of bounds.
    """
    refs: dict[Part, ObjectRef | None] = {"labels": shard.labels, "hidden": shard.hidden}
    for part, ref in refs.items():
        if ref and not parquet.PATTERNS["sha256"].fullmatch(ref.sha256):
            raise UserError(f"unit {shard.unit} has {part} of SHA-256 {ref.sha256!r}, which is none")
        if ref and ref.key != (expected := shard_key(view, shard.unit, part, ref.sha256)):
            raise UserError(
                f"unit {shard.unit} of view {view} has its {part} at {ref.key!r}, they belong at {expected}"
            )
    for name in (*COUNTS, "num_bytes"):
        if not 0 <= (count := getattr(shard, name)) <= parquet.MAX_LISTED:
            raise UserError(f"unit {shard.unit} has {name} {count:,}; it must be from 0 to {parquet.MAX_LISTED:,}")


def check_columns(columns: Mapping[str, np.ndarray]) -> None:
    """Raises UserError where the columns that a manifest lists are not those of shards."""
    if tuple(columns) not in (column_names(True), column_names(False)):
        raise UserError(f"its columns are {', '.join(columns)}; they must be {', '.join(column_names(True))}")
