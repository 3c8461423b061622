"""This package's codes, as a cache holds them.

Legend: N positions, k top tokens, d hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from infra.bench.codes.answers import Answers, chunks
from infra.bench.codes.contenders import OURS, Encoded
from infra.bench.codes.gradients import DenseRows, SparseRows
from teacher_cache.targets import hidden_fit
from teacher_cache.targets.heads import OutputHead
from teacher_cache.targets.hidden_code import HiddenCode
from teacher_cache.targets.label_code import LabelCode
from teacher_cache.targets.side_information import SideInformation
from teacher_cache.targets.soft_labels import SoftLabels, bucket_log_probabilities, replay_log_probabilities

BLOCK_POSITIONS = 4096
"""Positions that are encoded together: about those of a cache's block, 128 sequences of 128 tokens."""


@dataclass(frozen=True)
class PackedLabels:
    """Packed soft labels."""

    top_k: int
    code: LabelCode

    @classmethod
    def fit(cls, sample: Answers, top_k: int, vocab_size: int) -> "PackedLabels":
        return cls(top_k, LabelCode.fit(sample.soft_labels(top_k), vocab_size=vocab_size))

    def round_trip(self, answers: Answers) -> tuple[int, SoftLabels]:
        """Bytes of N positions, and what is decoded from them."""
        exact, num_bytes, decoded = answers.soft_labels(self.top_k), 0, []
        for block in chunks(len(answers), BLOCK_POSITIONS):
            data = self.code.encode(exact[block])
            num_bytes += len(data)
            decoded.append(self.code.decode(data, len(exact[block])))
        return num_bytes, SoftLabels.concatenate(decoded)


@dataclass(frozen=True)
class Bucket:
    """Packed soft labels alone: the top k and one bucket."""

    labels: PackedLabels

    @property
    def name(self) -> str:
        return f"{OURS}: bucket, k = {self.labels.top_k}"

    family: str = OURS

    def encode(self, answers: Answers) -> Encoded:
        num_bytes, soft_labels = self.labels.round_trip(answers)

        def rows(chunk: slice, temperature: float) -> SparseRows:
            shares = bucket_log_probabilities(soft_labels[chunk], temperature).exp()
            ids = soft_labels.topk_ids[chunk]
            return SparseRows(ids=ids, probabilities=shares[:, :-1], rest=shares[:, -1], spread="student")

        return Encoded(hidden_bytes=0, label_bytes=num_bytes, rows=rows)


@dataclass(frozen=True)
class Transform:
    """Packed soft labels and transform-coded hidden states, replayed."""

    cosine: float
    labels: PackedLabels
    code: HiddenCode
    head: OutputHead
    family: str = OURS

    @classmethod
    def fit(cls, sample: Answers, labels: PackedLabels, head: OutputHead, cosine: float) -> "Transform":
        """The code of this mean cosine, on `sample`."""
        _, soft_labels = labels.round_trip(sample)
        made_of = hidden_fit.Sample(hidden=sample.states.hidden, side=sample.side(soft_labels))
        return cls(cosine, labels, hidden_fit.fit(made_of, head, cosine=cosine, feeds_head=True), head)

    @property
    def name(self) -> str:
        return f"{OURS}: cosine {self.cosine:g}, k = {self.labels.top_k}, replay"

    @torch.no_grad()
    def encode(self, answers: Answers) -> Encoded:
        label_bytes, soft_labels = self.labels.round_trip(answers)
        side = answers.side(soft_labels)
        parts = [
            self._round_trip(answers.states.hidden[block], side[block])
            for block in chunks(len(answers), BLOCK_POSITIONS)
        ]
        hidden = torch.cat([decoded for _, decoded in parts])
        return Encoded(
            hidden_bytes=sum(num_bytes for num_bytes, _ in parts),
            label_bytes=label_bytes,
            rows=replayed(hidden, soft_labels, self.head),
            hidden=hidden,
        )

    def _round_trip(self, hidden: torch.Tensor, side: SideInformation) -> tuple[int, torch.Tensor]:
        """Bytes of a block, and the states decoded from them."""
        data = self.code.compress(self.code.encode(hidden, side, self.head))
        levels = torch.from_numpy(self.code.decompress(data, len(hidden)))
        return len(data), self.code.decode(levels, side, self.head)


def replayed(hidden: torch.Tensor, soft_labels: SoftLabels, head: OutputHead) -> Callable[[slice, float], DenseRows]:
    """Whole rows from hidden states `[N, d]` and soft labels."""

    def rows(chunk: slice, temperature: float) -> DenseRows:
        return DenseRows(
            log_probabilities=replay_log_probabilities(hidden[chunk], head, soft_labels[chunk], temperature)
        )

    return rows
