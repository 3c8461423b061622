"""What a build asks its teacher, unit by unit, and what it may hear."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from teacher_cache import units
from teacher_cache.config import ExecutionConfig
from teacher_cache.format import attempts
from teacher_cache.format.row import Row
from teacher_cache.storage.store import Store

IN_PROCESS = ExecutionConfig(num_workers=0, gpus_per_worker=0)
UNIT = 2
"""Of five; the one that is in trouble."""


def marks(cache: str) -> dict[int, list[str]]:
    return attempts.marks(Store(cache), 0)


@contextmanager
def asked(answer: Callable[[int, int, list[Row]], list[Row]] | None = None) -> Iterator[list[tuple[int, int]]]:
    """Lists unit and micro-batch tokens of each time the teacher is asked; `answer` may change what it says."""
    calls: list[tuple[int, int]] = []
    real = units.ask_unit

    def ask_unit(masked: units.MaskedUnit, **arguments: Any) -> list[Row]:
        unit = masked[0][0].sequence_id // 8
        calls.append((unit, arguments["batch_tokens"]))
        rows = real(masked, **arguments)
        return answer(unit, len(calls), rows) if answer else rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "ask_unit", ask_unit)
        yield calls


def fails_at(unit: int, error: Exception) -> Callable[[int, int, list[Row]], list[Row]]:
    def answer(asked_unit: int, _: int, rows: list[Row]) -> list[Row]:
        if asked_unit == unit:
            raise error
        return rows

    return answer
