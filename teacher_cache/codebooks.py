"""Making a cache's codebook: the teacher is asked about a fixed sample, and the codes' statistics are made of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from teacher_cache.errors import UserError
from teacher_cache.format.codebook import Codebook
from teacher_cache.format.coder import Coder
from teacher_cache.format.row import Row
from teacher_cache.format.spec import QUALITY_COSINES, Identity
from teacher_cache.targets import hidden_fit
from teacher_cache.targets.heads import OutputHead
from teacher_cache.targets.hidden_fit import Sample
from teacher_cache.targets.label_code import LabelCode
from teacher_cache.targets.soft_labels import SoftLabels
from teacher_cache.units import MaskedUnit, ask_unit

SAMPLE_POSITIONS = 32_768
"""Kept positions that are aimed at: about eight times the features of a BERT-base's predictor."""


def sample_ids(identity: Identity, *, num_sequences: int, num_tokens: int) -> list[int]:
    """Ids of the sampled sequences, evenly spread over a corpus."""
    assert identity.masking, "a task's cache needs no codebook"
    masked = identity.masking.rate
    rate = masked * identity.keep.masked + (1 - masked) * identity.keep.unmasked
    wanted = SAMPLE_POSITIONS / max(rate * num_tokens / num_sequences, 1e-9)
    size = int(min(num_sequences, max(1, np.ceil(wanted))))
    return [index * num_sequences // size for index in range(size)]


def make_codebook(
    sample: MaskedUnit, *, identity: Identity, head: OutputHead, num_layers: int, **asking: Any
) -> Codebook:
    """The codebook of sampled sequences; `head` is the teacher's in float32, `asking` goes to `ask_unit`.

    Raises:
        UserError: none of their positions is kept.
    """
    rows = ask_unit(sample, identity=identity, **asking)
    soft_labels = SoftLabels.of_rows(rows)
    if not len(soft_labels):
        raise UserError("no position of the sampled sequences is kept; raise keep.masked or keep.unmasked")
    labels = None
    if identity.soft_labels.code == "packed":
        labels = LabelCode.fit(soft_labels, vocab_size=head.decoder_weight.shape[0])
        soft_labels = labels.decode(labels.encode(soft_labels), len(soft_labels))
    if identity.hidden.code != "transform":
        return Codebook(labels=labels)
    return Codebook(labels=labels, hidden=_fit_hidden(rows, soft_labels, identity, head, num_layers))


def _fit_hidden(
    rows: Sequence[Row], soft_labels: SoftLabels, identity: Identity, head: OutputHead, num_layers: int
) -> dict[int, Any]:
    device = head.decoder_weight.device
    side = Coder(device=device).side_information(rows, soft_labels)
    codes = {}
    for layer in identity.hidden.stored_layers:
        states = torch.from_numpy(np.concatenate([row.hidden[layer] for row in rows])).to(device)
        codes[layer] = hidden_fit.fit(
            Sample(hidden=states, side=side),
            head,
            cosine=QUALITY_COSINES[identity.hidden.quality],
            feeds_head=layer in (-1, num_layers),
        )
    return codes
