"""Bytes and objects of a cache, from counts and from what a sample of shards weighed. Pure arithmetic.

Shards are linear in what they hold: so many bytes a kept position, a token, a block and a unit.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from teacher_cache.format.sequences import PART_SEQUENCES
from teacher_cache.format.shard_columns import BLOCK_SEQUENCES
from teacher_cache.storage.store import CHUNK_BYTES
from teacher_cache.targets.batching import group_by_tokens


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a cache will hold."""

    num_files: int
    """Of the corpus."""
    num_views: int
    unit_sequences: int
    num_sequences: int
    """Of a view, as all that follow."""
    num_tokens: int
    """Of the unmasked corpus, [CLS] and [SEP] included: so many positions has a view."""
    num_padded_tokens: int
    """That the teacher computes: with the padding of its micro-batches."""
    num_labels: float
    """Masked positions, the mean of all views."""
    num_kept: float

    @property
    def num_units(self) -> int:
        return -(-self.num_sequences // self.unit_sequences)

    @property
    def num_blocks(self) -> int:
        whole, rest = divmod(self.num_sequences, self.unit_sequences)
        return whole * -(-self.unit_sequences // BLOCK_SEQUENCES) + -(-rest // BLOCK_SEQUENCES)

    @property
    def num_sequence_parts(self) -> int:
        """Objects of the tokenised corpus, as if all files were of one size."""
        return self.num_files * -(-self.num_sequences // (self.num_files * PART_SEQUENCES))


@dataclass(frozen=True, kw_only=True)
class FileRates:
    """One kind of a shard's two objects; bytes."""

    unit: float = 0.0
    """Of a file without blocks."""
    block: float = 0.0
    """Added to a file's footers by each block."""
    kept: float = 0.0
    """Of what the teacher said at a kept position."""
    token: float = 0.0
    """Of inputs, labels and positions, a token."""

    def of_view(self, counts: Counts) -> int:
        return round(
            self.unit * counts.num_units
            + self.block * counts.num_blocks
            + self.kept * counts.num_kept
            + self.token * counts.num_tokens
        )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the parts of a cache weigh; bytes."""

    labels: FileRates
    hidden: FileRates | None
    """None where no hidden states are stored."""
    sequences_token: float
    """Of the tokenised corpus, a token."""
    sequences_file: float
    """Of what is written of each corpus file."""
    sequences_manifest: int
    token_counts: int
    """0 but for masking policy `rare`."""
    codebook: int
    teacher: int
    num_teacher_objects: int
    spec: int
    commit: float
    """Of a unit."""
    manifest: float
    """Of a view's manifest without a unit."""
    manifest_unit: float


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of a cache by part, over all views."""

    labels: int
    """Soft labels, inputs, labels and positions."""
    hidden: int
    sequences: int
    """The tokenised corpus."""
    codebook: int
    teacher: int
    manifests_and_commits: int
    """With `spec.json`."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def shards(self) -> int:
        return self.labels + self.hidden


def sizes(counts: Counts, rates: Rates) -> Sizes:
    """The whole cache's."""
    bookkeeping = rates.manifest + (rates.manifest_unit + rates.commit) * counts.num_units
    return Sizes(
        labels=counts.num_views * rates.labels.of_view(counts),
        hidden=counts.num_views * rates.hidden.of_view(counts) if rates.hidden else 0,
        sequences=round(
            rates.sequences_token * counts.num_tokens
            + rates.sequences_file * counts.num_files
            + rates.sequences_manifest
            + rates.token_counts
        ),
        codebook=rates.codebook,
        teacher=rates.teacher,
        manifests_and_commits=round(rates.spec + counts.num_views * bookkeeping),
    )


def num_objects(counts: Counts, rates: Rates) -> int:
    """Of the whole cache; each is one PUT of the build."""
    of_unit = 2 + (rates.hidden is not None)  # the commit, too
    of_sequences = counts.num_sequence_parts + counts.num_files + 1 + (rates.token_counts > 0)
    once = 1 + (rates.codebook > 0) + rates.num_teacher_objects
    return counts.num_views * (of_unit * counts.num_units + 1) + of_sequences + once


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a student reads from the store in an epoch, unless its machine has copies."""

    num_bytes: int
    num_gets: int


def reading(counts: Counts, rates: Rates, *, with_hidden: bool) -> Reading:
    """Of one view: its manifest and its shards, each in requests of up to `CHUNK_BYTES`."""
    files = [rates.labels, rates.hidden] if with_hidden and rates.hidden else [rates.labels]
    views = [file.of_view(counts) for file in files]
    gets = sum(counts.num_units * -(-size // (counts.num_units * CHUNK_BYTES)) for size in views)
    manifest = round(rates.manifest + rates.manifest_unit * counts.num_units)
    return Reading(num_bytes=sum(views) + manifest, num_gets=gets + 1)


def padded_tokens(lengths: Sequence[int], *, unit_sequences: int, batch_tokens: int) -> int:
    """What a teacher computes for sequences of these lengths, unit after unit, in padded micro-batches."""
    total = 0
    for start in range(0, len(lengths), unit_sequences):
        unit = lengths[start : start + unit_sequences]
        total += sum(len(group) * unit[group[0]] for group in group_by_tokens(unit, batch_tokens))
    return total
