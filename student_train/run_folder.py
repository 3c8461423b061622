"""What a run leaves in its output, and reading it back.

| key | what it holds |
|---|---|
| `run.json` | `RunDescription`, written when the run starts |
| `metrics.jsonl` | a `StepReport` a line |
| `held_out.jsonl` | a `HeldOutReport` a line; absent where nothing was held out |
| `summary.json` | `TrainSummary`, written when the run has finished |
| `model/` | the student as a Hugging Face folder |
| `diverged/` | a `DivergedBatch` of each worker and the parameters, where the newest attempt ended so |
| `checkpoints/`, `tensorboard/`, `ray/` | see `checkpoint`, TensorBoard, Ray Train |
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store

RUN_KEY, METRICS_KEY, HELD_OUT_KEY, SUMMARY_KEY = "run.json", "metrics.jsonl", "held_out.jsonl", "summary.json"
DIVERGED_PREFIX, MODEL_PREFIX = "diverged", "model"
MAX_BYTES = 2**30
LOSS_NAMES = ("soft_labels", "masked_lm", "cosine")

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one optimiser step did, over all workers."""

    step: int
    num_steps: int
    epoch: int
    losses: dict[str, float]
    """Means over the step's positions, unweighted; `total` is their weighted sum."""
    grad_norm: float
    lr: float
    num_sequences: int
    num_tokens: int
    rows_digest: int
    """Sum of a hash of each sequence read, modulo 2^62: the same for the same sequences in any order and split."""
    step_s: float
    """Since the end of the step before: reading included."""
    wait_s: float
    """Of these, spent by the first worker on waiting for its reader."""
    seconds: float
    """Training time so far, over all attempts."""
    peak_bytes: int
    """Most memory that the first worker has held so far: on its GPU, or of its process where it trains on CPU."""


@dataclass(frozen=True, kw_only=True)
class HeldOutReport:
    """How a student does on the rows set aside, after a step."""

    step: int
    seconds: float
    """Training time until then, over all attempts."""
    num_sequences: int
    losses: dict[str, float]
    """As in `StepReport`."""
    accuracy: float
    """Share of masked positions whose token the student ranks first."""


@dataclass(frozen=True, kw_only=True)
class CacheDescription:
    """What a run knows of a cache that it learns from; sizes are of one view, its first."""

    url: str
    fingerprint: str
    teacher: str
    """The teacher's name, as the cache's builder gave it."""
    num_views: int
    """That the run reads in turn: those that were sealed when it began."""
    num_sequences: int
    num_tokens: int
    num_kept: int
    label_bytes: int
    hidden_bytes: int


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What a run is, known when it starts."""

    spec: dict[str, Any]
    """The resolved configuration, as `StudentSpec` takes it."""
    caches: list[CacheDescription]
    model_type: str
    num_layers: int
    width: int
    num_parameters: int
    num_steps: int
    num_workers: int
    device: str
    """For example `cpu`, or a GPU's name."""
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """What a run learned and what it took."""

    output: str
    model: str
    """Where the Hugging Face folder lies."""
    fingerprints: list[str]
    """Of the caches that it learned from."""
    num_parameters: int
    num_steps: int
    num_workers: int
    losses: dict[str, float]
    """Of the last step."""
    held_out: dict[str, float]
    """Losses on the rows set aside, and `accuracy`, after the last step; empty where nothing was."""
    sequences_per_s: float
    """Over this attempt's steps, reading included; 0 if the run was already finished."""
    seconds: float
    """Training time, over all attempts."""


@dataclass(frozen=True, kw_only=True)
class DivergedBatch:
    """One worker's part of the global batch that a run diverged on."""

    step: int
    """The step that could not be made."""
    view: int
    sequences: list[tuple[int, int]]
    """Which of the caches, and the sequence's id there."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """All records of a run, finished or not."""

    url: str
    description: RunDescription
    steps: list[StepReport]
    held_out: list[HeldOutReport]
    summary: TrainSummary | None
    """None: not finished."""
    diverged: list[DivergedBatch]
    """Of each worker, where the newest attempt ended at a gradient that was not finite."""


def read_run(store: Store) -> Run:
    """Reads what a run has recorded so far.

    Raises:
        UserError: there is no run, or a record of it is damaged.
    """
    descriptions = read_records(store, RUN_KEY, RunDescription)
    if not descriptions:
        raise UserError(f"{store.url} holds no run of `student-train run`: there is no {RUN_KEY}")
    summaries = read_records(store, SUMMARY_KEY, TrainSummary)
    return Run(
        url=store.url,
        description=descriptions[0],
        steps=read_records(store, METRICS_KEY, StepReport),
        held_out=read_records(store, HELD_OUT_KEY, HeldOutReport),
        summary=summaries[0] if summaries else None,
        diverged=read_diverged(store),
    )


def read_diverged(store: Store) -> list[DivergedBatch]:
    """Each worker's part of the batch that the newest attempt diverged on; none if it did not.

    Raises:
        UserError: a record is damaged.
    """
    keys = [key for key in store.list(DIVERGED_PREFIX) if key.endswith(".json")]
    return [batch for key in keys for batch in read_records(store, key, DivergedBatch)]


def read_records(store: Store, key: str, kind: type[Record]) -> list[Record]:
    """The records of one object, a line each; none where there is no such object.

    Raises:
        UserError: a line is no such record.
    """
    record = TypeAdapter(kind)
    try:
        return [record.validate_json(line) for line in store.read(key, max_bytes=MAX_BYTES).splitlines()]
    except FileNotFoundError:
        return []
    except ValidationError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{store.url}/{key} is damaged or of another version: {reason}; start the run anew") from None


def write_records(store: Store, key: str, records: list[Any]) -> None:
    """Puts records, a line each, in place of what `key` held."""
    store.replace(key, "".join(json.dumps(asdict(record)) + "\n" for record in records).encode())
