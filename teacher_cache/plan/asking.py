"""A teacher asked about a sample on the device at hand, as a build's worker asks it, with the time that it takes."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from teacher_cache.codebooks import make_codebook, sample_ids
from teacher_cache.format import codebook
from teacher_cache.format.coder import Coder
from teacher_cache.format.row import Row
from teacher_cache.format.sequences import StoredSequence
from teacher_cache.format.shard import encode_unit
from teacher_cache.format.spec import Identity
from teacher_cache.masking import Vocabulary
from teacher_cache.storage.store import Store
from teacher_cache.targets.heads import head_of
from teacher_cache.teacher import LoadedTeacher, Teacher
from teacher_cache.units import HEAD_POSITIONS, MaskedUnit, ask_unit, mask_unit

TIMED_S, MAX_PASSES = 2.0, 5
"""A quick device does the same again, until so much time or so many passes are over."""
WARM_UP_SEQUENCES = 8

T = TypeVar("T")


class Asker:
    """A teacher on a device, and all that a unit needs beside it."""

    def __init__(
        self,
        loaded: LoadedTeacher,
        identity: Identity,
        vocabulary: Vocabulary,
        *,
        batch_tokens: int,
        device: torch.device,
    ) -> None:
        loaded.model.requires_grad_(False)
        self._identity, self._vocabulary = identity, vocabulary
        self._num_layers = loaded.model.config.num_hidden_layers
        self._head = head_of(loaded.model).to(device, torch.float32)
        self._teacher = Teacher(loaded, getattr(torch, identity.teacher.dtype), device)
        self._asking: dict[str, Any] = {
            "teacher": self._teacher,
            "pad_id": loaded.tokenizer.pad_token_id,
            "identity": identity,
            "batch_tokens": batch_tokens,
        }

    def make_codebook(self, store: Store, stored: Sequence[StoredSequence]) -> float:
        """Makes the codebook of these sequences, if one is needed; the seconds it took."""
        if not codebook.is_needed(self._identity):
            return 0.0
        num_tokens = sum(len(sequence.input_ids) for sequence in stored)
        ids = sample_ids(self._identity, num_sequences=len(stored), num_tokens=num_tokens)
        start = time.perf_counter()
        made = make_codebook(
            self._masked([stored[place] for place in ids], 0),
            head=self._head,
            num_layers=self._num_layers,
            **self._asking,
        )
        codebook.create(store, made)
        return time.perf_counter() - start

    def coder(self, store: Store) -> Coder:
        """Of the codebook that was made."""
        read = codebook.read(store, self._identity, vocab_size=self._head.decoder_weight.shape[0])
        return Coder(codebook=read, head=self._head if read.hidden else None).to(self._teacher.device)

    def ask(self, units: Sequence[Sequence[StoredSequence]], views: Sequence[int]) -> tuple[list[list[Row]], float]:
        """Answers to units, each in its view, and the seconds of all; what the first call takes longer is left out."""
        masked = [self._masked(unit, view) for unit, view in zip(units, views, strict=True)]
        ask_unit(masked[0][:WARM_UP_SEQUENCES], **self._asking)
        return timed(lambda: [ask_unit(unit, **self._asking) for unit in masked])

    def _masked(self, unit: Sequence[StoredSequence], view: int) -> MaskedUnit:
        return mask_unit(unit, view, identity=self._identity, vocabulary=self._vocabulary)

    def encode(
        self, answers: Sequence[Sequence[Row]], views: Sequence[int], coder: Coder
    ) -> tuple[list[tuple[bytes, bytes | None]], float]:
        """The bytes of units, and the seconds of all."""
        numbered = list(enumerate(zip(answers, views, strict=True)))
        encode_unit(answers[0][:WARM_UP_SEQUENCES], self._identity, coder, view=0, unit=0)
        return timed(
            lambda: [encode_unit(rows, self._identity, coder, view=view, unit=unit) for unit, (rows, view) in numbered]
        )

    def head_s(self) -> float:
        """Seconds of the output head over one position."""
        states = torch.randn(HEAD_POSITIONS, self._head.dense_weight.shape[1], device=self._teacher.device)
        self._teacher.logits(states)
        _, seconds = timed(lambda: self._teacher.logits(states).sum().item())
        return seconds / HEAD_POSITIONS


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` gives, and the seconds of one pass: the mean of several where they are quick."""
    start, passes = time.perf_counter(), 0
    while True:
        result, passes = work(), passes + 1
        seconds = time.perf_counter() - start
        if seconds >= TIMED_S or passes == MAX_PASSES:
            return result, seconds / passes


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """As many threads as a worker takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
