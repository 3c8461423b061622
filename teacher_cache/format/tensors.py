"""Tensors in safetensors that carry their own digest: a file that nothing else vouches for yet."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from teacher_cache.errors import UserError
from teacher_cache.format import documents

DIGEST = "tensors_sha256"
"""Its name among the file's metadata. Files without one, as other programs write them, are taken as they are."""


def save(tensors: Mapping[str, np.ndarray]) -> bytes:
    return save_tensors(dict(tensors), metadata={DIGEST: digest_of(tensors)})


def load(data: bytes) -> dict[str, np.ndarray]:
    """The tensors by name.

    Raises:
        UserError: they are not those that the digest names.
        ValueError, SafetensorError: the bytes are no such file, or hold a type that NumPy has not.
    """
    try:
        tensors = load_tensors(data)
    except KeyError as error:
        raise ValueError(f"it holds a tensor of type {error}") from None
    header, found = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]), digest_of(tensors)
    if header.get("__metadata__", {}).get(DIGEST, found) != found:
        raise UserError("its tensors do not match their own SHA-256")
    return tensors


def digest_of(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    ordered = sorted(tensors.items())
    described = [[name, str(value.dtype), list(value.shape)] for name, value in ordered]
    found = hashlib.sha256(documents.canonical(described))
    for _, value in ordered:
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()
