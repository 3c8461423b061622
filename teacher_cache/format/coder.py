"""Between the targets of a block of sequences and their bytes: a cache's codebook on a device.

Legend: K kept positions of the block, d hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from teacher_cache.errors import UserError
from teacher_cache.format.codebook import Codebook
from teacher_cache.format.row import Row
from teacher_cache.targets.batching import pad
from teacher_cache.targets.heads import OutputHead
from teacher_cache.targets.hidden_code import Levels
from teacher_cache.targets.side_information import SideInformation, gather, num_features
from teacher_cache.targets.soft_labels import SoftLabels


@dataclass(frozen=True, kw_only=True)
class Coder:
    """What encodes and decodes targets: a cache's codebook, and the head that its predictions are made of.

    Raises:
        UserError: the codebook is of a head of other sizes.
    """

    codebook: Codebook = field(default_factory=Codebook)
    head: OutputHead | None = None
    """None where no hidden states are transform-coded."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if self.head is None:
            return
        sizes = num_features(self.head), self.head.dense_weight.shape[1]
        for layer, code in self.codebook.hidden.items():
            if code.predictor.shape != sizes:
                found = tuple(code.predictor.shape)
                raise UserError(f"codebook: hidden.{layer}.predictor has shape {found}, the teacher's makes it {sizes}")

    @property
    def vocab_size(self) -> int | None:
        """Of the tokens that codes are made for; None where nothing is coded."""
        if self.codebook.labels is not None:
            return self.codebook.labels.vocab_size
        return self.head.decoder_weight.shape[0] if self.head is not None else None

    def to(self, device: torch.device) -> "Coder":
        """With everything that computes on `device`."""
        hidden = {layer: code.to(device) for layer, code in self.codebook.hidden.items()}
        head = self.head.to(device) if self.head is not None else None
        return Coder(codebook=replace(self.codebook, hidden=hidden), head=head, device=device)

    def side_information(self, rows: Sequence[Row], soft_labels: SoftLabels) -> SideInformation:
        """Of the kept positions of some rows, in order."""
        input_ids, attention_mask = pad([row.input_ids for row in rows], 0)
        length = input_ids.shape[1]
        return gather(
            input_ids,
            attention_mask,
            label_places=_places([row.label_positions for row in rows], length),
            kept_places=_places([row.kept_positions for row in rows], length),
            soft_labels=soft_labels,
        ).to(self.device)

    def quantise_hidden(self, layer: int, hidden: np.ndarray, side: SideInformation) -> Levels:
        """The levels of the states `[K, d]` of a block."""
        assert self.head is not None, "the transform code needs the teacher's head"
        with torch.inference_mode():
            return self.codebook.hidden[layer].encode(torch.from_numpy(hidden).to(self.device), side, self.head)

    def decode_hidden(self, layer: int, levels: torch.Tensor, side: SideInformation) -> torch.Tensor:
        """Hidden states float32 `[K, d]` from levels int16 `[K, d]`, both on the device."""
        assert self.head is not None, "the transform code needs the teacher's head"
        with torch.no_grad():
            return self.codebook.hidden[layer].decode(levels, side, self.head)


def _places(positions: Sequence[np.ndarray], length: int) -> torch.Tensor:
    """int64: places in rows that are padded to `length` and flattened."""
    return torch.from_numpy(np.concatenate([row * length + places for row, places in enumerate(positions)]))
