"""Time and money of a cache, and after how many students it pays. Pure arithmetic.

Two ways to teach a student for an epoch over the corpus:

- *online*: the teacher is in memory. An epoch costs its forward pass: the encoder over all positions, padding included,
  and the head over all positions, since the published losses are over all of them.
- *from the cache*: the build is paid once, and with it the codebook; then an epoch costs what is read, and on `replay`
  the head over kept positions, which rebuilds the teacher's rows.

So a cache pays after E student epochs, build + E * cached = E * online, E = build / (online - cached), and never where
reading costs more than the teacher. What the student itself costs is taken to be equal on both sides; in truth one that
learns from a cache computes its losses at kept positions only, and is quicker (`infra/bench/online.py`).
"""

from dataclasses import dataclass
from typing import Literal

from teacher_cache.plan.prices import Prices
from teacher_cache.plan.sizes import Counts, Reading

HOUR_S = 3600.0
GB = 10**9
STORED_MONTHS = 1
"""Of storage that the build's price includes where it is held against a teacher in memory."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """What one worker takes; seconds."""

    padded_token: float
    """The teacher's forward pass, a token with padding: encoder, and head at kept positions."""
    encoded: float
    """Encoding a kept position."""
    head: float
    """The teacher's output head over one position."""
    codebook: float
    """Asking the sample and solving its statistics, by one worker."""
    start: float
    """Loading the teacher, by each worker."""
    tokenise: float
    """All files, in one process."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the devices do, in seconds of one worker."""

    teacher_s: float
    encode_s: float
    codebook_s: float
    online_epoch_s: float
    """A student epoch's teacher in memory."""
    replay_epoch_s: float
    """A student epoch's rows rebuilt from the cache."""

    @property
    def build_s(self) -> float:
        return self.teacher_s + self.encode_s + self.codebook_s


def work(counts: Counts, times: Times) -> Work:
    """Of all views, and of a student epoch with either way."""
    forward_s = counts.num_padded_tokens * times.padded_token
    return Work(
        teacher_s=counts.num_views * forward_s,
        encode_s=counts.num_views * counts.num_kept * times.encoded,
        codebook_s=times.codebook,
        online_epoch_s=forward_s + (counts.num_tokens - counts.num_kept) * times.head,
        replay_epoch_s=counts.num_kept * times.head,
    )


def wall_s(counts: Counts, times: Times, *, num_workers: int, cpus_per_worker: int) -> float:
    """From start to end: tokenising, codebook, and the units of all views, in whole units a worker.

    Workers load their teacher for the codebook, and anew for the views. Files are tokenised side by side, as many as
    the workers have CPUs. A worker on Ray asks about one unit while it encodes and uploads another; what it gains by
    that is left out.
    """
    at_once = max(1, min(counts.num_files, num_workers * cpus_per_worker))
    done = work(counts, times)
    num_units = counts.num_views * counts.num_units
    views_s = times.start + -(-num_units // num_workers) * (done.teacher_s + done.encode_s) / num_units
    codebook_s = times.start + times.codebook if times.codebook else 0.0
    return times.tokenise / at_once + times.start + codebook_s + views_s


def pays_after(*, build: float, online_epoch: float, cached_epoch: float) -> float | None:
    """Student epochs after which a cache is as cheap as a teacher in memory, in any one unit of cost; None: never."""
    saved = online_epoch - cached_epoch
    return build / saved if saved > 0 else None


@dataclass(frozen=True, kw_only=True)
class BuildPrice:
    """All in `currency`."""

    currency: str
    devices: float
    puts: float
    storage_month: float
    total: float
    """With `STORED_MONTHS` of storage."""


def build_price(done: Work, *, num_bytes: int, num_objects: int, prices: Prices) -> BuildPrice:
    """Of a whole cache."""
    devices = done.build_s / HOUR_S * prices.device_hour
    puts = num_objects / 1000 * prices.puts_1000
    month = num_bytes / GB * prices.storage_gb_month
    total = devices + puts + STORED_MONTHS * month
    return BuildPrice(currency=prices.currency, devices=devices, puts=puts, storage_month=month, total=total)


@dataclass(frozen=True, kw_only=True)
class StudentEpoch:
    """An epoch over the corpus, by one of the two ways to use a cache, beside a teacher in memory."""

    way: Literal["replay", "bucket"]
    """`bucket` here is without a cosine loss, so that no hidden states are read."""
    num_bytes: int
    """That are read from the store."""
    num_gets: int
    device_s: float
    """For rebuilding rows."""
    price: float | None
    """Of these, in the currency; None without prices."""
    online_price: float | None
    """Of a teacher in memory."""
    pays_after_epochs: float | None
    """In money where there are prices, otherwise in devices' time; None: never."""


def student_epoch(
    way: Literal["replay", "bucket"], done: Work, read: Reading, *, build: BuildPrice | None, prices: Prices | None
) -> StudentEpoch:
    """What an epoch takes, and after how many a cache pays; `build` is its price, if prices are given."""
    device_s = done.replay_epoch_s if way == "replay" else 0.0
    price = online = None
    pays = pays_after(build=done.build_s, online_epoch=done.online_epoch_s, cached_epoch=device_s)
    if build and prices:
        requests = read.num_gets / 1000 * prices.gets_1000 + read.num_bytes / GB * prices.egress_gb
        price = requests + device_s / HOUR_S * prices.device_hour
        online = done.online_epoch_s / HOUR_S * prices.device_hour
        pays = pays_after(build=build.total, online_epoch=online, cached_epoch=price)
    return StudentEpoch(
        way=way,
        num_bytes=read.num_bytes,
        num_gets=read.num_gets,
        device_s=device_s,
        price=price,
        online_price=online,
        pays_after_epochs=pays,
    )
