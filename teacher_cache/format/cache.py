"""A cache as its readers see it: `open_cache(url)`.

Legend: K kept positions of a sequence, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.format import manifest, parquet, spec, teacher_files
from teacher_cache.format.manifest import Manifest, Shard
from teacher_cache.format.refusal import refusing
from teacher_cache.format.row import Row
from teacher_cache.format.shard_list import Shards
from teacher_cache.format.spec import Identity
from teacher_cache.format.teacher_files import SavedTeacher
from teacher_cache.storage.store import Store

if TYPE_CHECKING:  # torch is loaded only by who decodes
    from teacher_cache.format.coder import Coder
    from teacher_cache.format.shard import ShardReader
    from teacher_cache.targets.heads import OutputHead


def open_cache(url: str, *, disk_cache: str | Path | None = None) -> "Cache":
    """Opens a cache, whole or still being built, at a folder or URL.

    Raises:
        UserError: there is none, it is damaged, or the store cannot be reached.
    """
    return Cache(Store(url, disk_cache=disk_cache))


class Cache:
    """A cache, opened for reading; each object is checked against its digest when first read."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.url = store.url
        self.spec, self.notes = spec.read(store)
        """What decided the content, and notes (paths, names) that did not."""
        self.fingerprint: str = self.spec.fingerprint
        self._manifests: dict[int, Manifest] = {}

    @property
    def num_views(self) -> int:
        """Sealed views, counted from view 0 without a gap."""
        view = 0
        while view in self._manifests or manifest.newest_generation(self.store, view) is not None:
            view += 1
        return view

    def manifest(self, view: int) -> Manifest:
        """The sealed manifest of a view; the generation first read is the one that this object keeps.

        Raises:
            UserError: the view is not sealed.
        """
        if view not in self._manifests:
            read = manifest.read(self.store, view, fingerprint=self.fingerprint)
            with refusing(f"{self.url}: the manifest of view {view}", parquet.LIST_REMEDY):
                _check_counts(read.shards, self.spec)
            self._manifests[view] = read
        return self._manifests[view]

    def open_shard(
        self, shard: Shard, *, layers: Sequence[int] | None = None, as_levels: bool = False, source: int = 0
    ) -> "ShardReader":
        """A reader of one shard; `layers` are the hidden states wanted, None for all, () for none.

        `as_levels` and `source` as in `Row`.
        """
        from teacher_cache.format.shard import ShardReader

        wanted = self.spec.hidden.stored_layers if layers is None else tuple(layers)
        hidden = shard.hidden.fetch(self.store) if shard.hidden and wanted else None
        keys = shard.labels.key, shard.hidden.key if shard.hidden else ""
        reader = ShardReader(
            shard.labels.fetch(self.store),
            hidden,
            self.spec,
            self.coder,
            layers=wanted,
            as_levels=as_levels,
            source=source,
            names=(f"{self.url}/{keys[0]}", f"{self.url}/{keys[1]}"),
            remedy=f"run `teacher-cache verify {self.url}`",
        )
        if reader.num_sequences != shard.num_sequences:
            raise UserError(
                f"{self.url}/{keys[0]} holds {reader.num_sequences:,} sequences, its manifest says "
                f"{shard.num_sequences:,}; run `teacher-cache verify {self.url}`"
            )
        return reader

    def rows(self, view: int = 0, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Decoded rows of sequences `start` to `stop` (excluded; None: all), in the order of their ids."""
        sealed = self.manifest(view)
        stops = np.cumsum(sealed.sizes)
        last = sealed.num_sequences if stop is None else stop
        firsts = stops - sealed.sizes
        for unit in range(int(np.searchsorted(stops, start, "right")), int(np.searchsorted(firsts, last))):
            rows = self.open_shard(sealed.shards[unit]).rows()
            yield from (row for row in rows if start <= row.sequence_id < last)

    def replay(self, row: Row, temperature: float) -> np.ndarray:
        """The teacher's whole rows at a temperature: probabilities `[K, V]`, float32.

        Rebuilt from the last hidden states through the teacher's head, with the stored logits put in and, at a
        stored temperature, the rest scaled to its exact mass.

        Raises:
            UserError: the cache stores no last hidden states, or `temperature` is not above 0.
        """
        import torch

        from teacher_cache.targets.soft_labels import SoftLabels, replay_log_probabilities

        if temperature <= 0:
            raise UserError(f"temperature must be above 0, it is {temperature}")
        last = self.last_hidden_layer
        if last is None:
            raise UserError(f"{self.url} stores no last hidden states: replay needs a cache with hidden.layers: [-1]")
        with torch.inference_mode():
            hidden = torch.from_numpy(row.hidden[last].astype(np.float32))
            logits = replay_log_probabilities(hidden, self.head, SoftLabels.of_rows([row]), temperature)
            return np.asarray(logits.exp().numpy())

    @cached_property
    def coder(self) -> "Coder":
        """What decodes this cache's targets, on CPU.

        Raises:
            UserError: the codebook is missing or damaged.
        """
        from teacher_cache.format import codebook
        from teacher_cache.format.coder import Coder

        if not codebook.is_needed(self.spec):
            return Coder()
        codes = codebook.read(self.store, self.spec, vocab_size=self.teacher.vocab_size)
        return Coder(codebook=codes, head=self.head if codes.hidden else None)

    @cached_property
    def last_hidden_layer(self) -> int | None:
        """The name under which the states that feed the output head are stored; None if they are not."""
        last = {-1, self.teacher.num_layers}
        return next((layer for layer in self.spec.hidden.stored_layers if layer in last), None)

    @cached_property
    def teacher(self) -> SavedTeacher:
        """The teacher's folder: config, tokenizer and weights, of which no more is read than is asked for."""
        return SavedTeacher(teacher_files.fetch(self.store))

    @cached_property
    def head(self) -> "OutputHead":
        """The teacher's output head, float32 on CPU; no other part of the teacher is loaded."""
        return self.teacher.read_head()


def _check_counts(shards: Shards, identity: Identity) -> None:
    """Whether the shards of a view can be the spec's: readers plan by their counts before they see one.

    Raises:
        UserError: names the first that cannot.
    """
    counts = shards.columns
    limits = {
        "num_sequences": (1, identity.unit_sequences),
        "num_tokens": (counts["num_sequences"], counts["num_sequences"] * identity.corpus.sequence_length),
        "num_labels": (0, counts["num_tokens"]),
        "num_kept": (0, counts["num_tokens"]),
    }
    for name, (least, most) in limits.items():
        bad = np.flatnonzero((counts[name] < least) | (counts[name] > most))
        if len(bad):
            raise UserError(f"unit {bad[0]} has {name} {counts[name][bad[0]]:,}, which the spec does not allow")
    if shards.has_hidden != bool(identity.hidden.stored_layers):
        raise UserError(f"it lists hidden states: {shards.has_hidden}, the spec's layers: {identity.hidden.layers}")
