"""What a user asks of a student: `StudentSpec`, one YAML file. Defaults are DistilBERT's published recipe."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from teacher_cache.format.spec import Url
from teacher_cache.shell.settings import STRICT
from teacher_cache.storage.urls import normal_url, refuse_url

Positive = Annotated[int, Field(gt=0, strict=True)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StudentConfig:
    num_layers: Positive | None = None
    """None: as many as `teacher_layers`, otherwise half of the teacher's."""
    teacher_layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Teacher layers (from 0) that the student's layers start from; None: evenly spread."""
    width: Positive | None = None
    """Size of the hidden states; None: the teacher's. Another width needs initial_weights other than `teacher`."""
    num_heads: Positive | None = None
    """Attention heads; None: the teacher's."""
    initial_weights: str = "teacher"
    """`teacher`, `random`, or the folder of a student to go on from."""
    dropout: Share = 0.1
    """While it is distilled; what comes out has the teacher's in its config.json, for fine-tuning."""
    frozen_embeddings: bool = False
    """Embeddings keep their starting weights, and with them the output head's decoder, which is tied to them."""

    _no_url = field_validator("initial_weights")(refuse_url)

    @property
    def initial_folder(self) -> str | None:
        """Of a saved student to go on from; None: none is."""
        return None if self.initial_weights in ("teacher", "random") else self.initial_weights

    @model_validator(mode="after")
    def _layers_agree(self) -> "StudentConfig":
        layers = self.teacher_layers
        if layers is not None and not layers:
            raise ValueError("teacher_layers must name at least one layer")
        if layers and self.num_layers and len(layers) != self.num_layers:
            raise ValueError(f"teacher_layers names {len(layers)} layers, num_layers is {self.num_layers}")
        if self.initial_weights != "teacher" and layers:
            raise ValueError("teacher_layers needs initial_weights: teacher; write num_layers for how many")
        if self.initial_weights == "teacher" and (self.width or self.num_heads):
            raise ValueError("width and num_heads other than the teacher's need initial_weights: random")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LossWeights:
    """Weights of the triple loss; the published run's (huggingface/transformers issue 2013)."""

    soft_labels: NonNegative = 5.0
    masked_lm: NonNegative = 2.0
    cosine: NonNegative = 1.0

    @model_validator(mode="after")
    def _something_is_learned(self) -> "LossWeights":
        if self.soft_labels == self.masked_lm == self.cosine == 0:
            raise ValueError("all loss weights are 0: nothing would be learned; raise one of them")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LossConfig:
    temperature: Annotated[float, Field(gt=0)] = 2.0
    weights: LossWeights = field(default_factory=LossWeights)
    soft_labels: Literal["bucket", "replay"] = "replay"
    """`replay` rebuilds whole teacher rows from hidden states; `bucket` uses the top k and one bucket for the rest."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig:
    """AdamW with linear warm-up and linear decay to 0."""

    lr: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: NonNegative = 0.0
    warmup_share: Share = 0.05
    """Share of all steps over which the learning rate rises."""
    clip_norm: Annotated[float, Field(gt=0)] = 5.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExecutionConfig:
    """How the work is done; no part of what is learned, but for rounding."""

    num_workers: Annotated[int, Field(ge=0, strict=True)] | tuple[Positive, Positive] = 1
    """Ray Train workers, or the least and the most of them as the cluster grows and shrinks; 0 trains in this process,
    without Ray."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """None: one each where the Ray cluster has GPUs, otherwise none."""
    cpus_per_worker: Positive = 1
    """Also the threads of a worker that trains on CPU."""
    micro_batch_tokens: Positive = 16384
    """Tokens of a micro-batch on one worker, padding included."""
    checkpoint_steps: Positive = 500
    """Optimiser steps between checkpoints; the last step always makes one."""
    log_steps: Positive = 10
    """Optimiser steps between log lines."""
    evaluation_steps: Positive = 500
    """Optimiser steps between evaluations on the rows held out; the last step always makes one."""
    gradient_checkpointing: bool = False
    """Keep no activations, compute them again in the backward pass: less memory, more time."""
    mlflow: str | None = None
    """Tracking URI of MLflow: a server's, or with all of MLflow installed `sqlite:///` and a file; None: none."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker failures after which the run ends; each restarts from the newest whole checkpoint."""
    disk_cache: str | None = None
    """Folder for downloaded shards; None: a folder of the system's temporary directory."""
    resize_check_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between looks at whether the cluster has room for more workers, where `num_workers` is [min, max]; a
    change restarts all from the newest checkpoint."""
    address: str | None = None
    """A running Ray cluster; None: RAY_ADDRESS if set, otherwise a local Ray of this process's own."""

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @field_validator("num_workers")
    @classmethod
    def _min_is_not_above_max(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError("num_workers must be [min, max] with min <= max")
        return value

    @model_validator(mode="after")
    def _workers_share_no_gpu(self) -> "ExecutionConfig":
        if self.max_workers > 1 and 0 < (self.gpus_per_worker or 0) < 1:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker:g} for {self.max_workers} workers of one student, but NCCL"
                " connects no two on one GPU; set it to 1, or num_workers to 1"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StudentSpec:
    caches: Annotated[tuple[Url, ...], Field(min_length=1)]
    """Sealed caches of one teacher and tokenizer, read as one."""
    output: Url
    """Folder or URL for checkpoints, logs and the finished model."""
    student: StudentConfig = field(default_factory=StudentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_sequences: Positive = 4000
    """Sequences of an optimiser step, over all workers."""
    epochs: Positive | None = None
    """Passes over the caches; 3 where neither epochs nor steps is given."""
    steps: Positive | None = None
    """Optimiser steps, as an alternative to epochs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What forward and backward passes compute in; parameters and optimiser stay float32."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 56
    held_out_sequences: Annotated[int, Field(ge=0, strict=True)] = 0
    """Sequences set aside for evaluation, the same for every student of the same caches."""
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """Folders and URLs that are read, by key."""
        folder = self.student.initial_folder
        return {"caches": self.caches, "student.initial_weights": (folder,) if folder else ()}

    @model_validator(mode="after")
    def _one_length(self) -> "StudentSpec":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if len(set(map(normal_url, self.caches))) != len(self.caches):
            raise ValueError("caches names one more than once: its sequences would count twice")
        return self
