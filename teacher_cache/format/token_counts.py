"""How often each token stands in the corpus, and how likely policy `rare` masks it: solved once, read by all."""

from itertools import islice

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.format import documents, tensors
from teacher_cache.format.refusal import refusing
from teacher_cache.format.sequences import Sequences
from teacher_cache.storage.store import Store

KEY = "sequences/token_counts.safetensors"
MAX_BYTES = 2**28


def exists(store: Store) -> bool:
    return store.exists(KEY)


def count(corpus: Sequences, vocab_size: int) -> np.ndarray:
    """`[V]` int64: occurrences of each token in the unmasked corpus."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    ids = (sequence.input_ids for sequence in corpus.read(0, corpus.num_sequences))
    while batch := list(islice(ids, 4096)):
        counts += np.bincount(np.concatenate(batch), minlength=vocab_size)
    return counts


def create(store: Store, counts: np.ndarray, mask_probability: np.ndarray) -> None:
    """Stores `[V]` counts and float64 `[V]` probabilities, unless they are there."""
    store.create(KEY, tensors.save({"counts": counts, "mask_probability": mask_probability}))


def digest(store: Store) -> str:
    """SHA-256 of the stored object."""
    return documents.sha256(store.read(KEY, max_bytes=MAX_BYTES))


def read_mask_probability(store: Store) -> np.ndarray:
    """float64 `[V]`.

    Raises:
        UserError: it is missing or damaged.
    """
    name = f"{store.url}/{KEY}"
    try:
        data = store.read(KEY, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"{name} is missing; run `teacher-cache build` again") from None
    with refusing(name, "move it away and run `teacher-cache build` again"):
        found = tensors.load(data)["mask_probability"]
        if found.ndim != 1 or found.dtype != np.float64 or not ((found >= 0) & (found <= 1)).all():
            raise UserError("mask_probability must be a float64 from 0 to 1 for each token")
        return found
