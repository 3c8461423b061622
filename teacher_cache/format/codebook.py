"""`codebook.safetensors`: the statistics that a cache's codes need, made once from a sample before the first view.

Floats differ between machines, so the spec holds only how a codebook is made; the first one that is put is the
cache's, and every shard and manifest names its digest.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.format import documents, tensors
from teacher_cache.format.refusal import refusing
from teacher_cache.format.spec import Identity
from teacher_cache.storage.store import Store

if TYPE_CHECKING:  # torch is loaded only by who makes or reads a codebook
    from teacher_cache.targets.hidden_code import HiddenCode
    from teacher_cache.targets.label_code import LabelCode

KEY = "codebook.safetensors"
MAX_BYTES = 2**30
REMEDY = "restore it from a copy, or build the cache anew at another URL: shards can be read with no other"


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """The codes of one cache."""

    labels: "LabelCode | None" = None
    """None: soft labels are stored as float32."""
    hidden: "dict[int, HiddenCode]" = field(default_factory=dict)
    """By layer; empty unless hidden states are transform-coded."""
    sha256: str | None = None
    """Digest of the file; None where there is none or before it is put."""


def is_needed(identity: Identity) -> bool:
    return identity.soft_labels.code == "packed" or identity.hidden.code == "transform"


def exists(store: Store) -> bool:
    return store.exists(KEY)


def create(store: Store, codebook: Codebook) -> None:
    """Puts a codebook unless one is there: the first wins."""
    named: dict[str, np.ndarray] = {}
    if codebook.labels:
        named |= {f"labels.{name}": value for name, value in codebook.labels.tensors().items()}
    for layer, code in codebook.hidden.items():
        named |= {f"hidden.{layer}.{name}": value.numpy() for name, value in code.tensors().items()}
    store.create(KEY, tensors.save(named))


def read(store: Store, identity: Identity, *, vocab_size: int) -> Codebook:
    """The cache's codebook; an empty one where its codes need none.

    Raises:
        UserError: it is missing, damaged, or not of this identity.
    """
    if not is_needed(identity):
        return Codebook()
    data = _data(store)
    with refusing(f"{store.url}/{KEY}", REMEDY):
        labels, hidden = _codes(tensors.load(data), identity, vocab_size)
        return Codebook(labels=labels, hidden=hidden, sha256=documents.sha256(data))


def _codes(
    named: dict[str, np.ndarray], identity: Identity, vocab_size: int
) -> "tuple[LabelCode | None, dict[int, HiddenCode]]":
    import torch

    from teacher_cache.targets.hidden_code import HiddenCode
    from teacher_cache.targets.label_code import LabelCode

    labels = None
    if identity.soft_labels.code == "packed":
        labels = LabelCode.from_tensors(
            _below(named, "labels."),
            top_k=identity.soft_labels.top_k,
            temperatures=identity.soft_labels.temperatures,
            vocab_size=vocab_size,
        )
    coded_layers = identity.hidden.stored_layers if identity.hidden.code == "transform" else ()
    hidden = {}
    for layer in coded_layers:
        values = _below(named, f"hidden.{layer}.")
        hidden[layer] = HiddenCode.from_tensors({name: torch.from_numpy(value) for name, value in values.items()})
    return labels, hidden


def digest(store: Store) -> str:
    """SHA-256 of the file.

    Raises:
        UserError: there is none.
    """
    return documents.sha256(_data(store))


def _data(store: Store) -> bytes:
    try:
        return store.read(KEY, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"{store.url} has no {KEY}; run `teacher-cache build` again") from None


def _below(named: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
