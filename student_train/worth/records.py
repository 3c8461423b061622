"""What `student-train worth` writes, and reading it back.

| key | what it holds |
|---|---|
| `worth.json` | `Worth`, with its own digest |
| `worth.md` | the same as tables, to paste |
| `<figure>.svg`, `<figure>.png` | the figures of `figures` |
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from student_train.finetune.results import Average
from teacher_cache.errors import UserError
from teacher_cache.format import documents
from teacher_cache.storage.store import Store

WORTH_KEY, MARKDOWN_KEY = "worth.json", "worth.md"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model on a task's dev set, over seeds; all in per cent."""

    median: float
    least: float
    most: float
    num_seeds: int
    is_finished: bool
    """Whether each learning rate and seed was tried."""
    retention: float | None
    """The median over the reference's; None where that is missing or not above 0."""
    retention_least: float | None
    """Over all pairs of a seed of the model and one of the reference; None where one of these is not above 0."""
    retention_most: float | None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of forward passes of one setting, against the reference's in the same rounds."""

    device: str
    """`cpu`, or a GPU's name."""
    dtype: str
    batch_sequences: int
    sequence_length: int
    """Tokens; none is padding."""
    num_rounds: int
    batch_s: float
    """Median of the rounds."""
    speedup: float
    """Median over the rounds of the reference's seconds over the model's; 1 for the reference."""
    speedup_low: float
    """With `speedup_high`: 95 % interval of the median."""
    speedup_high: float


@dataclass(frozen=True, kw_only=True)
class CacheCost:
    """A teacher cache that a student learned from."""

    url: str
    teacher: str
    num_views: int
    """That the student has read."""
    num_bytes: int
    """Of these views' shards, if each weighs what the first does."""
    teacher_s: float | None
    """Device seconds for which the teacher was asked about these views; None: not known."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it took to make a student."""

    training_s: float
    """By the clock, over all attempts."""
    num_workers: int
    device: str
    num_steps: int
    num_tokens: int
    """That the student read, over all steps."""
    caches: list[CacheCost]


@dataclass(frozen=True, kw_only=True)
class ModelWorth:
    name: str
    path: str
    model_type: str
    num_layers: int
    width: int
    num_parameters: int
    """Of the encoder."""
    num_bytes: int
    """Of these parameters in float32."""
    scores: dict[str, Score]
    """By task; without the tasks of which no run finished."""
    average: Average | None
    """None: there is no task that both the model and the reference have scores of."""
    taught: list[str]
    """Tasks that it learned from a teacher's cache, too."""
    cost: Cost | None
    """None: it is not the `model/` of a run of `student-train run`, or that run is not there."""


@dataclass(frozen=True, kw_only=True)
class TaskWorth:
    name: str
    kind: str
    metric: str
    """Which `Score` is of."""
    num_dev: int
    averaged: bool = True
    """Whether averages count it."""


QUIET_LOAD = 0.25
"""Of a core: above it, other work may decide what is measured."""


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Of all models, measured in one go."""

    of_models: dict[str, list[Speed]]
    """By name; each has the same settings in the same order."""
    load_per_core: float
    """What the machine did besides: load average of the minute before, over the number of cores."""
    machine: dict[str, Any]
    versions: dict[str, str]

    @property
    def is_quiet(self) -> bool:
        return self.load_per_core <= QUIET_LOAD


@dataclass(frozen=True, kw_only=True)
class Worth:
    """Models beside their reference."""

    results: str
    """Where the fine-tuning lies."""
    reference: str
    tasks: list[TaskWorth]
    models: Annotated[list[ModelWorth], Field(min_length=1)]
    """The reference first."""
    notes: list[str]
    """What is missing, and what that means."""
    speeds: Speeds | None
    """None: they were not measured."""

    @property
    def num_averaged(self) -> int:
        """Tasks that averages count."""
        return sum(task.averaged for task in self.tasks)

    @property
    def students(self) -> list[ModelWorth]:
        """All models but the reference."""
        return self.models[1:]


def write_worth(store: Store, worth: Worth) -> None:
    store.replace(WORTH_KEY, documents.dump(asdict(worth)))


def read_worth(url: str) -> Worth:
    """What `student-train worth` wrote to a folder or URL.

    Raises:
        UserError: there is nothing of it, or it is damaged or of another version.
    """
    store = Store(url)
    name, again = f"{store.url}/{WORTH_KEY}", "run `student-train worth` again"
    try:
        document = documents.read(store, WORTH_KEY, remedy=again)
    except FileNotFoundError:
        raise UserError(f"{store.url} holds no {WORTH_KEY}; give what `student-train worth` wrote") from None
    try:
        return from_plain(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise UserError(f"{name} is of another version: {where}: {first['msg']}; {again}") from None


def from_plain(values: dict[str, Any]) -> Worth:
    """The inverse of `asdict`.

    Raises:
        ValidationError: of pydantic; these are no values of a worth.
    """
    found: Worth = TypeAdapter(Worth).validate_python(values)
    return found
