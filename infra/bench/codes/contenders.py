"""What the codes under test have in common.

Legend: N positions, K positions of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from infra.bench.codes.answers import Answers
from infra.bench.codes.gradients import Rows

OURS = "ours"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """N positions after encoding and decoding."""

    hidden_bytes: float
    """Of all N positions together."""
    label_bytes: float
    rows: Callable[[slice, float], Rows | None]
    """The target of a chunk at a temperature; None where the code defines none."""
    hidden: torch.Tensor | None = None
    """float32 `[N, d]`: last hidden states, where the code has them."""

    @property
    def num_bytes(self) -> float:
        return self.hidden_bytes + self.label_bytes


class Codec(Protocol):
    """One row of the table."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str:
        """Codes of one family are variants of one idea; `OURS` is this package's."""

    def encode(self, answers: Answers) -> Encoded: ...
