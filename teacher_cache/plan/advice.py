"""Which setting to turn, each with what it does by the same arithmetic as the plan itself. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from teacher_cache.config import MAX_UNIT_SEQUENCES, CacheSpec
from teacher_cache.format.spec import QUALITY_COSINES
from teacher_cache.plan.costs import Times, work
from teacher_cache.plan.sizes import Counts, Rates, num_objects, sizes

FEW_BYTES, MANY_UNITS = 4 * 2**20, 240
"""Shards so small, and so many, that requests cost more than they must."""
UNITS_A_WORKER = 4
"""So that the last units do not keep one worker busy and others waiting."""
SEQUENCE_ENDS = 2
"""[CLS] and [SEP]."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One other setting, all else as planned."""

    setting: str
    num_bytes: int
    """Of the whole cache then."""
    build_s: float
    """Of devices then."""
    num_objects: int
    meaning: str
    """What is lost or gained beside these."""


@dataclass(frozen=True, kw_only=True)
class _Change:
    setting: str
    meaning: str
    counts: Counts
    rates: Rates


def advise(
    spec: CacheSpec, counts: Counts, rates: Rates, times: Times, *, hidden_size: int, num_workers: int
) -> tuple[Advice, ...]:
    """The settings that could be turned; those that change next to nothing are left out."""
    changes = [*_less_kept(spec, counts, rates), *_less_said(spec, counts, rates, hidden_size)]
    changes += [*_fewer_sequences(spec, counts, rates), *_other_units(counts, rates, num_workers)]
    return tuple(
        Advice(
            setting=change.setting,
            num_bytes=sizes(change.counts, change.rates).total,
            build_s=work(change.counts, times).build_s,
            num_objects=num_objects(change.counts, change.rates),
            meaning=change.meaning,
        )
        for change in changes
    )


def _less_kept(spec: CacheSpec, counts: Counts, rates: Rates) -> Iterator[_Change]:
    if spec.keep.unmasked > 0 and spec.keep.masked > 0:
        yield _Change(
            setting="keep.unmasked=0",
            meaning="soft-label and cosine losses at masked positions only",
            counts=replace(counts, num_kept=counts.num_labels * spec.keep.masked),
            rates=rates,
        )
    if counts.num_views > 1:
        yield _Change(
            setting=f"views={counts.num_views - 1}",
            meaning="student epochs repeat masks earlier; `teacher-cache extend` adds views later",
            counts=replace(counts, num_views=counts.num_views - 1),
            rates=rates,
        )


def _less_said(spec: CacheSpec, counts: Counts, rates: Rates, hidden_size: int) -> Iterator[_Change]:
    if rates.hidden:
        saved = lower_quality(spec.hidden.quality) if spec.hidden.code == "transform" else None
        if saved:
            name, bits = saved
            num_bytes = bits / 8 * hidden_size * len(spec.hidden.stored_layers)
            cosines = f"mean cosine {QUALITY_COSINES[name]} instead of {QUALITY_COSINES[spec.hidden.quality]}"
            yield _Change(
                setting=f"hidden.quality={name}",
                meaning=f"{cosines}; by 6.02 dB a bit",
                counts=counts,
                rates=replace(rates, hidden=replace(rates.hidden, kept=max(0.0, rates.hidden.kept - num_bytes))),
            )
        yield _Change(
            setting="hidden.code=none",
            meaning="students have no `replay` and no cosine loss",
            counts=counts,
            rates=replace(rates, hidden=None),
        )
    if (top_k := spec.soft_labels.top_k) > 1:
        yield _Change(
            setting=f"soft_labels.top_k={top_k // 2}",
            meaning="if soft labels are in proportion to it",
            counts=counts,
            rates=replace(rates, labels=replace(rates.labels, kept=rates.labels.kept * (top_k // 2) / top_k)),
        )


def lower_quality(name: str) -> tuple[str, float] | None:
    """The next lower quality of hidden states, and the bits a component that it saves; None for the lowest.

    Each bit a component quarters the squared error at high resolution (Gray and Neuhoff 1998, section III.B), and
    1 - cosine is in proportion to it. Measured differences agree within 3 % (`infra/bench/RESULTS.md`).
    """
    names = list(QUALITY_COSINES)
    place = names.index(name)
    if place == 0:
        return None
    lower = names[place - 1]
    return lower, math.log2((1 - QUALITY_COSINES[lower]) / (1 - QUALITY_COSINES[name])) / 2


def _fewer_sequences(spec: CacheSpec, counts: Counts, rates: Rates) -> Iterator[_Change]:
    """Packed sequences: as many words, fewer ends and no padding but in the last."""
    words = counts.num_tokens - SEQUENCE_ENDS * counts.num_sequences
    num_sequences = -(-words // (spec.corpus.sequence_length - SEQUENCE_ENDS))
    num_tokens = words + SEQUENCE_ENDS * num_sequences
    if spec.corpus.packing == "documents" and num_tokens < 0.95 * counts.num_padded_tokens:
        share = num_tokens / counts.num_tokens
        yield _Change(
            setting="corpus.packing=full",
            meaning="sequences hold several documents",
            counts=replace(
                counts,
                num_sequences=num_sequences,
                num_tokens=num_tokens,
                num_padded_tokens=num_tokens,
                num_labels=counts.num_labels * share,
                num_kept=counts.num_kept * share,
            ),
            rates=rates,
        )


def _other_units(counts: Counts, rates: Rates, num_workers: int) -> Iterator[_Change]:
    num_units = counts.num_views * counts.num_units
    shard_bytes = sizes(counts, rates).shards / num_units
    if num_units < num_workers:
        smaller = max(1, counts.num_views * counts.num_sequences // (UNITS_A_WORKER * num_workers))
        meaning = f"{num_units} units leave {num_workers - num_units} of {num_workers} workers idle"
        yield _Change(
            setting=f"unit_sequences={smaller}",
            meaning=meaning,
            counts=replace(counts, unit_sequences=smaller),
            rates=rates,
        )
    elif (
        shard_bytes < FEW_BYTES
        and counts.num_units > MANY_UNITS
        and (larger := 4 * counts.unit_sequences) <= MAX_UNIT_SEQUENCES
    ):
        yield _Change(
            setting=f"unit_sequences={larger}",
            meaning="fewer requests; a unit's states wait in four times the memory",
            counts=replace(counts, unit_sequences=larger),
            rates=rates,
        )
