"""Soft labels: the top k logits of a row, and the exact mass of everything else at a few temperatures.

Never renormalised: at temperature 2 most of a masked-LM row's mass lies outside any small k, and a
renormalised top k is a different loss. What is stored is used in one of two ways, which the student chooses:
`bucket` (the k tokens and one bucket) or `replay` (the whole row, rebuilt from the hidden state).

Legend: K kept positions, V vocabulary, k top tokens, d hidden size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from teacher_cache.errors import UserError
from teacher_cache.targets.heads import OutputHead, head_logits

CPU_ROWS = 8
"""Rows that stay in a CPU's cache between one operation and the next: 8 * 30,522 float32 are 1 MB."""


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """What is kept of K rows of logits."""

    topk_ids: torch.Tensor
    """int64 `[K, k]`, ascending."""
    topk_logits: torch.Tensor
    """float32 `[K, k]`; from the packed code less the row's largest, as no softmax sees a row's level."""
    rest_log_sum_exp: dict[float, torch.Tensor]
    """Temperature to float32 `[K]`: log sum of exp(logit / temperature) outside the top k, of the same level; empty
    where k = V."""

    @classmethod
    def of_rows(cls, rows: Sequence[Any]) -> "SoftLabels":
        """From rows (`teacher_cache.format.shard.Row`), at least one, position after position."""

        def joined(arrays: Sequence[np.ndarray], dtype: Any) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(arrays).astype(dtype))

        return cls(
            topk_ids=joined([row.topk_ids for row in rows], np.int64),
            topk_logits=joined([row.topk_logits for row in rows], np.float32),
            rest_log_sum_exp={
                key: joined([row.rest_log_sum_exp[key] for row in rows], np.float32) for key in rows[0].rest_log_sum_exp
            },
        )

    @classmethod
    def concatenate(cls, parts: Sequence["SoftLabels"]) -> "SoftLabels":
        """The rows of several, one after the other."""
        temperatures = list(parts[0].rest_log_sum_exp)
        return cls(
            topk_ids=torch.cat([part.topk_ids for part in parts]),
            topk_logits=torch.cat([part.topk_logits for part in parts]),
            rest_log_sum_exp={key: torch.cat([part.rest_log_sum_exp[key] for part in parts]) for key in temperatures},
        )

    def __len__(self) -> int:
        return len(self.topk_ids)

    def __getitem__(self, rows: Any) -> "SoftLabels":
        """The soft labels of some of the rows."""
        return SoftLabels(
            topk_ids=self.topk_ids[rows],
            topk_logits=self.topk_logits[rows],
            rest_log_sum_exp={key: values[rows] for key, values in self.rest_log_sum_exp.items()},
        )

    def to(self, device: torch.device) -> "SoftLabels":
        return self.moved(lambda values: values.to(device, non_blocking=True))

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "SoftLabels":
        """With each tensor moved."""
        return SoftLabels(
            topk_ids=move(self.topk_ids),
            topk_logits=move(self.topk_logits),
            rest_log_sum_exp={key: move(rest) for key, rest in self.rest_log_sum_exp.items()},
        )


def keep_top(logits: torch.Tensor, *, top_k: int, temperatures: Sequence[float]) -> SoftLabels:
    """Keeps the top k of logits `[K, V]`, and the rest's log-sum-exp at each temperature.

    The rest is summed over the rest, not taken as a difference, so its mass is positive by construction.
    """
    logits = logits.float()
    if top_k == logits.shape[-1]:
        ids = torch.arange(top_k, device=logits.device).expand(logits.shape)
        return SoftLabels(topk_ids=ids, topk_logits=logits, rest_log_sum_exp={})
    top = logits.topk(top_k + 1, dim=-1)
    ids, level = top.indices[:, :top_k].sort(dim=-1).values, top.values[:, top_k:]
    num_rows = rows_at_once(logits)
    parts = zip(logits.split(num_rows), ids.split(num_rows), level.split(num_rows), strict=True)
    rests = [_rest(*part, temperatures) for part in parts]
    return SoftLabels(
        topk_ids=ids,
        topk_logits=logits.gather(-1, ids),
        rest_log_sum_exp={
            temperature: torch.cat([rest[temperature] for rest in rests]) for temperature in temperatures
        },
    )


def rows_at_once(logits: torch.Tensor) -> int:
    """As how many rows of `[K, V]` to take at a time where several operations follow one another; at least 1."""
    return CPU_ROWS if logits.device.type == "cpu" else max(1, len(logits))


def _rest(
    logits: torch.Tensor, ids: torch.Tensor, level: torch.Tensor, temperatures: Sequence[float]
) -> dict[float, torch.Tensor]:
    """Log-sum-exps `[K]` of rows `[K, V]` without `ids` `[K, k]`; `level` `[K, 1]` is the rest's largest logit."""
    below = logits - level
    rest: dict[float, torch.Tensor] = {}
    power, last = below, math.inf
    for temperature in sorted(temperatures, reverse=True):
        is_square = last == 2 * temperature  # cheaper than another exponential
        power = power.square_() if is_square else (below / temperature).exp_().scatter_(-1, ids, 0.0)
        rest[temperature] = power.sum(dim=-1).log_().add_(level[:, 0], alpha=1 / temperature)
        last = temperature
    return rest


def bucket_log_probabilities(soft_labels: SoftLabels, temperature: float) -> torch.Tensor:
    """Teacher log-probabilities `[K, k + 1]` of the top k and of the rest (`[K, V]`, no rest, where k = V).

    Raises:
        UserError: the rest is not stored at `temperature`.
    """
    scaled = soft_labels.topk_logits / temperature
    if not soft_labels.rest_log_sum_exp:
        return scaled.log_softmax(dim=-1)
    check_stored(temperature, list(soft_labels.rest_log_sum_exp))
    rest = soft_labels.rest_log_sum_exp[temperature]
    return torch.cat([scaled, rest[:, None]], dim=-1).log_softmax(dim=-1)


def replay_log_probabilities(
    hidden: torch.Tensor, head: OutputHead, soft_labels: SoftLabels, temperature: float
) -> torch.Tensor:
    """Teacher log-probabilities `[K, V]` rebuilt from the last hidden states `[K, d]`; see `rebuilt_`."""
    return rebuilt_(head_logits(head, hidden).float(), soft_labels, temperature)


def rebuilt_(rows: torch.Tensor, soft_labels: SoftLabels, temperature: float) -> torch.Tensor:
    """Teacher log-probabilities `[K, V]` from its logits as its hidden states give them, float32, which are used up.

    The stored logits are put in as they are. The rest is brought to their level by its mass: at a stored temperature
    it then has the exact mass; at others, that of the nearest stored one (by ratio) is exact.
    """
    ids, top = soft_labels.topk_ids, soft_labels.topk_logits / temperature
    if ids.shape[-1] == rows.shape[-1]:
        return top.log_softmax(dim=-1)
    if not soft_labels.rest_log_sum_exp:
        return rows.div_(temperature).scatter_(-1, ids, top).log_softmax(dim=-1)
    nearest = min(soft_labels.rest_log_sum_exp, key=lambda stored: abs(math.log(stored / temperature)))
    rest = soft_labels.rest_log_sum_exp[nearest][:, None]
    # Within one buffer: a row of logits is large.
    rows.div_(nearest).scatter_(-1, ids, -torch.inf)
    rows += rest - rows.logsumexp(dim=-1, keepdim=True)
    if nearest != temperature:
        rows *= nearest / temperature
        rest = rows.logsumexp(dim=-1, keepdim=True)
    total = torch.cat([top, rest], dim=-1).logsumexp(dim=-1, keepdim=True)
    return rows.sub_(total).scatter_(-1, ids, top - total)


def check_stored(temperature: float, stored: Sequence[float]) -> None:
    """Refuses a temperature at which the mass of the rest is not stored.

    Raises:
        UserError: names the temperatures that are.
    """
    if temperature not in stored:
        listed = ", ".join(f"{value:g}" for value in stored)
        raise UserError(
            f"soft_labels: bucket needs a temperature that the cache stores ({listed}), not {temperature:g}; "
            "use one of these, or soft_labels: replay"
        )
