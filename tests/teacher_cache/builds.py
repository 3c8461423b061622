"""Builds of a small corpus, and what they leave."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher_cache import CacheSpec, build, open_cache
from teacher_cache.pipeline import BuildSummary
from teacher_cache.teacher import Teacher
from tests import families

MakeSpec = Callable[..., CacheSpec]
NUM_DOCUMENTS = 40


def make_documents(seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(families.WORDS, k=rng.randint(2, 40))) for _ in range(NUM_DOCUMENTS)]


DOCUMENTS = make_documents()


def run(spec: CacheSpec) -> BuildSummary:
    return build(spec, progress=False)


def shard_digests(cache: str, view: int = 0) -> list[tuple[int, str, str | None]]:
    shards = open_cache(cache).manifest(view).shards
    return [(shard.unit, shard.labels.sha256, shard.hidden.sha256 if shard.hidden else None) for shard in shards]


def snapshot(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@contextmanager
def counted_calls(answer: Callable[[int, torch.Tensor], torch.Tensor] | None = None) -> Iterator[list[int]]:
    """Lists the sequences of each call of the teacher; `answer` may change what a call gives."""
    calls: list[int] = []
    real = Teacher.encode

    def encode(self: Teacher, input_ids: torch.Tensor, *arguments: Any) -> dict[int, torch.Tensor]:
        calls.append(len(input_ids))
        states = real(self, input_ids, *arguments)
        return {layer: answer(len(calls), state) for layer, state in states.items()} if answer else states

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "encode", encode)
        yield calls
