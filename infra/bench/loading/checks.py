"""Whether a contender hands over what the cache holds: each row once, with equal content."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from infra.bench.loading.contender import in_batches
from student_train.batch import MicroBatch
from teacher_cache.format.cache import open_cache

Arrays = dict[str, torch.Tensor]


class MismatchError(Exception):
    """A row is not what the cache holds."""


def check(batches: Iterable[MicroBatch], reference: str, tolerance: float) -> list[int]:
    """Places in the reference cache of the rows of some batches, as they come.

    A row is found by its masked tokens. Hidden states may have a mean cosine of 1 - `tolerance` with the reference's.

    Raises:
        MismatchError: a row is none of the reference's, or differs from it.
    """
    expected = {_key(row): (place, row) for place, row in enumerate(_rows_of(in_batches(open_cache(reference).rows())))}
    places = []
    for row in _rows_of(batches):
        if _key(row) not in expected:
            raise MismatchError("it hands over a sequence that the cache does not hold")
        place, whole = expected[_key(row)]
        _compare(row, whole, place, tolerance)
        places.append(place)
    return places


def _key(row: Arrays) -> bytes:
    return bytes(row["input_ids"].numpy().tobytes())


def _rows_of(batches: Iterable[MicroBatch]) -> Iterator[Arrays]:
    for batch in batches:
        length = batch.input_ids.shape[1]
        for place, mask in enumerate(batch.attention_mask.bool()):
            yield {"input_ids": batch.input_ids[place][mask], **_targets(batch, place, length)}


def _targets(batch: MicroBatch, place: int, length: int) -> dict[str, Any]:
    """Of one row of a batch."""
    labels, kept = batch.label_places // length == place, batch.kept_places // length == place
    soft = batch.soft_labels
    assert batch.hidden is not None
    return {
        "label_positions": batch.label_places[labels] % length,
        "label_ids": batch.label_ids[labels],
        "kept_positions": batch.kept_places[kept] % length,
        "weights": batch.weights[kept],
        "topk_ids": soft.topk_ids[kept],
        "topk_logits": soft.topk_logits[kept],
        **{f"rest at {temperature}": rest[kept] for temperature, rest in soft.rest_log_sum_exp.items()},
        "hidden": batch.hidden[kept],
    }


def _compare(row: Arrays, whole: Arrays, place: int, tolerance: float) -> None:
    differ = [name for name in whole if name != "hidden" and not torch.equal(row[name], whole[name])]
    if differ or row.keys() != whole.keys():
        raise MismatchError(f"row {place} differs in {', '.join(differ) or 'its fields'}")
    cosine = float(F.cosine_similarity(row["hidden"], whole["hidden"], dim=-1).mean())
    if len(whole["hidden"]) and not cosine >= 1 - tolerance:
        raise MismatchError(f"row {place} has hidden states of mean cosine {cosine:.4f}, allowed is {1 - tolerance}")


def check_places(places: Iterable[int], num_rows: int) -> None:
    """Raises a MismatchError if any of the rows came twice or never."""
    counts = np.bincount(np.fromiter(places, np.int64), minlength=num_rows)
    if (counts != 1).any() or len(counts) != num_rows:
        raise MismatchError(f"{int((counts == 0).sum())} rows never came, {int((counts > 1).sum())} came twice or more")
