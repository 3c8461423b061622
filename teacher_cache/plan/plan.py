"""What a cache will cost: corpus, teacher and codes tried on a sample, and the rest by arithmetic."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from teacher_cache.config import CacheSpec
from teacher_cache.errors import UserError
from teacher_cache.pipeline.declare import load_teacher
from teacher_cache.pipeline.executors import cpus_each
from teacher_cache.plan.advice import Advice, advise
from teacher_cache.plan.costs import (
    BuildPrice,
    StudentEpoch,
    Times,
    Work,
    build_price,
    student_epoch,
    wall_s,
    work,
)
from teacher_cache.plan.prices import Prices
from teacher_cache.plan.rehearsal import Rehearsal, rehearse
from teacher_cache.plan.sizes import Counts, Sizes, num_objects, reading, sizes
from teacher_cache.plan.survey import CorpusFigures, survey


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All figures are of the whole build, over all views, where nothing else is said."""

    cache: str
    corpus: CorpusFigures
    num_views: int
    num_units: int
    """Of a view."""
    num_positions: int
    num_labels: int
    num_kept: int
    padding_share: float
    """Of what the teacher computes; longer micro-batches (`execution.batch_tokens`) and unlike sequences have more."""
    sizes: Sizes
    num_bytes: int
    num_objects: int
    bytes_per_token: float
    """Of shards, per corpus token and view."""
    bytes_per_kept_position: float
    """Of shards."""
    device: str
    """On which times were measured."""
    num_workers: int
    """The most that the configuration asks for."""
    tokens_per_s: float
    """Of one worker, encoding included."""
    is_speed_given: bool
    """It was not measured here."""
    work: Work
    build_s: float
    """Of devices: `work`'s seconds together."""
    wall_s: float
    student_start_bytes: int
    """Teacher and codebook, which a student reads once."""
    student_epochs: tuple[StudentEpoch, ...]
    build_price: BuildPrice | None
    advice: tuple[Advice, ...]
    num_sample_tokens: int
    """About which the teacher was asked; beside the codebook's sample."""
    num_sample_kept: int


def plan(
    spec: CacheSpec,
    *,
    prices: Prices | None = None,
    teacher_tokens_per_s: int | None = None,
    num_tokens: int | None = None,
    progress: bool = True,
) -> Plan:
    """Reads corpus and teacher, and writes nothing but a temporary folder.

    Args:
        teacher_tokens_per_s: of one worker, encoding included, as measured elsewhere; None: as it is here.
        num_tokens: of the corpus that the one named is a sample of; None: it stands for itself.

    Raises:
        UserError: what a build would refuse.
    """
    for name, value in (("--teacher-tokens-per-s", teacher_tokens_per_s), ("--tokens", num_tokens)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}, it must be at least 1")
    start = time.perf_counter()
    loaded = load_teacher(spec)
    load_s = time.perf_counter() - start
    found = survey(spec.corpus, loaded.tokenizer, progress=progress)
    if num_tokens is not None:
        found = found.standing_for(num_tokens)
    with tempfile.TemporaryDirectory() as folder:
        tried = rehearse(spec, loaded, found, Path(folder), load_s=load_s, progress=progress)
    if teacher_tokens_per_s is not None:
        tried = replace(tried, times=at_speed(tried.counts, tried.times, teacher_tokens_per_s))
    return _figures(
        spec,
        found.figures,
        tried,
        prices,
        hidden_size=loaded.model.config.hidden_size,
        has_last_states=bool({-1, loaded.model.config.num_hidden_layers} & set(spec.hidden.stored_layers)),
        is_speed_given=teacher_tokens_per_s is not None,
    )


def _figures(
    spec: CacheSpec,
    corpus: CorpusFigures,
    tried: Rehearsal,
    prices: Prices | None,
    *,
    hidden_size: int,
    has_last_states: bool,
    is_speed_given: bool,
) -> Plan:
    counts, rates, times = tried.counts, tried.rates, tried.times
    done, parts = work(counts, times), sizes(counts, rates)
    num_kept, num_workers = round(counts.num_views * counts.num_kept), spec.execution.max_workers
    objects = num_objects(counts, rates)
    price = build_price(done, num_bytes=parts.total, num_objects=objects, prices=prices) if prices else None
    whole, labels = (reading(counts, rates, with_hidden=with_hidden) for with_hidden in (True, False))
    return Plan(
        cache=spec.cache,
        corpus=corpus,
        num_views=counts.num_views,
        num_units=counts.num_units,
        num_positions=counts.num_views * counts.num_tokens,
        num_labels=round(counts.num_views * counts.num_labels),
        num_kept=num_kept,
        padding_share=1 - counts.num_tokens / counts.num_padded_tokens,
        sizes=parts,
        num_bytes=parts.total,
        num_objects=objects,
        bytes_per_token=parts.shards / (counts.num_views * counts.num_tokens),
        bytes_per_kept_position=parts.shards / max(num_kept, 1),
        device=tried.device,
        num_workers=num_workers,
        tokens_per_s=tokens_per_s_of(counts, times),
        is_speed_given=is_speed_given,
        work=done,
        build_s=done.build_s,
        wall_s=wall_s(counts, times, num_workers=num_workers, cpus_per_worker=cpus_each(spec.execution)),
        student_start_bytes=parts.teacher + parts.codebook,
        student_epochs=(
            *([student_epoch("replay", done, whole, build=price, prices=prices)] if has_last_states else []),
            student_epoch("bucket", done, labels, build=price, prices=prices),
        ),
        build_price=price,
        advice=advise(spec, counts, rates, times, hidden_size=hidden_size, num_workers=num_workers),
        num_sample_tokens=tried.num_sample_tokens,
        num_sample_kept=tried.num_sample_kept,
    )


def at_speed(counts: Counts, times: Times, tokens_per_s: float) -> Times:
    """The times of a device on which one worker does so many tokens a second; start and tokenising stay as they are."""
    share = tokens_per_s_of(counts, times) / tokens_per_s
    return replace(
        times,
        padded_token=times.padded_token * share,
        encoded=times.encoded * share,
        head=times.head * share,
        codebook=times.codebook * share,
    )


def tokens_per_s_of(counts: Counts, times: Times) -> float:
    """Of one worker, encoding included; padding is no token."""
    done = work(counts, times)
    return counts.num_views * counts.num_tokens / (done.teacher_s + done.encode_s)
