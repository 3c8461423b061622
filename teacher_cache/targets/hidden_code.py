"""The transform code of hidden states: predict, rotate, quantise, entropy-code.

As in JPEG, with statistics made once from a sample: a linear prediction from side information is subtracted, the
residual goes through a transform whose components are uncorrelated under a metric (what a deviation does to the
teacher's rows, and how long it is), a trellis quantises all components with one step, and rANS codes the levels with
one static table for each group of components of like variance, class of the position's scale, and quantiser.

Legend: K positions, d components (the hidden size), F features, G groups of components, A symbols, L lanes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numba
import numpy as np
import torch

from teacher_cache.errors import UserError
from teacher_cache.targets import entropy, trellis
from teacher_cache.targets.heads import OutputHead
from teacher_cache.targets.side_information import SideInformation, features

MAX_MAGNITUDE = 126
"""Of a level that the entropy coder knows; from each group's bound on, levels are escaped, never clipped."""
NUM_SYMBOLS = 2 * MAX_MAGNITUDE + 1
NUM_SCALES = 4
"""Classes of positions by the size of their residual: 2 bits that save about 16 (measured at d = 384)."""
MAX_GROUPS = 32
RATE_WEIGHT = 0.25
"""Lambda of the trellis, in squared half-steps a bit; 0.15 to 0.35 lie within 1 % of each other."""
MAX_VALUE = 2.0**16 - 8
"""In half-steps: levels are then below 2^15."""
CHUNK_POSITIONS = 1024
"""Positions coded at once: at d = 768 the trellis then holds about 60 MB."""


_KINDS = {
    "predictor": (torch.float32, 2),
    "forward": (torch.float32, 2),
    "inverse": (torch.float32, 2),
    "deviations": (torch.float32, 1),
    "scale_limits": (torch.float32, 1),
    "bounds": (torch.int64, 1),
    "frequencies": (torch.int32, 2),
}
"""Types of a code's tensors, and their numbers of dimensions."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Quantised residuals of K positions: what is stored, before entropy coding."""

    levels: np.ndarray
    """int16 `[K, d]`."""
    scales: np.ndarray
    """uint8 `[K]`: class of each position's scale; only the entropy coder needs it."""


@dataclass(frozen=True, kw_only=True)
class HiddenCode:
    """The statistics of one layer's code, float32 on CPU unless said otherwise."""

    predictor: torch.Tensor
    """`[F, d]`."""
    forward: torch.Tensor
    """`[d, d]`: residual → components in half-steps, the most variable first."""
    inverse: torch.Tensor
    """`[d, d]`: its inverse."""
    deviations: torch.Tensor
    """`[d]`: standard deviation of each component, in half-steps."""
    scale_limits: torch.Tensor
    """`[NUM_SCALES - 1]`: between the classes of mean relative magnitude."""
    bounds: torch.Tensor
    """int64 `[G]`: magnitude, even, from which on a group's levels are escaped."""
    frequencies: torch.Tensor
    """int32 `[G * NUM_SCALES * 2 + 1, A]`: the entropy coder's tables; the last is of the classes of scale."""

    def __post_init__(self) -> None:
        for name, (dtype, num_dimensions) in _KINDS.items():
            value = getattr(self, name)
            if value.dtype != dtype or value.ndim != num_dimensions:
                kind = f"{value.dtype}, {value.ndim} dimensions"
                raise UserError(f"codebook: {name} must be {dtype}, {num_dimensions} dimensions; it is {kind}")
        size, num_groups = self.hidden_size, len(self.bounds)
        shapes = {
            "predictor": (self.predictor.shape[0], size),
            "forward": (size, size),
            "inverse": (size, size),
            "deviations": (size,),
            "scale_limits": (NUM_SCALES - 1,),
            "bounds": (num_groups_of(size),),
            "frequencies": (num_groups * NUM_SCALES * 2 + 1, NUM_SYMBOLS),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape:
                raise UserError(f"codebook: {name} has shape {tuple(value.shape)}, it must be {shape}")
            if not value.isfinite().all():
                raise UserError(f"codebook: {name} is not finite")
        if ((self.bounds < 2) | (self.bounds > MAX_MAGNITUDE) | (self.bounds % 2 == 1)).any():
            raise UserError(f"codebook: bounds must be even numbers from 2 to {MAX_MAGNITUDE}")
        _ = self.tables  # checks them

    @property
    def hidden_size(self) -> int:
        return self.deviations.shape[0]

    @cached_property
    def tables(self) -> entropy.Tables:
        return entropy.Tables(self.frequencies.numpy().astype(np.uint16))

    @cached_property
    def groups(self) -> np.ndarray:
        """int64 `[d]`: the group of each component."""
        return groups_of(self.hidden_size)

    def to(self, device: torch.device | str) -> "HiddenCode":
        """With what encodes and decodes on another device; the entropy coder stays on the CPU."""
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        names = ("predictor", "forward", "inverse", "deviations", "scale_limits")
        return HiddenCode(**moved | {name: moved[name].to(device) for name in names})

    def predict(self, side: SideInformation, head: OutputHead) -> torch.Tensor:
        """`[K, d]`."""
        return features(side, head) @ self.predictor

    def encode(self, hidden: torch.Tensor, side: SideInformation, head: OutputHead) -> Levels:
        """Quantises hidden states `[K, d]` on their device.

        Raises:
            UserError: a state is not finite, or further from all that the statistics were made of than levels reach.
        """
        if not hidden.isfinite().all():
            raise UserError("hidden states are not finite (NaN or infinity); try teacher.dtype: float32")
        parts = [
            self._encode(hidden[start : start + CHUNK_POSITIONS], side[start : start + CHUNK_POSITIONS], head)
            for start in range(0, len(hidden), CHUNK_POSITIONS)
        ]
        if not parts:
            return Levels(levels=np.zeros((0, self.hidden_size), np.int16), scales=np.zeros(0, np.uint8))
        levels = torch.cat([levels for levels, _ in parts]).cpu().numpy()
        scales = torch.cat([scales for _, scales in parts]).cpu().numpy()
        return Levels(levels=levels.astype(np.int16), scales=scales.astype(np.uint8))

    def _encode(
        self, hidden: torch.Tensor, side: SideInformation, head: OutputHead
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = (hidden.float() - self.predict(side, head)) @ self.forward
        if not (values.abs() <= MAX_VALUE).all():
            raise UserError(
                "a hidden state lies far outside those that the codebook was made of; use hidden.code: float16"
            )
        scales = scale_classes(values, self.deviations, self.scale_limits)
        return quantise(values, scales, self.tables, self.bounds), scales

    def decode(self, levels: torch.Tensor, side: SideInformation, head: OutputHead) -> torch.Tensor:
        """Hidden states float32 `[K, d]` from whole levels `[K, d]`, on their device."""
        hidden = torch.empty(levels.shape, device=levels.device)
        for start in range(0, len(levels), CHUNK_POSITIONS):
            part = slice(start, start + CHUNK_POSITIONS)
            hidden[part] = torch.addmm(self.predict(side[part], head), trellis.dequantise(levels[part]), self.inverse)
        return hidden

    def compress(self, coded: Levels) -> bytes:
        """The bytes of K positions: number of escapes, escapes, and the entropy coder's stream."""
        bounds = self.bounds.numpy()[self.groups]
        beyond = np.abs(coded.levels) - bounds.astype(np.int16)
        escapes = (beyond[beyond >= 0] // 2).astype("<u2")
        states = np.full(entropy.num_lanes(len(beyond)), entropy.LOWEST)
        words = np.empty(beyond.size + len(beyond), np.uint16)  # one a symbol at most
        first = _encode_levels(coded.levels, coded.scales, self.groups, bounds, self.tables.entries, states, words)
        if first < 0:
            raise entropy.unknown_symbol()
        parts = (np.array([len(escapes)], "<u4"), escapes, states.astype("<u4"), words[first:].astype("<u2"))
        return b"".join(part.tobytes() for part in parts)

    def decompress(self, data: bytes, num_positions: int) -> np.ndarray:
        """Levels int16 `[K, d]` from their bytes.

        Raises:
            UserError: the bytes are not those of `num_positions` positions.
        """
        num_escapes = int(np.frombuffer(data, "<u4", 1)[0]) if len(data) >= 4 else 0
        start = 4 + 2 * num_escapes
        if len(data) < start:
            raise entropy.damaged()
        decoder = entropy.Decoder(data[start:], self.tables, num_lanes=entropy.num_lanes(num_positions))
        levels = np.empty((num_positions, self.hidden_size), np.int16)
        escapes = np.frombuffer(data, "<u2", num_escapes, offset=4)
        bounds = self.bounds.numpy()[self.groups]
        num_read, num_escaped = _decode_levels(
            decoder.states, decoder.words, decoder.slots, self.groups, bounds, escapes, levels
        )
        decoder.advance(num_read)
        decoder.finish()
        if num_escaped != num_escapes:
            raise entropy.damaged()
        return levels

    def tensors(self) -> dict[str, torch.Tensor]:
        """The statistics by name, for a file."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> "HiddenCode":
        """From what `tensors` gave.

        Raises:
            UserError: something is missing or not what it should be.
        """
        missing = {field.name for field in fields(cls)} - set(tensors)
        if missing:
            raise UserError(f"codebook: {', '.join(sorted(missing))} missing")
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})


@numba.njit(nogil=True, cache=True)
def _encode_levels(
    levels: np.ndarray,
    scales: np.ndarray,
    groups: np.ndarray,
    limits: np.ndarray,
    entries: np.ndarray,
    states: np.ndarray,
    words: np.ndarray,
) -> int:
    """Compiled: fills `words` from their end with levels `[K, d]`; where the first one lies, -1 for an unknown symbol.

    `groups` and `limits` `[d]` are of each component. What `_decode_levels` takes, from the last turn to the first.
    """
    num_lanes, place = len(states), len(words)
    turn = np.empty((levels.shape[1] + 1, num_lanes), np.uint32)
    num_turns = -(-len(levels) // max(num_lanes, 1))
    for start in range((num_turns - 1) * num_lanes, -1, -max(num_lanes, 1)):
        in_turn = min(num_lanes, len(levels) - start)
        for lane in range(in_turn):
            scale = np.int64(scales[start + lane])
            turn[0, lane] = entries[len(entries) - 1, scale]
            quantiser, previous = np.int64(0), np.int64(0)
            for component in range(levels.shape[1]):
                level, limit = np.int64(levels[start + lane, component]), limits[component]
                table = (groups[component] * NUM_SCALES + scale) * 2 + quantiser
                turn[component + 1, lane] = entries[table, min(max(level, -limit), limit) + MAX_MAGNITUDE]
                quantiser, previous = level & 1 ^ previous, quantiser
        for step in range(levels.shape[1], -1, -1):
            for lane in range(in_turn - 1, -1, -1):
                entry, state = turn[step, lane], states[lane]
                if entry >> np.uint32(16) == 0:
                    return -1
                if entropy.is_full(state, entry):
                    place -= 1
                    words[place] = np.uint16(state & np.uint32(0xFFFF))
                    state = state >> np.uint32(16)
                states[lane] = entropy.with_symbol(state, entry)
    return place


@numba.njit(nogil=True, cache=True)
def _decode_levels(
    states: np.ndarray,
    words: np.ndarray,
    slots: np.ndarray,
    groups: np.ndarray,
    limits: np.ndarray,
    escapes: np.ndarray,
    levels: np.ndarray,
) -> tuple[int, int]:
    """Compiled: fills `levels` `[K, d]`; how many words are read then, and how many levels are escaped.

    `groups` and `limits` `[d]` are of each component. A turn is one position in each lane: the class of its scale, then
    its components, each one's quantiser from the parities of the two before. Ends early where words do.
    """
    num_lanes, num_read, num_escaped = len(states), 0, 0
    turn = np.empty((levels.shape[1] + 1, num_lanes), np.int16)
    of_lanes = np.empty((3, num_lanes), np.int64)
    scale, quantiser, previous = of_lanes[0], of_lanes[1], of_lanes[2]
    for start in range(0, len(levels), max(num_lanes, 1)):
        in_turn = min(num_lanes, len(levels) - start)
        of_lanes[:] = 0
        for place in range(len(turn)):
            table = len(slots) // entropy.TOTAL - 1 if place == 0 else groups[place - 1] * NUM_SCALES * 2
            for lane in range(in_turn):
                entry = slots[entropy.slot(states[lane], table + 2 * scale[lane] + quantiser[lane])]
                state = entropy.without_symbol(states[lane], entry)
                if state < entropy.LOWEST:
                    if num_read == len(words):
                        return num_read + 1, num_escaped
                    state = entropy.with_word(state, words[num_read])
                    num_read += 1
                states[lane], symbol = state, entropy.symbol_of(entry)
                turn[place, lane] = symbol
                if place:
                    previous[lane], quantiser[lane] = quantiser[lane], symbol & 1 ^ previous[lane]
            if place == 0:
                scale[:in_turn] = np.minimum(turn[0, :in_turn], NUM_SCALES - 1)
        for lane in range(in_turn):
            for component in range(levels.shape[1]):
                level = np.int64(turn[component + 1, lane]) - MAX_MAGNITUDE
                if abs(level) >= limits[component]:
                    if num_escaped < len(escapes):
                        level += np.sign(level) * 2 * np.int64(escapes[num_escaped])
                    num_escaped += 1
                levels[start + lane, component] = level
    return num_read, num_escaped


def num_groups_of(hidden_size: int) -> int:
    return min(hidden_size, MAX_GROUPS)


def groups_of(hidden_size: int) -> np.ndarray:
    """int64 `[d]`: components in order of variance, dealt into groups of like size."""
    return np.arange(hidden_size) * num_groups_of(hidden_size) // hidden_size


def table_rows(groups: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """int64 `[K, d]`: the table of quantiser 0 for each level; the next is that of quantiser 1."""
    return np.asarray((groups[None] * NUM_SCALES + scales[:, None].astype(np.int64)) * 2)


def scale_classes(values: torch.Tensor, deviations: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """int64 `[K]`: how large the components `[K, d]` of each position are, all in all."""
    return torch.bucketize((values.abs() / deviations).mean(dim=1), limits)


def quantise(values: torch.Tensor, scales: torch.Tensor, tables: entropy.Tables, bounds: torch.Tensor) -> torch.Tensor:
    """Levels int64 `[K, d]` of components `[K, d]` in half-steps."""
    groups = groups_of(values.shape[1])
    rows = torch.from_numpy(table_rows(groups, scales.cpu().numpy())).to(values.device)
    costs = torch.from_numpy(tables.bits[:, MAX_MAGNITUDE:].copy()).to(values.device)
    bound = bounds[torch.from_numpy(groups)].to(values.device)
    return trellis.quantise(values, rows, costs, bound, weight=RATE_WEIGHT)
