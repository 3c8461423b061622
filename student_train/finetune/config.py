"""What a user asks of fine-tuning: `FinetuneConfig`, one YAML file. Defaults are those of BERT on GLUE."""

import re
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from student_train.config import NonNegative, Positive, Share
from teacher_cache.format.spec import Url
from teacher_cache.shell.settings import STRICT
from teacher_cache.storage.urls import folders
from teacher_cache.tasks.config import TaskConfig

Name = Annotated[str, Field(min_length=1, max_length=100)]


def safe_name(name: str) -> str:
    """A model's or a task's name as part of a key: what is no letter, digit, dot, dash or underscore becomes `_`."""
    return re.sub(r"[^A-Za-z0-9._-]+|^[.-]", "_", name)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneExecution:
    """How the work is done; no part of what comes out, but for rounding."""

    num_workers: Annotated[int, Field(ge=0, strict=True)] = 1
    """Runs at a time, each on a Ray worker of its own; 0 makes one after the other in this process, without Ray."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of one GPU; None: a whole one where the Ray cluster has any, otherwise none."""
    cpus_per_worker: Positive = 1
    """Also the threads of a worker that trains on CPU."""
    address: str | None = None
    """A running Ray cluster; None: RAY_ADDRESS if set, otherwise a local Ray of this process's own."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneTask(TaskConfig):
    epochs: Positive | None = None
    """Passes over its train examples; None: as many as all tasks have. Scores on small tasks are steadier after more
    (Mosbach et al. 2021, arXiv 2006.04884, section 6)."""
    averaged: bool = True
    """Whether averages count it. BERT's left out WNLI, where the commonest class was not beaten (arXiv 1810.04805,
    section 4.1)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistillationConfig:
    """Learning a task from a fine-tuned teacher's cached logits, too: DistilBERT's second step of distillation (arXiv
    1910.01108, section 3), with the defaults of its authors' script."""

    caches: dict[Name, dict[Name, Url]] = field(default_factory=dict)
    """Model → task → the cache that `teacher-cache build` made of the task; all other runs learn from labels alone."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of both sides' logits; not of regression, where they are the answer itself."""
    soft_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the loss against the teacher; the rest is that of the true labels."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneConfig:
    """Each model is fine-tuned on each task with each learning rate and the first seed; the rate with the best score on
    dev is then taken for the other seeds, as in BERT (arXiv 1810.04805, appendix A.3)."""

    output: Url
    """Folder or URL for records and fine-tuned models."""
    models: Annotated[dict[Name, Url], Field(min_length=1)]
    """A folder, a URL or a hub name of each model, by the name that tables give it."""
    reference: str | None = None
    """The model that the others are held against; None: the first."""
    tasks: Annotated[dict[Name, FinetuneTask], Field(min_length=1)]
    lrs: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (2e-5, 3e-5, 5e-5)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (1, 2, 3)
    """Of the head's starting weights, the order of examples, and dropout."""
    epochs: Positive = 3
    batch_size: Positive = 32
    weight_decay: NonNegative = 0.01
    """Of AdamW; not of biases and layer norms."""
    warmup_share: Share = 0.1
    """Share of all steps over which the learning rate rises, before it falls to 0 linearly."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What forward and backward passes compute in; parameters and optimiser stay float32."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    keep_models: bool = False
    """All fine-tuned models, and not only that of the best learning rate and the first seed for each model and task."""
    execution: FinetuneExecution = field(default_factory=FinetuneExecution)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "FinetuneConfig":
        for key, names in {"models": list(self.models), "tasks": list(self.tasks)}.items():
            taken: dict[str, str] = {}
            for name in names:
                other = taken.setdefault(safe_name(name).lower(), name)
                if other != name:
                    raise ValueError(f"{key} {other!r} and {name!r} would share a folder; rename one")
        for key, given in {"lrs": self.lrs, "seeds": self.seeds}.items():
            if len(set(given)) < len(given):
                raise ValueError(f"{key} names a value more than once")
        return self

    @model_validator(mode="after")
    def _reference_is_a_model(self) -> "FinetuneConfig":
        if self.reference is not None and self.reference not in self.models:
            raise ValueError(f"reference is {self.reference!r}, models are {', '.join(self.models)}")
        return self

    @model_validator(mode="after")
    def _caches_are_of_runs(self) -> "FinetuneConfig":
        for model, caches in self.distillation.caches.items():
            if model not in self.models:
                raise ValueError(f"distillation.caches names {model!r}, models are {', '.join(self.models)}")
            for task in caches:
                if task not in self.tasks:
                    raise ValueError(f"distillation.caches.{model} names {task!r}, tasks are {', '.join(self.tasks)}")
        return self

    @property
    def reference_model(self) -> str:
        return self.reference or next(iter(self.models))


def places(config: FinetuneConfig) -> dict[str, list[str]]:
    """Files and URLs that all machines must find, by key; what is no folder here counts as a name on the hub."""
    found = {"models": list(folders(*config.models.values()))}
    for name, task in config.tasks.items():
        found[f"tasks.{name}"] = [url for url in (task.folder, task.train, task.dev, *folders(task.hub)) if url]
    found |= {f"distillation.caches.{model}": list(of.values()) for model, of in config.distillation.caches.items()}
    return found | {"output": [config.output]}
