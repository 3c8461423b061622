"""What a user asks of a cache: `CacheSpec`, one YAML file.

Everything but `cache`, `views` and `execution` decides the cache's content and is part of its fingerprint. With a
`task` in place of a corpus it is a `TaskCacheSpec`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from teacher_cache.format.spec import (
    MASKED_LM,
    Dtype,
    HiddenConfig,
    KeepConfig,
    MaskedLM,
    MaskingConfig,
    Packing,
    Positive,
    SequenceLength,
    SoftLabelsConfig,
    Url,
)
from teacher_cache.shell import settings
from teacher_cache.shell.settings import STRICT
from teacher_cache.storage.urls import folders, refuse_url
from teacher_cache.tasks.config import TaskConfig

MAX_UNIT_SEQUENCES = 2**16
"""A shard's list of row groups grows with them, and readers take no longer one."""
UnitSequences = Annotated[int, Field(gt=0, le=MAX_UNIT_SEQUENCES, strict=True)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CorpusConfig:
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, folders' globs or any fsspec URL, in order; a glob's files are sorted by name."""
    format: Literal["auto", "text", "text_file", "jsonl", "parquet"] = "auto"
    """`text`: an empty line ends a document; `text_file`: a document a file; `auto`: by the file's extension."""
    text_field: str = "text"
    """Where the text stands in a JSON line or a Parquet row."""
    sequence_length: SequenceLength = 512
    """Most tokens of a sequence, [CLS] and [SEP] included."""
    packing: Packing = "documents"
    """`documents`: no sequence holds two documents; `full`: sequences are filled, never across files."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TeacherConfig:
    model: Url
    """Hub name or folder of a masked-LM checkpoint, for example `bert-base-uncased`; of a task's cache: of a model that
    was fine-tuned on the task."""
    revision: str | None = None
    """Hub commit, tag or branch; None is the hub's main."""
    dtype: Dtype = "float32"
    """What the encoder computes in."""

    _no_url = field_validator("model")(refuse_url)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExecutionConfig:
    """How the work is done; no part of a cache's identity."""

    num_workers: Annotated[int, Field(ge=0, strict=True)] | tuple[Positive, Positive] = 1
    """Teacher actors, or [min, max] to scale between; 0 works in this process, without Ray."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """None: one each where the Ray cluster has GPUs, otherwise none."""
    cpus_per_worker: Positive | None = None
    """Also a worker's threads. None: one each on a cluster, otherwise this machine's, shared between the workers."""
    batch_tokens: Positive = 16384
    """Tokens that a worker's teacher is asked about at once, padding included: a micro-batch of a GPU, one of each of a
    CPU's threads together."""
    address: str | None = None
    """A running Ray cluster; None: RAY_ADDRESS if set, otherwise a local Ray of this process's own."""

    @property
    def max_workers(self) -> int:
        """That work at once; in this process it is one."""
        return max(1, self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1])

    @field_validator("num_workers")
    @classmethod
    def _ordered(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(workers, tuple) and workers[0] > workers[1]:
            raise ValueError("num_workers must be [min, max] with min <= max")
        return workers


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CacheSpec:
    cache: Url
    """Folder or URL (s3://bucket/prefix) of the cache."""
    objective: MaskedLM = MASKED_LM
    corpus: CorpusConfig
    teacher: TeacherConfig
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    views: Positive = 3
    """Random maskings of the whole corpus; student epoch e reads view e mod views."""
    keep: KeepConfig = field(default_factory=KeepConfig)
    soft_labels: SoftLabelsConfig = field(default_factory=SoftLabelsConfig)
    hidden: HiddenConfig = field(default_factory=HiddenConfig)
    unit_sequences: UnitSequences = 1024
    """Sequences of a unit: what is computed, retried and committed together."""
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """Files, folders and URLs that are read, by key."""
        return {"corpus.paths": self.corpus.paths, "teacher.model": folders(self.teacher.model)}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskCacheSpec:
    """A cache of what a fine-tuned teacher answers of a task's training examples, each once: nothing is masked, and
    every output is kept as it is."""

    cache: Url
    """Folder or URL (s3://bucket/prefix) of the cache."""
    task: TaskConfig
    teacher: TeacherConfig
    unit_sequences: UnitSequences = 1024
    """Sequences of a unit: what is computed, retried and committed together."""
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """Files and URLs that are read, by key."""
        named = {f"task.{key}": getattr(self.task, key) for key in ("folder", "train", "dev")}
        found = {key: (url,) for key, url in named.items() if url is not None}
        return {**found, "task.hub": folders(self.task.hub), "teacher.model": folders(self.teacher.model)}


def spec_type(values: Mapping[str, Any]) -> type[CacheSpec | TaskCacheSpec]:
    """What plain values are of: they name a `task`, or a corpus."""
    return TaskCacheSpec if "task" in values else CacheSpec


def load(path: str, overrides: Sequence[str]) -> CacheSpec | TaskCacheSpec:
    """Reads the YAML file of a cache, once: it may be a pipe.

    Raises:
        UserError: see `settings.load`.
    """
    values = settings.resolved(settings.as_written(path, overrides), source=path)
    return settings.parse(spec_type(values), values, source=path)
