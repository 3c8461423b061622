"""`codebook.safetensors`: the statistics that a cache's codes need, made once from a sample before the first view.

Floats differ between machines, so the spec holds only how a codebook is made; the first one that is put is the
cache's, and every shard and manifest names its digest.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.format.spec import Identity
from teacher_cache.format.store import Store

if TYPE_CHECKING:  # torch is loaded only by who makes or reads a codebook
    import torch

    from teacher_cache.targets.hidden_code import HiddenCode
    from teacher_cache.targets.label_code import LabelCode

KEY = "codebook.safetensors"
MAX_BYTES = 2**30


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
    import safetensors.torch
    import torch

    tensors: dict[str, torch.Tensor] = {}
    if codebook.labels:
        labels = codebook.labels.tensors()
        tensors |= {f"labels.{name}": torch.from_numpy(value) for name, value in labels.items()}
    for layer, code in codebook.hidden.items():
        tensors |= {f"hidden.{layer}.{name}": value for name, value in code.tensors().items()}
    store.create(KEY, safetensors.torch.save(tensors))


def read(store: Store, identity: Identity, *, vocab_size: int) -> Codebook:
    """The cache's codebook; an empty one where its codes need none.

    Raises:
        UserError: it is missing, damaged, or not of this identity.
    """
    if not is_needed(identity):
        return Codebook()
    import safetensors.torch

    name = f"{store.url}/{KEY}"
    data = _data(store)
    try:
        tensors = safetensors.torch.load(data)
        labels, hidden = _codes(tensors, identity, vocab_size)
    except UserError as error:
        raise UserError(f"{name} is refused: {error}") from None
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} is damaged: {reason}") from None
    return Codebook(labels=labels, hidden=hidden, sha256=documents.sha256(data))


def _codes(
    tensors: "dict[str, torch.Tensor]", identity: Identity, vocab_size: int
) -> "tuple[LabelCode | None, dict[int, HiddenCode]]":
    from teacher_cache.targets.hidden_code import HiddenCode
    from teacher_cache.targets.label_code import LabelCode

    labels = None
    if identity.soft_labels.code == "packed":
        labels = LabelCode.from_tensors(
            {name: value.numpy() for name, value in _below(tensors, "labels.").items()},
            top_k=identity.soft_labels.top_k,
            temperatures=identity.soft_labels.temperatures,
            vocab_size=vocab_size,
        )
    coded_layers = identity.hidden.stored_layers if identity.hidden.code == "transform" else ()
    hidden = {layer: HiddenCode.from_tensors(_below(tensors, f"hidden.{layer}.")) for layer in coded_layers}
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


def _below(tensors: "dict[str, torch.Tensor]", prefix: str) -> "dict[str, torch.Tensor]":
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
