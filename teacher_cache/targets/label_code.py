"""The packed code of soft labels: ids as a set, logits below the row's largest, the rest's mass predicted.

Nothing is stored twice. Ids are coded as gaps between ascending ranks (how often each token is among a sample's top k
decides its rank), so a set costs less than any code of plain sets could: log2 C(V, k) is for sets that are all equally
likely. Logits are whole steps below the row's largest, which is not stored, as no softmax sees a row's level. The
rest's log-sum-exps are what a linear prediction from these leaves.

Legend: K positions, k top tokens, V vocabulary, T temperatures, N tables, F features of a predictor.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch

from teacher_cache.errors import UserError
from teacher_cache.targets import entropy, integers
from teacher_cache.targets.soft_labels import SoftLabels

LOGIT_STEP = 1 / 64
"""Where a byte for finer logits and a byte for finer hidden states mend the gradient alike (measured at k = 8)."""
REST_STEP = 1 / 64
NUM_RANK_CLASSES, NUM_OFFSET_CLASSES, NUM_COLUMN_CLASSES = 32, 20, 4
SMOOTHING = 20.0
"""Counts that a table takes from its whole kind: contexts that the sample hardly held lean on it."""
NUM_SYMBOLS = integers.NUM_BUCKETS + 1


@dataclass(frozen=True, kw_only=True)
class _Integers:
    """Soft labels as whole numbers, columns in ascending order of ranks."""

    ranks: np.ndarray
    """int64 `[K, k]`."""
    offsets: np.ndarray
    """int64 `[K, k]`: steps below the row's largest logit."""
    rests: np.ndarray
    """int64 `[K, T]`: steps above the prediction."""


@dataclass(frozen=True, kw_only=True)
class LabelCode:
    """The statistics of a cache's soft labels."""

    token_order: np.ndarray
    """int32 `[V]`: rank → token id."""
    rest_weights: np.ndarray
    """float64 `[T, 4 + T]`: predictor of each rest, from four features and the rests before it."""
    limits: np.ndarray
    """int32 `[N]`: the largest bucket of each table; beyond, numbers are escaped."""
    frequencies: np.ndarray
    """int32 `[N, NUM_SYMBOLS]`."""
    top_k: int
    temperatures: tuple[float, ...]
    """Whose rests are stored; none where k = V."""

    def __post_init__(self) -> None:
        num_tables, num_rests = self._first_rest_table + len(self.temperatures), len(self.temperatures)
        vocab_size = self.token_order.size
        shapes = {
            "token_order": (vocab_size,),
            "rest_weights": (num_rests, 4 + num_rests),
            "limits": (num_tables,),
            "frequencies": (num_tables, NUM_SYMBOLS),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise UserError(f"codebook: labels.{name} has shape {getattr(self, name).shape}, it must be {shape}")
        if not np.array_equal(np.sort(self.token_order), np.arange(vocab_size)):
            raise UserError("codebook: labels.token_order is no order of the vocabulary")
        if not np.isfinite(self.rest_weights).all():
            raise UserError("codebook: labels.rest_weights are not finite")
        if (self.limits < 0).any() or (self.limits >= integers.NUM_BUCKETS).any() or (self.frequencies < 0).any():
            raise UserError("codebook: labels.limits or labels.frequencies are out of range")
        if self.top_k > vocab_size:
            raise UserError(f"codebook: top_k is {self.top_k}, the vocabulary has {vocab_size} tokens")
        _ = self._tables  # checks them
        if ((self.frequencies == 0) & (np.arange(NUM_SYMBOLS) <= self.limits[:, None] + 1)).any():
            raise UserError("codebook: labels.frequencies leave out a bucket within labels.limits")

    @property
    def vocab_size(self) -> int:
        return int(self.token_order.size)

    @cached_property
    def _ranks(self) -> np.ndarray:
        """int64 `[V]`: token id → rank."""
        return np.argsort(self.token_order)

    @cached_property
    def _tables(self) -> entropy.Tables:
        return entropy.Tables(self.frequencies.astype(np.uint16))

    _first_offset_table = NUM_RANK_CLASSES * NUM_COLUMN_CLASSES
    _first_rest_table = _first_offset_table + NUM_OFFSET_CLASSES * NUM_COLUMN_CLASSES

    @classmethod
    def fit(cls, sample: SoftLabels, *, vocab_size: int) -> "LabelCode":
        """Statistics of a sample of at least one position."""
        top_k, temperatures = sample.topk_ids.shape[1], tuple(sample.rest_log_sum_exp)
        uses = np.bincount(sample.topk_ids.numpy().ravel(), minlength=vocab_size)
        num_tables = cls._first_rest_table + len(temperatures)
        uniform = np.zeros((num_tables, NUM_SYMBOLS), np.int32)
        uniform[:, :2] = entropy.TOTAL // 2
        bare = cls(
            token_order=np.argsort(-uses, kind="stable").astype(np.int32),
            rest_weights=_fit_rests(sample),
            limits=np.zeros(num_tables, np.int32),
            frequencies=uniform,
            top_k=top_k,
            temperatures=temperatures,
        )
        limits, frequencies = bare._count(bare._integers(sample))
        return cls(
            **{field.name: getattr(bare, field.name) for field in fields(cls)}
            | {"limits": limits, "frequencies": frequencies}
        )

    def _count(self, numbers: _Integers) -> tuple[np.ndarray, np.ndarray]:
        """Limits and frequencies of the tables that code these."""
        counts = np.zeros((len(self.limits), integers.NUM_BUCKETS))
        for tables, column in self._columns(numbers):
            counts += integers.table_counts(tables, column, num_tables=len(counts))
        limits = np.zeros(len(counts), np.int32)
        for start, stop in self._kinds():
            kind = counts[start:stop].sum(axis=0)
            limits[start:stop] = min(np.flatnonzero(kind).max(initial=0) + 1, integers.NUM_BUCKETS - 1)
            counts[start:stop] += SMOOTHING * kind / max(kind.sum(), 1)
        buckets = np.arange(NUM_SYMBOLS)
        counts = np.pad(counts, ((0, 0), (0, 1))) + 1e-3
        counts *= buckets <= limits[:, None] + 1  # one more for the escape
        return limits, entropy.make_tables(counts).frequencies.astype(np.int32)

    def _kinds(self) -> list[tuple[int, int]]:
        """Ranges of tables that code numbers of one kind."""
        rests = range(self._first_rest_table, len(self.limits))
        return [
            (0, self._first_offset_table),
            (self._first_offset_table, self._first_rest_table),
            *((table, table + 1) for table in rests),
        ]

    def encode(self, soft_labels: SoftLabels) -> bytes:
        """The bytes of K positions.

        Raises:
            UserError: a value is not finite.
        """
        finite = [soft_labels.topk_logits, *soft_labels.rest_log_sum_exp.values()]
        if not all(torch.isfinite(values).all() for values in finite):
            raise UserError("the teacher's answer is not finite (NaN or infinity); try teacher.dtype: float32")
        numbers = self._integers(soft_labels)
        writer = integers.Writer(self._tables, self.limits.astype(np.int64))
        for turn in entropy.turns(len(soft_labels)):
            part = _Integers(ranks=numbers.ranks[turn], offsets=numbers.offsets[turn], rests=numbers.rests[turn])
            for tables, column in self._columns(part):
                writer.step(tables, column)
        return writer.finish()

    def decode(self, data: bytes, num_positions: int) -> SoftLabels:
        """Soft labels whose largest logit is 0 in each row.

        Raises:
            UserError: the bytes are not those of `num_positions` positions.
        """
        num_lanes = entropy.num_lanes(num_positions)
        reader = integers.Reader(data, self._tables, self.limits.astype(np.int64), num_lanes=num_lanes)
        ranks = np.empty((num_positions, self.top_k), np.int64)
        offsets = np.empty_like(ranks)
        rests = np.empty((num_positions, len(self.temperatures)), np.int64)
        for turn in entropy.turns(num_positions):
            self._decode_turn(reader, ranks[turn], offsets[turn], rests[turn])
        reader.finish()
        return self._soft_labels(_Integers(ranks=ranks, offsets=offsets, rests=rests))

    def _decode_turn(self, reader: integers.Reader, ranks: np.ndarray, offsets: np.ndarray, rests: np.ndarray) -> None:
        """Fills `[n, …]` of one position in each of the first n lanes; the same contexts as in `_columns`."""
        rank, total = np.full(len(ranks), -1), np.zeros(len(ranks), np.int64)
        for column in range(self.top_k):
            rank = rank + 1 + reader.step(self._rank_tables(column, rank))
            if (rank >= self.vocab_size).any():
                raise entropy.damaged()
            ranks[:, column] = rank
        for column in range(self.top_k):
            offsets[:, column] = reader.step(self._offset_tables(column, total))
            total += offsets[:, column]
        for place in range(len(self.temperatures)):
            coded = reader.step(np.full(len(rests), self._first_rest_table + place))
            rests[:, place] = (coded >> 1) ^ -(coded & 1)

    def _columns(self, numbers: _Integers) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(tables, numbers) of each step of coding, all positions at once."""
        rank, total = np.full(len(numbers.ranks), -1), np.zeros(len(numbers.ranks), np.int64)
        for column in range(self.top_k):
            yield self._rank_tables(column, rank), numbers.ranks[:, column] - rank - 1
            rank = numbers.ranks[:, column]
        for column in range(self.top_k):
            yield self._offset_tables(column, total), numbers.offsets[:, column]
            total = total + numbers.offsets[:, column]
        for place in range(len(self.temperatures)):
            rests = numbers.rests[:, place]
            yield np.full(len(rests), self._first_rest_table + place), rests << 1 ^ rests >> 63

    def _rank_tables(self, column: int, previous: np.ndarray) -> np.ndarray:
        context = integers.half_octave(previous + 1, NUM_RANK_CLASSES - 1)
        return np.asarray(context * NUM_COLUMN_CLASSES + column * NUM_COLUMN_CLASSES // self.top_k)

    def _offset_tables(self, column: int, total: np.ndarray) -> np.ndarray:
        """By the mean of the row's offsets so far."""
        context = integers.half_octave(total // max(column, 1), NUM_OFFSET_CLASSES - 1)
        group = column * NUM_COLUMN_CLASSES // self.top_k
        return np.asarray(self._first_offset_table + context * NUM_COLUMN_CLASSES + group)

    def _integers(self, soft_labels: SoftLabels) -> _Integers:
        ranks = self._ranks[soft_labels.topk_ids.numpy()]
        order = ranks.argsort(axis=1)
        logits = np.take_along_axis(soft_labels.topk_logits.numpy().astype(np.float64), order, 1)
        steps = np.round((logits.max(axis=1, keepdims=True) - logits) / LOGIT_STEP)
        offsets = np.minimum(steps, integers.MAX_NUMBER).astype(np.int64)
        highest = logits.max(axis=1)
        features = _features(offsets, self.temperatures)
        rests: list[tuple[np.ndarray, np.ndarray]] = []
        for place, temperature in enumerate(self.temperatures):
            true = soft_labels.rest_log_sum_exp[temperature].numpy() - highest / temperature
            predicted = self._predict(place, features, rests)
            limit = integers.MAX_NUMBER // 2
            coded = np.clip(np.round((true - predicted) / REST_STEP), -limit, limit)
            rests.append((coded, predicted + coded * REST_STEP))
        stacked = [coded.astype(np.int64) for coded, _ in rests]
        return _Integers(
            ranks=np.take_along_axis(ranks, order, 1),
            offsets=offsets,
            rests=np.stack(stacked, axis=1) if stacked else np.empty((len(ranks), 0), np.int64),
        )

    def _predict(self, place: int, features: np.ndarray, before: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """The rest at a temperature, from features `[T, K, 4]` and the rests decoded before it."""
        weights = self.rest_weights[place]
        predicted = features[place] @ weights[:4]
        for weight, (_, rest) in zip(weights[4:], before, strict=False):
            predicted = predicted + weight * rest
        return np.asarray(predicted)

    def _soft_labels(self, numbers: _Integers) -> SoftLabels:
        ids = self.token_order[numbers.ranks].astype(np.int64)
        order = ids.argsort(axis=1)
        logits = np.take_along_axis(-numbers.offsets * LOGIT_STEP, order, 1).astype(np.float32)
        features = _features(numbers.offsets, self.temperatures)
        rests: list[tuple[np.ndarray, np.ndarray]] = []
        for place in range(len(self.temperatures)):
            coded = numbers.rests[:, place]
            rests.append((coded, self._predict(place, features, rests) + coded * REST_STEP))
        return SoftLabels(
            topk_ids=torch.from_numpy(np.take_along_axis(ids, order, 1)),
            topk_logits=torch.from_numpy(logits),
            rest_log_sum_exp={
                temperature: torch.from_numpy(rest.astype(np.float32))
                for temperature, (_, rest) in zip(self.temperatures, rests, strict=True)
            },
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """The statistics by name, for a file."""
        names = ("token_order", "rest_weights", "limits", "frequencies")
        return {name: np.ascontiguousarray(getattr(self, name)) for name in names}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, np.ndarray], *, top_k: int, temperatures: Sequence[float], vocab_size: int
    ) -> "LabelCode":
        """From what `tensors` gave, and what the spec says.

        Raises:
            UserError: something is missing or not what it should be.
        """
        kinds = {"token_order": np.int32, "rest_weights": np.float64, "limits": np.int32, "frequencies": np.int32}
        for name, dtype in kinds.items():
            if name not in tensors or tensors[name].dtype != dtype:
                raise UserError(f"codebook: labels.{name} is missing or not {np.dtype(dtype)}")
        if tensors["token_order"].shape != (vocab_size,):
            raise UserError(f"codebook: labels.token_order is not of the teacher's {vocab_size} tokens")
        stored = tuple(temperatures) if top_k < vocab_size else ()
        return cls(**{name: tensors[name] for name in kinds}, top_k=top_k, temperatures=stored)


def _features(offsets: np.ndarray, temperatures: Sequence[float]) -> np.ndarray:
    """float64 `[T, K, 4]`: 1, largest and mean offset, and the top k's log-sum-exp at each temperature."""
    below = offsets * LOGIT_STEP
    rows = []
    for temperature in temperatures:
        mass = np.log(np.exp(-below / temperature).sum(axis=1))
        rows.append(np.stack([np.ones(len(below)), below.max(axis=1), below.mean(axis=1), mass], axis=1))
    return np.stack(rows) if rows else np.empty((0, len(below), 4))


def _fit_rests(sample: SoftLabels) -> np.ndarray:
    """Least squares for each temperature's rest, with a little ridge for small samples."""
    temperatures = tuple(sample.rest_log_sum_exp)
    logits = sample.topk_logits.numpy().astype(np.float64)
    highest = logits.max(axis=1)
    features = _features(np.round((highest[:, None] - logits) / LOGIT_STEP), temperatures)
    before: list[np.ndarray] = []
    weights = np.zeros((len(temperatures), 4 + len(temperatures)))
    for place, temperature in enumerate(temperatures):
        rest = sample.rest_log_sum_exp[temperature].numpy() - highest / temperature
        columns = np.concatenate([features[place], *(values[:, None] for values in before)], axis=1)
        moments = columns.T @ columns + 1e-3 * np.eye(columns.shape[1])
        weights[place, : columns.shape[1]] = np.linalg.solve(moments, columns.T @ rest)
        before.append(rest)
    return weights
