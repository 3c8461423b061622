"""What a cache holds of one sequence in one view.

Legend: S positions of a sequence, L labels, K kept positions, k top tokens, d hidden size.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a cache holds of one sequence in one view, decoded. Positions and their arrays are in order."""

    sequence_id: int
    document_id: int
    """Of the sequence's first token, by the document's place in the corpus."""
    input_ids: np.ndarray
    """int32 `[S]`: the input exactly as the teacher saw it."""
    label_positions: np.ndarray
    """int64 `[L]`: positions that masking chose."""
    label_ids: np.ndarray
    """int32 `[L]`: the true tokens there."""
    kept_positions: np.ndarray
    """int64 `[K]`."""
    rates: np.ndarray
    """float32 `[K]`: the probability with which each position was kept; losses weigh it by 1/rate."""
    topk_ids: np.ndarray
    """int32 `[K, k]`, ascending: they are a set."""
    topk_logits: np.ndarray
    """float32 `[K, k]`, in the order of the ids."""
    rest_log_sum_exp: dict[float, np.ndarray]
    """Temperature to float32 `[K]`: log sum of exp(logit / temperature) outside the top k; empty where k = V."""
    hidden: dict[int, np.ndarray] = field(default_factory=dict)
    """Layer to `[K, d]`, counted as `hidden_states` are, the last as -1."""
    levels: dict[int, np.ndarray] = field(default_factory=dict)
    """Layer to int16 `[K, d]`, instead of `hidden`: what the transform code decodes, for who decodes on a device."""
    source: int = 0
    """Which of several caches that are read as one it is from."""
