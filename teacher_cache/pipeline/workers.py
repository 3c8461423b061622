"""What runs on Ray workers with a teacher: the codebook made, units asked.

Each call takes and gives back a small dictionary. What goes wrong comes back as `error`, because an exception would
stop the whole dataset.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from teacher_cache.errors import UserError
from teacher_cache.format import attempts, manifest, token_counts
from teacher_cache.format.cache import Cache
from teacher_cache.format.manifest import Shard
from teacher_cache.format.row import Row
from teacher_cache.format.sequences import Sequences, StoredSequence
from teacher_cache.storage.store import Store

if TYPE_CHECKING:  # torch is loaded only by who asks a teacher
    from teacher_cache.format.coder import Coder
    from teacher_cache.units import MaskedUnit


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a unit."""

    view: int
    unit: int
    shard_json: str = ""
    """Empty where there is none."""
    is_new: bool = False
    """Computed by this call."""
    teacher_s: float = 0.0
    """For how long the teacher was asked."""
    error: str = ""
    is_fatal: bool = False
    """No fault of the unit: every other one would meet it."""

    @cached_property
    def shard(self) -> Shard:
        return TypeAdapter(Shard).validate_json(self.shard_json)


class _TeacherWorker:
    """A Ray Data actor with a teacher. Gets paths and names, never weights."""

    def __init__(
        self, *, url: str, single_writer: bool, run: str, batch_tokens: int, num_threads: int, on_gpu: bool
    ) -> None:
        import torch

        from teacher_cache.task_teacher import teacher_of
        from teacher_cache.teacher import load_teacher
        from teacher_cache.units import vocabulary_of

        torch.set_num_threads(num_threads)
        self._num_threads = num_threads
        self._cache = Cache(Store(url, single_writer=single_writer))
        self._identity, self._store = self._cache.spec, self._cache.store
        self._device = torch.device("cuda" if on_gpu else "cpu")
        loaded = load_teacher(str(self._cache.teacher.folder), objective=self._identity.objective)
        masks_rare = self._identity.masks_rare
        mask_probability = token_counts.read_mask_probability(self._store) if masks_rare else None
        self._sequences = Sequences(self._store)
        self._vocabulary = vocabulary_of(loaded.tokenizer, mask_probability)
        self._asking = {
            "teacher": teacher_of(loaded, self._identity, self._device),
            "pad_id": loaded.tokenizer.pad_token_id,
            "identity": self._identity,
        }
        self._run, self._batch_tokens = run, batch_tokens

    def _masked(self, view: int, sequences: Sequence[StoredSequence]) -> "MaskedUnit":
        from teacher_cache.units import mask_unit

        return mask_unit(sequences, view, identity=self._identity, vocabulary=self._vocabulary)


class CodebookWorker(_TeacherWorker):
    """Makes the cache's codebook of the sequences named in `ids`."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        try:
            # Other builders make it at the same time: only of its own does a run know that they died.
            num_before = len(attempts.marks(self._store, 0, run=self._run).get(attempts.CODEBOOK, []))
            if num_before >= attempts.MAX_ATTEMPTS:
                return {"error": f"the codebook is given up: {num_before} times the process that made it died"}
            attempts.begin(self._store, view=0, unit=attempts.CODEBOOK, run=self._run)
            self._make([int(sequence) for sequence in item["ids"]], max(1, self._batch_tokens // 4**num_before))
        except Exception as failure:
            return {"error": _told(failure, "the codebook failed")}
        return {"error": ""}

    def _make(self, ids: list[int], batch_tokens: int) -> None:
        from teacher_cache.codebooks import make_codebook
        from teacher_cache.format import codebook

        made = make_codebook(
            self._masked(0, [next(self._sequences.read(sequence, sequence + 1)) for sequence in ids]),
            head=self._cache.head.to(self._device),
            num_layers=self._cache.teacher.num_layers,
            batch_tokens=batch_tokens,
            **self._asking,
        )
        codebook.create(self._store, made)


class UnitWorker(_TeacherWorker):
    """Asks the teacher unit by unit, and commits what it said unless the driver does.

    Two threads may call it at once: while one unit is encoded and written, the teacher is asked about the other.
    A unit that the teacher cannot do is tried again with a quarter of the micro-batch, and given up after
    `attempts.MAX_ATTEMPTS`. Whatever else goes wrong, as with the store, would go wrong with every unit: it is fatal.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._asking_turn, self._encoding_turn = threading.RLock(), threading.RLock()
        # Encoding takes a twelfth of the time of asking on as many threads, and without a GPU both share the cores.
        self._encoding_threads = self._num_threads if self._device.type == "cuda" else max(1, self._num_threads // 4)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        view, unit = int(item["view"]), int(item["unit"])
        try:
            return asdict(self._attempt(view, unit) if item["repair"] else self._commit(view, unit))
        except Exception as failure:
            return asdict(
                Receipt(view=view, unit=unit, error=_told(failure, f"unit {unit} of view {view} failed"), is_fatal=True)
            )

    def _commit(self, view: int, unit: int) -> Receipt:
        with contextlib.suppress(FileNotFoundError):  # by another builder, or by an actor that died before it told
            there = manifest.read_commit(self._store, view, unit, self._identity.fingerprint)
            return Receipt(view=view, unit=unit, shard_json=_to_json(there))
        made = self._attempt(view, unit)
        if not made.error and not self._store.single_writer:
            shard = manifest.commit(self._store, view, made.shard, self._identity.fingerprint, teacher_s=made.teacher_s)
            attempts.withdraw(self._store, view, unit)
            return replace(made, shard_json=_to_json(shard))
        return made

    def _attempt(self, view: int, unit: int) -> Receipt:
        """Of a shard that nothing lists yet, or of a unit that has had its attempts."""
        masked = self._unit(view, unit)
        for _ in range(attempts.MAX_ATTEMPTS):
            num_before = len(attempts.marks(self._store, view).get(unit, []))
            if num_before >= attempts.MAX_ATTEMPTS:
                break
            # What was marked before may end this process again; other units must not be blamed for that time and again.
            with self._alone() if num_before else contextlib.nullcontext():
                mark = attempts.begin(self._store, view=view, unit=unit, run=self._run)
                try:
                    rows, teacher_s = self._ask(masked, max(1, self._batch_tokens // 4**num_before))
                    shard_json = _to_json(self._write(view, unit, rows))
                    return Receipt(view=view, unit=unit, shard_json=shard_json, is_new=True, teacher_s=teacher_s)
                except _UnitError as failure:
                    attempts.fail(self._store, mark, _told(failure.cause, f"unit {unit} of view {view} failed"))
        return Receipt(view=view, unit=unit, error="given up")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._asking_turn, self._encoding_turn:
            yield

    def _unit(self, view: int, unit: int) -> "MaskedUnit":
        size = self._identity.unit_sequences
        return self._masked(view, list(self._sequences.read(unit * size, (unit + 1) * size)))

    def _ask(self, masked: "MaskedUnit", batch_tokens: int) -> tuple[list[Row], float]:
        """Rows, and how long it took (s)."""
        import torch

        from teacher_cache.units import ask_unit

        with self._asking_turn, _failing_unit():
            torch.set_num_threads(self._num_threads)  # of this thread
            start = time.perf_counter()
            rows = ask_unit(masked, batch_tokens=batch_tokens, **self._asking)
            return rows, time.perf_counter() - start

    def _write(self, view: int, unit: int, rows: list[Row]) -> Shard:
        import torch

        from teacher_cache.format.shard import encode_unit, put_shard

        with self._encoding_turn:
            torch.set_num_threads(self._encoding_threads)  # of this thread
            coder = self._coder
            with _failing_unit():
                encoded = encode_unit(rows, self._identity, coder, view=view, unit=unit)
        return put_shard(self._store, rows, encoded, view=view, unit=unit)

    @cached_property
    def _coder(self) -> "Coder":
        return self._cache.coder.to(self._device)


class _UnitError(Exception):
    """What the teacher or a code threw at one unit."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextlib.contextmanager
def _failing_unit() -> Iterator[None]:
    """What goes wrong in here is a unit's own."""
    import torch

    try:
        yield
    except Exception as failure:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise _UnitError(failure) from None


def _to_json(shard: Shard) -> str:
    return TypeAdapter(Shard).dump_json(shard).decode()


def _told(failure: Exception, what: str) -> str:
    """The message of a failure; what is no user's to mend is logged where it happened."""
    if isinstance(failure, UserError):
        return str(failure)
    logging.getLogger(__name__).error(what, exc_info=failure)
    return f"{type(failure).__name__}: {failure}"
