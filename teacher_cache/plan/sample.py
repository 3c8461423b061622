"""What of a corpus is asked and masked to plan for the whole of it. Pure, on token sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

from teacher_cache.format.sequences import StoredSequence
from teacher_cache.format.shard_columns import BLOCK_SEQUENCES
from teacher_cache.format.spec import Identity
from teacher_cache.masking import Vocabulary
from teacher_cache.units import mask_unit

SAMPLE_TOKENS = 65_536
"""That the teacher is asked about beside the codebook's sample, in whole blocks."""
MASKED_SEQUENCES = 16_384
"""That are masked to count labels and kept positions; a smaller corpus is masked whole, in all views."""


def sample_units(stored: Sequence[StoredSequence], *, unit_sequences: int) -> list[list[StoredSequence]]:
    """Whole blocks, evenly spread, joined to units; whole units where these are smaller than a block."""
    size = min(unit_sequences, BLOCK_SEQUENCES)
    num_tokens = sum(len(sequence.input_ids) for sequence in stored)
    total = max(1, len(stored) // size)
    wanted = min(total, max(1, round(SAMPLE_TOKENS * len(stored) / (size * num_tokens))))
    starts = [number * total // wanted * size for number in range(wanted)]
    blocks = [stored[start : start + size] for start in starts]
    of_unit = max(1, unit_sequences // size)
    return [
        [sequence for block in blocks[first : first + of_unit] for sequence in block]
        for first in range(0, wanted, of_unit)
    ]


@dataclass(frozen=True, kw_only=True)
class MaskedShares:
    """Of all positions."""

    labels: float
    kept: float


def masked_shares(
    stored: Sequence[StoredSequence], *, identity: Identity, vocabulary: Vocabulary, num_views: int
) -> MaskedShares:
    """Masks sequences, evenly spread over sequences and views, and counts."""
    total = len(stored) * num_views
    num_tokens = num_labels = num_kept = 0
    for place in range(0, total, -(-total // MASKED_SEQUENCES)):
        sequence, view = stored[place // num_views], place % num_views
        ((_, masked),) = mask_unit([sequence], view, identity=identity, vocabulary=vocabulary)
        num_tokens += len(sequence.input_ids)
        num_labels += len(masked.label_positions)
        num_kept += len(masked.kept_positions)
    return MaskedShares(labels=num_labels / num_tokens, kept=num_kept / num_tokens)
