"""Whole numbers of any size for the entropy coder: a bucket, which is modelled, and low bits, which are not.

Numbers below 16 have buckets of their own, then come 8 to an octave. What lies beyond all that a sample held is
escaped: one symbol, and 31 bits.

Legend: n lanes of a step.
"""

from collections.abc import Sequence

import numpy as np

from teacher_cache.targets import entropy

MAX_NUMBER = 2**31 - 1
NUM_BUCKETS = 232
ESCAPE_BITS = 31


def octave(numbers: np.ndarray) -> np.ndarray:
    """Place of the highest bit that is set; 0 for 0."""
    return np.frexp(np.maximum(numbers, 1).astype(np.float64))[1].astype(np.int64) - 1


def half_octave(numbers: np.ndarray, largest: int) -> np.ndarray:
    """Classes of numbers for use as a context: 0, then two an octave, at most `largest`."""
    exponent = octave(numbers)
    half = np.where(exponent > 0, numbers >> np.maximum(exponent - 1, 0) & 1, 0)
    return np.minimum(np.where(numbers > 0, 1 + 2 * exponent + half, 0), largest)


def bucket_of(numbers: np.ndarray) -> np.ndarray:
    """The bucket of each number from 0 to `MAX_NUMBER`."""
    exponent = octave(numbers)
    return np.where(numbers < 16, numbers, 16 + (exponent - 4) * 8 + (numbers >> np.maximum(exponent - 3, 0) & 7))


_BUCKETS = np.arange(NUM_BUCKETS)
_LOW_BITS = np.where(_BUCKETS < 16, 0, (_BUCKETS - 16) // 8 + 1)
_FIRST = np.where(_BUCKETS < 16, _BUCKETS, (8 + _BUCKETS % 8) << _LOW_BITS)


class Writer:
    """Takes symbols and low bits, step after step, and gives their bytes."""

    def __init__(self, tables: entropy.Tables, limits: np.ndarray) -> None:
        self._tables, self._limits = tables, limits
        self._steps: list[tuple[np.ndarray, np.ndarray]] = []
        self._low: list[np.ndarray] = []
        self._num_bits: list[np.ndarray] = []

    def step(self, tables: np.ndarray, numbers: np.ndarray) -> None:
        """Codes a number `[n]` on each of the first n lanes, by its table `[n]`."""
        buckets, limits = bucket_of(numbers), self._limits[tables]
        is_escaped = buckets > limits
        self._steps.append((tables, np.where(is_escaped, limits + 1, buckets)))
        self._num_bits.append(np.where(is_escaped, ESCAPE_BITS, _LOW_BITS[buckets]))
        self._low.append(np.where(is_escaped, numbers, numbers - _FIRST[buckets]))

    def finish(self) -> bytes:
        """Number of bytes of low bits, low bits, and the entropy coder's stream."""
        low = _pack(self._low, self._num_bits)
        return np.array([len(low)], "<u4").tobytes() + low + entropy.encode(self._steps, self._tables)


class Reader:
    """Gives back what `Writer` took, in the same order of steps.

    Raises:
        UserError: from any method, when the bytes end too early or too late.
    """

    def __init__(self, data: bytes, tables: entropy.Tables, limits: np.ndarray, *, num_lanes: int) -> None:
        start = 4 + int(np.frombuffer(data, "<u4", 1)[0]) if len(data) >= 4 else 4
        if len(data) < start:
            raise entropy.damaged()
        # Eight bytes more, so that a window can start at the last one.
        self._bytes = np.frombuffer(data[4:start] + bytes(8), np.uint8).astype(np.int64)
        self._num_bits, self._next = 8 * (start - 4), 0
        self._decoder = entropy.Decoder(data[start:], tables, num_lanes=num_lanes)
        self._limits = limits

    def step(self, tables: np.ndarray) -> np.ndarray:
        """The next number of each of the first n lanes, given their tables `[n]`."""
        symbols = self._decoder.step(tables).astype(np.int64)
        is_escaped = symbols > self._limits[tables]
        buckets = np.where(is_escaped, 0, symbols)
        num_bits = np.where(is_escaped, ESCAPE_BITS, _LOW_BITS[buckets])
        return np.asarray(_FIRST[buckets] + self._low_bits(num_bits))

    def _low_bits(self, num_bits: np.ndarray) -> np.ndarray:
        stops = self._next + np.cumsum(num_bits)
        if len(stops) and stops[-1] > self._num_bits:
            raise entropy.damaged()
        starts = stops - num_bits
        self._next = int(stops[-1]) if len(stops) else self._next
        place = starts >> 3
        window = self._bytes[place] << 32
        for offset in range(1, 5):
            window |= self._bytes[place + offset] << 8 * (4 - offset)
        return np.asarray(window >> 40 - (starts & 7) - num_bits & (1 << num_bits) - 1)

    def finish(self) -> None:
        """Checks that everything was read."""
        self._decoder.finish()
        if (self._next + 7) // 8 * 8 != self._num_bits:
            raise entropy.damaged()


def _pack(low: Sequence[np.ndarray], num_bits: Sequence[np.ndarray]) -> bytes:
    """The low bits of all numbers, one after the other, the highest bit of each first."""
    if not low:
        return b""
    values, sizes = np.concatenate(low), np.concatenate(num_bits)
    owner = np.repeat(np.arange(len(values)), sizes)
    shift = np.cumsum(sizes)[owner] - 1 - np.arange(len(owner))
    return np.packbits((values[owner] >> shift & 1).astype(np.uint8)).tobytes()


def table_counts(tables: np.ndarray, numbers: np.ndarray, *, num_tables: int) -> np.ndarray:
    """How often each table codes each bucket, `[num_tables, NUM_BUCKETS]`."""
    counts = np.zeros((num_tables, NUM_BUCKETS))
    np.add.at(counts, (tables, bucket_of(numbers)), 1)
    return counts
