"""What the parts of a rehearsed cache weigh, and what that makes a kept position, a token, a block and a unit."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from teacher_cache.format import codebook, manifest, sequences, teacher_files, token_counts
from teacher_cache.format import spec as spec_file
from teacher_cache.format.coder import Coder
from teacher_cache.format.manifest import Digests, Shard
from teacher_cache.format.sequences import Sequences
from teacher_cache.format.shard import encode_unit
from teacher_cache.format.shard_columns import BLOCK_SEQUENCES
from teacher_cache.format.shard_list import Shards, columns_of
from teacher_cache.format.sizes import part_sizes
from teacher_cache.format.spec import Identity
from teacher_cache.plan.sizes import FileRates, Rates
from teacher_cache.storage.store import Store
from teacher_cache.teacher import LoadedTeacher

MANIFEST_UNITS, NO_VIEW = 1024, 90_000
"""Of a made-up manifest that is weighed."""
NO_DIGEST = "0" * 64
"""Stands where a build writes a digest: plans read neither all of a corpus nor save a teacher."""


def weigh(
    store: Store,
    loaded: LoadedTeacher,
    identity: Identity,
    corpus: Sequences,
    shards: Sequence[Shard],
    coder: Coder,
    *,
    num_sources: int,
) -> Rates:
    """Of what lies in the store, and of commits and a manifest, which it adds; the teacher's weights are reckoned.

    `num_sources` is the number of corpus files, or slices of them, that were tokenised.
    """
    for shard in shards:
        manifest.commit(store, 0, shard, identity.fingerprint)
    one, many = (_manifest_bytes(store, shards[0], num_units, identity) for num_units in (1, MANIFEST_UNITS))
    manifest_unit = (many - one) / (MANIFEST_UNITS - 1)
    labels, hidden = _file_rates(store, shards, encode_unit([], identity, coder, view=0, unit=0))
    sequence_parts = sum(part.ref.num_bytes for part in corpus.parts)
    sequences_manifest, counts_bytes = _bytes_at(store, sequences.MANIFEST_KEY), _bytes_at(store, token_counts.KEY)
    sequence_commits = _bytes_at(store, "sequences") - sequence_parts - sequences_manifest - counts_bytes
    teacher_refs = teacher_files.listed(store)
    return Rates(
        labels=labels,
        hidden=hidden,
        sequences_token=sequence_parts / corpus.num_tokens,
        sequences_file=sequence_commits / num_sources,
        sequences_manifest=sequences_manifest,
        token_counts=counts_bytes,
        codebook=_bytes_at(store, codebook.KEY),
        teacher=_bytes_at(store, "teacher") + weights_bytes(loaded),
        num_teacher_objects=len(teacher_refs) + 2,  # weights and manifest
        spec=_bytes_at(store, spec_file.KEY),
        commit=_bytes_at(store, manifest.commits_folder(0)) / len(shards),
        manifest=one - manifest_unit,
        manifest_unit=manifest_unit,
    )


def _file_rates(
    store: Store, shards: Sequence[Shard], empty: tuple[bytes, bytes | None]
) -> tuple[FileRates, FileRates | None]:
    """Of labels and of hidden objects; `empty` are those of a unit without sequences."""
    parts = [part_sizes(store, shard) for shard in shards]
    soft_labels, inputs, states = (sum(part[name] for part in parts) for name in ("soft_labels", "inputs", "hidden"))
    num_kept, num_tokens = sum(shard.num_kept for shard in shards), sum(shard.num_tokens for shard in shards)
    num_blocks = sum(-(-shard.num_sequences // BLOCK_SEQUENCES) for shard in shards)

    def of_block(num_bytes: int, content: int, unit: bytes) -> float:
        return (num_bytes - content - len(unit) * len(shards)) / num_blocks

    labels = FileRates(
        unit=len(empty[0]),
        block=of_block(sum(shard.labels.num_bytes for shard in shards), soft_labels + inputs, empty[0]),
        kept=soft_labels / max(num_kept, 1),
        token=inputs / num_tokens,
    )
    if empty[1] is None:
        return labels, None
    hidden_bytes = sum(shard.hidden.num_bytes for shard in shards if shard.hidden)
    block = of_block(hidden_bytes, states, empty[1])
    return labels, FileRates(unit=len(empty[1]), block=block, kept=states / max(num_kept, 1))


def _manifest_bytes(store: Store, like: Shard, num_units: int, identity: Identity) -> int:
    """Of the manifest of a view with so many units like one, but for their digests; the view is not one to come."""
    view, draw = NO_VIEW + num_units, np.random.default_rng(0)
    columns = {
        name: draw.integers(0, 256, (num_units, 32), dtype=np.uint8)
        if name.endswith("sha256")
        else (values[0] * draw.uniform(0.95, 1.05, num_units)).astype(np.int64)
        for name, values in columns_of(0, [like]).items()
    }
    digests = Digests(spec=NO_DIGEST, teacher=NO_DIGEST, sequences=NO_DIGEST, codebook=NO_DIGEST)
    shards = Shards(view=view, columns=columns)
    manifest.create(store, shards, generation=0, fingerprint=identity.fingerprint, digests=digests)
    return _bytes_at(store, manifest.manifest_key(view, 0))


def weights_bytes(loaded: LoadedTeacher) -> int:
    """Of model.safetensors: each tensor once, however many names it has, and the header that lists them."""
    distinct = {tensor.data_ptr(): (name, tensor) for name, tensor in loaded.model.state_dict().items()}
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in distinct.values())
    listed = {
        name: {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [size, size]}
        for name, tensor in distinct.values()
    }
    return size + len(json.dumps(listed, separators=(",", ":")))


def _bytes_at(store: Store, key: str) -> int:
    """Bytes of the object at a key, or of those below it; 0 where there is none."""
    path = Path(store.path(key))
    files = [path] if path.is_file() else [below for below in path.rglob("*") if below.is_file()]
    return sum(file.stat().st_size for file in files)
