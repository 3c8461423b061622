"""Rows of a made-up teacher, and the codebook of some of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from teacher_cache.format.codebook import Codebook
from teacher_cache.format.coder import Coder
from teacher_cache.format.row import Row
from teacher_cache.format.spec import Identity
from teacher_cache.targets import hidden_fit
from teacher_cache.targets.heads import head_logits
from teacher_cache.targets.hidden_fit import Sample
from teacher_cache.targets.label_code import LabelCode
from teacher_cache.targets.soft_labels import SoftLabels, keep_top
from tests.teacher_cache.format.samples import identity
from tests.teacher_cache.test_hidden_code import VOCABULARY, make_head

HIDDEN_SIZE = 6
HEAD = make_head(HIDDEN_SIZE)
SHA256 = "e" * 64


def coded_identity(*, top_k: int = 4, **changes: Any) -> Identity:
    """Both codes, three layers; `changes` replace whole sections."""
    sections = {
        "soft_labels": {"top_k": top_k, "temperatures": (1.0, 2.0), "code": "packed"},
        "hidden": {"layers": (0, 2, -1), "code": "transform"},
    }
    return identity(**(sections | changes))


def make_rows(seed: int, spec: Identity, lengths: Sequence[int], share: float, first: int = 0) -> list[Row]:
    """Of random text and states, about a share of positions masked and about a share kept."""
    draw = np.random.default_rng(seed)
    return [_make_row(draw, spec, first + place, length, share) for place, length in enumerate(lengths)]


def _make_row(draw: np.random.Generator, spec: Identity, sequence_id: int, length: int, share: float) -> Row:
    labels, kept = (np.flatnonzero(draw.random(length) < share) for _ in range(2))
    spread = np.logspace(1, -1, HIDDEN_SIZE)
    states = {
        layer: (draw.normal(size=(len(kept), HIDDEN_SIZE)) * spread).astype(np.float32) for layer in (-1, *range(4))
    }
    config = spec.soft_labels
    logits = head_logits(HEAD, torch.from_numpy(states[-1]))
    soft = keep_top(logits, top_k=config.top_k, temperatures=config.temperatures)
    return Row(
        sequence_id=sequence_id,
        document_id=sequence_id,
        input_ids=draw.integers(0, VOCABULARY, length, dtype=np.int32),
        label_positions=labels,
        label_ids=draw.integers(0, VOCABULARY, len(labels), dtype=np.int32),
        kept_positions=kept,
        rates=np.where(np.isin(kept, labels), spec.keep.masked, spec.keep.unmasked).astype(np.float32),
        topk_ids=soft.topk_ids.numpy().astype(np.int32),
        topk_logits=soft.topk_logits.numpy(),
        rest_log_sum_exp={temperature: rest.numpy() for temperature, rest in soft.rest_log_sum_exp.items()},
        hidden={layer: states[layer] for layer in spec.hidden.stored_layers},
    )


def make_coder(spec: Identity, *, seed: int = 0) -> Coder:
    """What a cache of this identity codes with."""
    rows = make_rows(seed, spec, [10] * 60, 0.5)
    soft_labels, labels = SoftLabels.of_rows(rows), None
    if spec.soft_labels.code == "packed":
        labels = LabelCode.fit(soft_labels, vocab_size=VOCABULARY)
    hidden = {}
    if spec.hidden.code == "transform":
        side = Coder().side_information(rows, soft_labels)
        for layer in spec.hidden.stored_layers:
            states = torch.from_numpy(np.concatenate([row.hidden[layer] for row in rows]))
            sample = Sample(hidden=states, side=side)
            hidden[layer] = hidden_fit.fit(sample, HEAD, cosine=0.99, feeds_head=layer == -1)
    return Coder(codebook=Codebook(labels=labels, hidden=hidden, sha256=SHA256), head=HEAD)
