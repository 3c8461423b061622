"""A sample of a cache's masked positions, and what the teacher, run anew, says there.

Legend: N masked positions of the sample, K kept positions of a row, S positions of a row, d hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from teacher_cache.errors import UserError
from teacher_cache.fidelity import rows as stored_rows
from teacher_cache.fidelity.measures import early_student, late_student_hidden
from teacher_cache.format.cache import Cache
from teacher_cache.format.manifest import Shard
from teacher_cache.format.row import Row
from teacher_cache.targets.batching import group_by_tokens, pad
from teacher_cache.targets.soft_labels import SoftLabels
from teacher_cache.teacher import LoadedTeacher, Teacher, load_teacher

BATCH_ROWS, BATCH_TOKENS = 64, 4096
"""Rows that are sorted by length together, and tokens that the teacher gets at once."""
SEED = 0
"""Of the order of positions, and of the late student's noise."""


class CosineSum:
    """Cosines of stored hidden states and the teacher's, added up over masked and over unmasked kept positions."""

    def __init__(self) -> None:
        self._total = {True: 0.0, False: 0.0}
        self._count = {True: 0, False: 0}

    def add(self, stored: torch.Tensor, exact: torch.Tensor, is_masked: torch.Tensor) -> None:
        """Adds states `[K, d]`, in float64: float32 does not tell 1 - 1e-8 from 1."""
        cosines = F.cosine_similarity(stored.double(), exact.double(), dim=-1)
        for kind in self._total:
            of_kind = cosines[is_masked == kind]
            self._total[kind] += float(of_kind.sum())
            self._count[kind] += len(of_kind)

    def mean(self, *kinds: bool) -> float | None:
        """Over masked positions (True), unmasked ones (False) or both; None where there are none."""
        count = sum(self._count[kind] for kind in kinds)
        return sum(self._total[kind] for kind in kinds) / count if count else None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Masked positions in random order, so that any first part is a sample of its own. Tensors are on the CPU."""

    exact: torch.Tensor
    """float32 `[N, d]`: last hidden states of the teacher run anew."""
    stored: torch.Tensor | None
    """float32 `[N, d]`: the same as the cache gives them back; None where it stores none."""
    students: Mapping[str, torch.Tensor]
    """By name, float32 `[N, d]`: last hidden states of stand-ins for students, which share the teacher's head."""
    soft_labels: SoftLabels
    """N rows, as the cache gives them back."""
    label_ids: torch.Tensor
    """int64 `[N]`: the true tokens."""
    cosines: Mapping[int, CosineSum]
    """By stored layer, over all kept positions of all rows that were read."""
    shards: tuple[Shard, ...]
    """From which rows were read."""
    num_sequences: int

    @property
    def num_positions(self) -> int:
        return len(self.label_ids)


def draw(cache: Cache, num_positions: int, *, progress: bool) -> tuple[Sample, Teacher]:
    """Asks the teacher about stored inputs of all sealed views, evenly spread, until `num_positions` masked are seen.

    A smaller cache gives what it has.

    Raises:
        UserError: no view is sealed, or fewer than 2 masked positions are kept.
    """
    shards, masked_rate = stored_rows.sealed_shards(cache), cache.spec.keep.masked
    expected = round(stored_rows.expected_positions(shards, masked_rate))
    if not expected:
        raise _too_few(cache, 0)
    asker, chosen = _Asker(cache), stored_rows.spread(shards, masked_rate, num_positions)
    total = min(num_positions, expected)
    with tqdm(desc="asking the teacher", total=total, unit=" positions", disable=not progress) as bar:
        planned = stored_rows.read(cache, shards, chosen)
        while batch := list(islice(planned, BATCH_ROWS)):  # to the end: a part of an even spread is not even
            bar.update(asker.ask(batch))
        more = stored_rows.read_others(cache, shards, chosen)
        while asker.num_positions < num_positions and (batch := list(islice(more, BATCH_ROWS))):
            bar.update(asker.ask(batch))
    if asker.num_positions < 2:  # one position has no standard deviation
        raise _too_few(cache, asker.num_positions)
    return asker.sample(num_positions), asker.teacher


def _too_few(cache: Cache, found: int) -> UserError:
    return UserError(
        f"{cache.url} keeps {found} masked positions, at least 2 are needed to measure anything; build a cache with"
        " keep.masked above 0 (1 is the default) and more text"
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The masked kept positions of one row; see `Sample`."""

    exact: torch.Tensor
    early: torch.Tensor | None
    stored: torch.Tensor | None
    soft_labels: SoftLabels
    label_ids: torch.Tensor


class _Asker:
    """Runs teacher and early student on rows, and gathers what there is to compare."""

    def __init__(self, cache: Cache) -> None:
        loaded = load_teacher(str(cache.teacher.folder))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher = Teacher(loaded, getattr(torch, cache.spec.teacher.dtype), device)
        self._early = _early(loaded, device)
        self._pad_id = int(loaded.tokenizer.pad_token_id)
        self._last = cache.last_hidden_layer
        self._layers = cache.spec.hidden.stored_layers
        self._parts: list[_Part] = []
        self._cosines = {layer: CosineSum() for layer in self._layers}
        self._shards: dict[str, Shard] = {}
        self.num_positions = 0

    def ask(self, batch: Sequence[tuple[Shard, Row]]) -> int:
        """Asks about some rows; the number of masked kept positions in them."""
        before = self.num_positions
        self._shards |= {shard.labels.key: shard for shard, _ in batch}
        for group in group_by_tokens([len(row.input_ids) for _, row in batch], BATCH_TOKENS):
            self._ask([batch[place][1] for place in group])
        return self.num_positions - before

    def _ask(self, rows: Sequence[Row]) -> None:
        input_ids, attention_mask = pad([row.input_ids for row in rows], self._pad_id)
        states = self.teacher.encode(input_ids, attention_mask, (*self._layers, -1))
        early = self._early.encode(input_ids, attention_mask)[-1] if self._early else None
        for place, row in enumerate(rows):
            exact = {layer: _at(states[layer][place], row.kept_positions) for layer in states}
            self._add(row, exact, _at(early[place], row.kept_positions) if early is not None else None)

    def _add(self, row: Row, exact: dict[int, torch.Tensor], early: torch.Tensor | None) -> None:
        """Adds a row's kept positions; states are `[K, d]`."""
        is_masked = torch.isin(torch.from_numpy(row.kept_positions), torch.from_numpy(row.label_positions))
        stored = {layer: torch.tensor(states).float() for layer, states in row.hidden.items()}
        for layer, states in stored.items():
            self._cosines[layer].add(states, exact[layer], is_masked)
        labels = dict(zip(row.label_positions.tolist(), row.label_ids.tolist(), strict=True))
        masked = row.kept_positions[is_masked.numpy()].tolist()
        part = _Part(
            exact=exact[-1][is_masked],
            early=early[is_masked] if early is not None else None,
            stored=stored[self._last][is_masked] if self._last is not None else None,
            soft_labels=SoftLabels.of_rows([row])[is_masked],
            label_ids=torch.tensor([labels[position] for position in masked], dtype=torch.int64),
        )
        self._parts.append(part)
        self.num_positions += len(masked)

    def sample(self, num_positions: int) -> Sample:
        """What was asked about so far, or `num_positions` of it drawn at random."""
        generator = torch.Generator().manual_seed(SEED)
        order = torch.randperm(self.num_positions, generator=generator)[:num_positions]
        exact, early, stored = (
            _join([getattr(part, name) for part in self._parts], order) for name in ("exact", "early", "stored")
        )
        assert exact is not None
        late = late_student_hidden(exact, exact.std(dim=0), generator)
        return Sample(
            exact=exact,
            stored=stored,
            students={"late": late} if early is None else {"early": early, "late": late},
            soft_labels=SoftLabels.concatenate([part.soft_labels for part in self._parts])[order],
            label_ids=torch.cat([part.label_ids for part in self._parts])[order],
            cosines=self._cosines,
            shards=tuple(self._shards.values()),
            num_sequences=len(self._parts),
        )


def _early(loaded: LoadedTeacher, device: torch.device) -> Teacher | None:
    """The early student, in float32 as students are; None where the teacher has no layer to spare."""
    if loaded.model.config.num_hidden_layers < 2:
        return None
    return Teacher(LoadedTeacher(early_student(loaded.model), loaded.tokenizer), torch.float32, device)


def _at(states: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
    """float32 `[K, d]` on the CPU of states `[S, d]`."""
    return states[torch.from_numpy(positions).to(states.device)].float().cpu()


def _join(parts: Sequence[torch.Tensor | None], order: torch.Tensor) -> torch.Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present)[order] if present else None
