"""Masking: (seed, view, sequence id) decides which positions a teacher must guess, and which are kept.

Every draw comes from counter-based words, so that a view never depends on worker, batch or order.

Legend: S positions of a sequence, V vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from teacher_cache.format import philox
from teacher_cache.format.sequences import StoredSequence
from teacher_cache.format.spec import KeepConfig, MaskingConfig, TaskKind

STREAM_SELECT, STREAM_ACTION, STREAM_TOKEN, STREAM_KEEP = range(4)
RARE_EXPONENT = -0.7
"""Smoothing of token counts (arXiv 1910.01108's code: `mlm_smoothing` 0.7, after XLM)."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What masking must know of a tokenizer."""

    size: int
    mask_id: int
    special_ids: tuple[int, ...]
    mask_probability: np.ndarray | None = None
    """float64 `[V]` for policy `rare`: the probability with which a token of each kind is masked."""

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """All ids but the special ones, ascending: what a random replacement is drawn from."""
        return np.setdiff1d(np.arange(self.size, dtype=np.int32), self.special_ids)


@dataclass(frozen=True, kw_only=True)
class MaskedSequence:
    """One sequence in one view."""

    input_ids: np.ndarray
    """int32 `[S]`: what the teacher sees."""
    label_positions: np.ndarray
    """int64, ascending: what it must guess."""
    label_ids: np.ndarray
    """int32: the true tokens there."""
    kept_positions: np.ndarray
    """int64, ascending: where its answer is cached."""
    rates: np.ndarray
    """float32: the probability with which each of them was kept."""


def mask_sequence(
    input_ids: np.ndarray,
    sequence_id: int,
    view: int,
    *,
    masking: MaskingConfig,
    keep: KeepConfig,
    vocabulary: Vocabulary,
) -> MaskedSequence:
    """Masks `input_ids` `[S]` for one view: 80/10/10 of the chosen positions, special tokens never."""
    ids = np.asarray(input_ids, dtype=np.int32)
    maskable = np.flatnonzero(~np.isin(ids, vocabulary.special_ids))
    positions = maskable[_select(ids, maskable, sequence_id, view, masking, vocabulary)]
    is_masked = np.zeros(len(ids), dtype=bool)
    is_masked[positions] = True
    rates = np.where(is_masked, np.float32(keep.masked), np.float32(keep.unmasked))
    kept = np.flatnonzero(_draw((masking.seed, view), STREAM_KEEP, sequence_id, len(ids)) < rates)
    return MaskedSequence(
        input_ids=_replace(ids, positions, sequence_id, view, masking, vocabulary),
        label_positions=positions,
        label_ids=ids[positions],
        kept_positions=kept,
        rates=rates[kept],
    )


def unmasked(sequence: StoredSequence, kind: TaskKind) -> MaskedSequence:
    """A task's sequence as its teacher is asked about it: [CLS] answers for a whole sequence, labelled tokens are
    tagged, and any position may be the start or the end of an answer."""
    kept = np.zeros(1, np.int64)
    if kind == "tagging":
        kept = sequence.label_positions.astype(np.int64)
    elif kind == "question_answering":
        kept = np.arange(len(sequence.input_ids))
    return MaskedSequence(
        input_ids=sequence.input_ids,
        label_positions=sequence.label_positions,
        label_ids=sequence.label_ids,
        kept_positions=kept,
        rates=np.ones(len(kept), np.float32),
    )


def _draw(key: philox.Key, stream: int, sequence_id: int, size: int) -> np.ndarray:
    return philox.uniforms(philox.words(key, stream=stream, index=sequence_id, size=size))


def _select(
    ids: np.ndarray, maskable: np.ndarray, sequence_id: int, view: int, masking: MaskingConfig, vocabulary: Vocabulary
) -> np.ndarray:
    """Which of the maskable positions are masked, as a boolean array."""
    if masking.policy == "strided":
        num_parts = round(1 / masking.rate)
        key = (masking.seed, view // num_parts)
        order = philox.permutation(philox.words(key, stream=STREAM_SELECT, index=sequence_id, size=len(maskable)))
        part = np.empty(len(maskable), dtype=np.int64)
        part[order] = np.arange(len(maskable)) % num_parts
        return part == view % num_parts
    draws = _draw((masking.seed, view), STREAM_SELECT, sequence_id, len(ids))[maskable]
    if masking.policy == "rare":
        assert vocabulary.mask_probability is not None, "policy rare needs mask_probability"
        return draws < vocabulary.mask_probability[ids[maskable]]
    return draws < masking.rate


def _replace(
    ids: np.ndarray, positions: np.ndarray, sequence_id: int, view: int, masking: MaskingConfig, vocabulary: Vocabulary
) -> np.ndarray:
    """The input with each chosen position masked, made random, or left as it is."""
    key = (masking.seed, view)
    action = _draw(key, STREAM_ACTION, sequence_id, len(ids))[positions]
    choice = _draw(key, STREAM_TOKEN, sequence_id, len(ids))[positions]
    random_ids = vocabulary.ordinary_ids[(choice * len(vocabulary.ordinary_ids)).astype(np.int64)]
    is_random = action < masking.mask_share + masking.random_share
    masked = ids.copy()
    masked[positions] = np.where(
        action < masking.mask_share, vocabulary.mask_id, np.where(is_random, random_ids, ids[positions])
    )
    return masked


def rare_probabilities(counts: np.ndarray, rate: float, special_ids: tuple[int, ...]) -> np.ndarray:
    """Probability `[V]` of masking each token: min(1, c * count^-0.7), c solved so that `rate` of all are masked.

    The published weighting (arXiv 1910.01108's code) made independent per position. Zero for special tokens.
    """
    counts = counts.astype(np.float64).copy()
    counts[list(special_ids)] = 0
    weights = np.where(counts > 0, np.maximum(counts, 1) ** RARE_EXPONENT, 0.0)
    low, high = 0.0, 1 / max(weights[weights > 0].min(initial=1.0), 1e-300)
    for _ in range(200):  # bisection to the last bit: the expected share grows with c
        middle = (low + high) / 2
        share = (counts * np.minimum(1, middle * weights)).sum()
        low, high = (middle, high) if share < rate * counts.sum() else (low, middle)
    return np.asarray(np.minimum(1, high * weights))
