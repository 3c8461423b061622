"""An entropy coder for many lanes at once: range asymmetric numeral systems with static integer tables.

rANS (Duda 2013, arXiv 1311.2540, section 3; interleaved lanes as in Giesen 2014, arXiv 1402.3392): 32-bit states,
16-bit words, probabilities in units of 2^-12. Every lane does the same step at the same time, and all lanes share one
stream of words. What has many symbols is coded by compiled loops, made of the small functions here: they hold no
interpreter lock, as they run beside a teacher or a student. Integers only: what one machine wrote, any other reads.

Legend: N table, A symbols of a table, L lanes, W words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np

from teacher_cache.errors import UserError

PRECISION = 12
TOTAL = 1 << PRECISION
"""What the frequencies of a table add up to."""
MAX_SYMBOLS = 256
LOWEST = np.uint32(1 << 16)
"""Every state between two steps is at least this and below 2^32."""


@dataclass(frozen=True)
class Tables:
    """Static models of symbols."""

    frequencies: np.ndarray
    """uint16 `[N, A]`; each row adds up to `TOTAL`; 0 for a symbol that cannot be coded."""

    def __post_init__(self) -> None:
        sums = self.frequencies.sum(axis=1, dtype=np.int64)
        if self.frequencies.shape[1] > MAX_SYMBOLS or (sums != TOTAL).any() or (self.frequencies == TOTAL).any():
            raise UserError(
                f"frequencies of an entropy coder must add up to {TOTAL}, over at most {MAX_SYMBOLS} symbols"
            )

    @cached_property
    def starts(self) -> np.ndarray:
        """uint32 `[N, A]`: sums of the frequencies before each symbol."""
        sums = np.cumsum(self.frequencies, axis=1, dtype=np.uint32)
        return np.asarray(sums - self.frequencies, dtype=np.uint32)

    @cached_property
    def slots(self) -> np.ndarray:
        """uint32 `[N * TOTAL]`: for each slot, symbol in bits 24…, frequency in bits 12…, place in the symbol below."""
        symbols = np.concatenate([np.repeat(np.arange(row.size), row) for row in self.frequencies])
        tables = np.repeat(np.arange(len(self.frequencies)), TOTAL)
        place = np.tile(np.arange(TOTAL), len(self.frequencies)) - self.starts[tables, symbols]
        packed = symbols << 2 * PRECISION | self.frequencies[tables, symbols].astype(np.int64) << PRECISION | place
        return packed.astype(np.uint32)

    @cached_property
    def entries(self) -> np.ndarray:
        """uint32 `[N, A]`: for each symbol, frequency in bits 16…, start below."""
        return np.asarray(self.frequencies.astype(np.uint32) << 16 | self.starts)

    @cached_property
    def bits(self) -> np.ndarray:
        """float32 `[N, A]`: what each symbol costs; infinite if it cannot be coded."""
        with np.errstate(divide="ignore"):
            return np.asarray(PRECISION - np.log2(self.frequencies.astype(np.float64)), dtype=np.float32)


def make_tables(counts: np.ndarray) -> Tables:
    """Tables from counts `[N, A]`: symbols that were counted get at least 1 / TOTAL, others nothing.

    A row with fewer than two symbols gets a second one, as no symbol may be certain.
    """
    counts = counts.astype(np.float64)
    lonely = (counts > 0).sum(axis=1) < 2
    counts[np.ix_(lonely, [0, 1])] = np.maximum(counts[np.ix_(lonely, [0, 1])], 1e-9)
    possible = counts > 0
    spare = TOTAL - possible.sum(axis=1, keepdims=True)
    exact = counts / counts.sum(axis=1, keepdims=True) * spare
    frequencies = np.floor(exact).astype(np.int64) + possible
    # What rounding down left over goes to the largest fractions.
    order = np.argsort(-(exact - np.floor(exact)), axis=1, kind="stable")
    left = TOTAL - frequencies.sum(axis=1, keepdims=True)
    np.put_along_axis(
        frequencies, order, np.take_along_axis(frequencies, order, 1) + (np.arange(counts.shape[1]) < left), 1
    )
    return Tables(frequencies.astype(np.uint16))


def encode(steps: Sequence[tuple[np.ndarray, np.ndarray]], tables: Tables) -> bytes:
    """Codes symbols, step after step; each step is (tables `[n]`, symbols `[n]`) for its first n lanes.

    Raises:
        ValueError: a symbol has frequency 0.
    """
    num_lanes = max((len(symbols) for _, symbols in steps), default=0)
    states = np.full(num_lanes, LOWEST, dtype=np.uint64)
    words: list[np.ndarray] = []
    for table, symbols in reversed(steps):
        frequencies = tables.frequencies[table, symbols].astype(np.uint64)
        if not frequencies.all():
            raise unknown_symbol()
        state = states[: len(symbols)]
        is_full = state >= frequencies << np.uint64(32 - PRECISION)
        words.append(state[is_full].astype("<u2"))
        state = np.where(is_full, state >> np.uint64(16), state)
        quotient, remainder = np.divmod(state, frequencies)
        states[: len(symbols)] = (quotient << np.uint64(PRECISION)) + remainder + tables.starts[table, symbols]
    return states.astype("<u4").tobytes() + b"".join(chunk.tobytes() for chunk in reversed(words))


# Compiled loops hand no arrays to each other: counting their references would cost more than a symbol.
@numba.njit(nogil=True, cache=True)
def slot(state: np.uint32, table: np.int64) -> np.int64:
    """Compiled: where in `Tables.slots` the next symbol of a lane in `state` stands."""
    return np.int64(table << PRECISION) + np.int64(state & np.uint32(TOTAL - 1))


@numba.njit(nogil=True, cache=True)
def symbol_of(entry: np.uint32) -> np.int64:
    """Compiled: the symbol of a slot."""
    return np.int64(entry >> np.uint32(2 * PRECISION))


@numba.njit(nogil=True, cache=True)
def without_symbol(state: np.uint32, entry: np.uint32) -> np.uint32:
    """Compiled: the state of a lane once its next symbol is taken; if below `LOWEST`, a word is to be put in."""
    frequency = entry >> np.uint32(PRECISION) & np.uint32(TOTAL - 1)
    return frequency * (state >> np.uint32(PRECISION)) + (entry & np.uint32(TOTAL - 1))


@numba.njit(nogil=True, cache=True)
def with_word(state: np.uint32, word: np.uint16) -> np.uint32:
    """Compiled: the state of a lane that took the next word."""
    return state << np.uint32(16) | np.uint32(word)


@numba.njit(nogil=True, cache=True)
def is_full(state: np.uint32, entry: np.uint32) -> np.bool:
    """Compiled: whether a lane must give a word away before it takes the symbol of an entry of `Tables.entries`."""
    return state >= entry >> np.uint32(16) << np.uint32(32 - PRECISION)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def with_symbol(state: np.uint32, entry: np.uint32) -> np.uint32:
    """Compiled: the state of a lane that took a symbol; its frequency must not be 0."""
    frequency = entry >> np.uint32(16)
    start = entry & np.uint32(0xFFFF)
    return (state // frequency << np.uint32(PRECISION)) + state % frequency + start


@numba.njit(nogil=True, cache=True)
def _step(
    states: np.ndarray, words: np.ndarray, num_read: int, slots: np.ndarray, tables: np.ndarray, symbols: np.ndarray
) -> int:
    for lane in range(len(tables)):
        entry = slots[slot(states[lane], tables[lane])]
        state = without_symbol(states[lane], entry)
        if state < LOWEST:
            if num_read == len(words):
                return num_read + 1
            state = with_word(state, words[num_read])
            num_read += 1
        states[lane], symbols[lane] = state, symbol_of(entry)
    return num_read


class Decoder:
    """Gives back what `encode` took, in the same order of steps.

    Raises:
        UserError: from any method, when the bytes end too early or too late.
    """

    def __init__(self, data: bytes, tables: Tables, *, num_lanes: int) -> None:
        if len(data) < 4 * num_lanes or len(data) % 2:
            raise damaged()
        self.states = np.frombuffer(data, "<u4", num_lanes).copy()
        self.words = np.frombuffer(data, "<u2", offset=4 * num_lanes)
        self.slots = tables.slots
        self._num_read = 0

    def step(self, tables: np.ndarray) -> np.ndarray:
        """The next symbol of each of the first n lanes, given their tables int64 `[n]`: int64 `[n]`."""
        symbols = np.empty(len(tables), np.int64)
        self.advance(_step(self.states, self.words, self._num_read, self.slots, tables, symbols))
        return symbols

    def advance(self, num_read: int) -> None:
        """Takes note of how many words are read; more than there are where there were too few."""
        if num_read > len(self.words):
            raise damaged()
        self._num_read = num_read

    def finish(self) -> None:
        """Checks that everything was read, and that it was what was written."""
        if self._num_read != len(self.words) or (self.states != LOWEST).any():
            raise damaged()


def unknown_symbol() -> ValueError:
    """What to raise when a symbol has frequency 0: a mistake of the caller."""
    return ValueError("a symbol that its table does not know")


def damaged() -> UserError:
    """What to raise when coded bytes are not what they should be."""
    return UserError("coded targets are damaged: their stream does not end where it should")


POSITIONS_PER_LANE = 4
"""More lanes decode faster, and cost about two bytes each."""


def num_lanes(num_positions: int) -> int:
    return -(-num_positions // POSITIONS_PER_LANE)


def turns(num_positions: int) -> Iterator[slice]:
    """Positions dealt into lanes: each slice gives one position to each of its first lanes."""
    size = max(1, num_lanes(num_positions))
    for start in range(0, num_positions, size):
        yield slice(start, min(start + size, num_positions))
