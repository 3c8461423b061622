"""Identity: all that decides a cache's content, and nothing else. Its digest is the fingerprint.

`spec.json` holds it beside notes (paths, names) that decide nothing. The sections that a user writes are the
same types in the configuration and on disk.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from teacher_cache.errors import UserError
from teacher_cache.format import documents, spec_document
from teacher_cache.format.refusal import refusing
from teacher_cache.format.spec_document import FORMAT_VERSION, KEY, REMEDY
from teacher_cache.shell.settings import STRICT, explain, to_dict
from teacher_cache.storage.store import Store

MAX_SEQUENCE_LENGTH = 2**16 - 1
"""Positions are stored as uint16."""

Rate = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**53, strict=True)]
"""JSON numbers are exact below 2^53 (RFC 8785, section 3.2.2.3)."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SequenceLength = Annotated[int, Field(ge=3, le=MAX_SEQUENCE_LENGTH, strict=True)]
Url = Annotated[str, Field(min_length=1)]
Packing = Literal["documents", "full"]
TaskKind = Literal["classification", "regression", "tagging", "question_answering"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MaskingConfig:
    """Which positions the teacher must guess; 80/10/10 as in BERT (arXiv 1810.04805, section 3.1)."""

    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mask_share: Rate = 0.8
    random_share: Rate = 0.1
    keep_share: Rate = 0.1
    policy: Literal["uniform", "rare", "strided"] = "uniform"
    """`rare` favours rare tokens; `strided` masks each position once in round(1/rate) views, so that a sequence shorter
    than that has views without a mask."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _shares_make_one(self) -> "MaskingConfig":
        total = self.mask_share + self.random_share + self.keep_share
        if abs(total - 1) > 1e-9:
            raise ValueError(f"mask_share + random_share + keep_share must be 1, they are {total:g}")
        if self.policy == "strided" and abs(self.rate - 1 / round(1 / self.rate)) > 0.1 * self.rate:
            nearest = 1 / max(2, round(1 / self.rate))
            raise ValueError(f"policy strided masks one position in n: rate {self.rate:g} is none, use {nearest:.3g}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KeepConfig:
    """Rates at which positions get cached targets; losses weigh a kept position by 1/rate."""

    masked: Rate = 1.0
    unmasked: Rate = 0.1

    @model_validator(mode="after")
    def _something_is_kept(self) -> "KeepConfig":
        if self.masked == self.unmasked == 0:
            raise ValueError("keep.masked and keep.unmasked are both 0: nothing would be cached; raise one of them")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SoftLabelsConfig:
    top_k: Positive = 8
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = (1.0, 2.0, 4.0)
    """Temperatures at which the mass outside the top k is stored exactly."""
    code: Literal["float32", "packed"] = "packed"
    """`packed`: ids without loss, logits in steps of a 64th, both entropy-coded; `float32` is for proofs."""

    @field_validator("temperatures")
    @classmethod
    def _distinct(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(temperatures)) != len(temperatures):
            raise ValueError("temperatures must be distinct")
        return temperatures

    @model_validator(mode="after")
    def _level_is_known(self) -> "SoftLabelsConfig":
        if self.code == "packed" and not self.temperatures:
            raise ValueError("code: packed needs at least one of temperatures; write code: float32 for none")
        return self


QUALITY_COSINES = {"low": 0.98, "standard": 0.9935, "high": 0.9985, "highest": 0.9995}
"""Mean cosine, on the sample that the codebook is made of, by name of quality."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HiddenConfig:
    layers: tuple[int, ...] = (-1,)
    """Counted as `hidden_states` are: 0 is the embedding output, the last is -1."""
    code: Literal["none", "float32", "float16", "transform"] = "transform"
    quality: Literal["low", "standard", "high", "highest"] = "standard"
    """Of `transform`: the mean cosine between decoded and true states, see `QUALITY_COSINES`."""

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not layers or len(set(layers)) != len(layers):
            raise ValueError("layers must be distinct and at least one; write code: none for no hidden states")
        return layers

    @model_validator(mode="after")
    def _quality_is_of_transform(self) -> "HiddenConfig":
        if self.quality != "standard" and self.code != "transform":
            raise ValueError(f"quality belongs to code: transform, not to code: {self.code}")
        return self

    @property
    def stored_layers(self) -> tuple[int, ...]:
        """Layers whose states a shard holds."""
        return () if self.code == "none" else self.layers


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FileIdentity:
    """One corpus file as stored, compressed or not; where it lies does not matter."""

    num_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256
    format: Literal["text", "text_file", "jsonl", "parquet"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CorpusIdentity:
    files: tuple[FileIdentity, ...]
    text_field: str
    sequence_length: SequenceLength
    packing: Packing
    tokenizer_sha256: Sha256


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskObjective:
    """What a fine-tuned teacher answers of a task's examples, all of it, instead of what a masked token was."""

    kind: TaskKind
    labels: tuple[str, ...] = ()
    """The classes of classification and tagging, in the order of the teacher's outputs."""

    @property
    def num_outputs(self) -> int:
        """Of a kept position: a logit a class; one of regression; start and end of an answer."""
        return {"regression": 1, "question_answering": 2}.get(self.kind, len(self.labels))

    @model_validator(mode="after")
    def _labels_are_classes(self) -> "TaskObjective":
        has_classes = self.kind in ("classification", "tagging")
        if has_classes != (len(self.labels) > 1) or len(set(self.labels)) != len(self.labels):
            wanted = "two or more, all distinct" if has_classes else "none"
            raise ValueError(f"labels of kind {self.kind} must be {wanted}, they are {list(self.labels)}")
        return self


MaskedLM = Literal["masked_lm"]
MASKED_LM: MaskedLM = "masked_lm"
Objective = MaskedLM | TaskObjective


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskCorpusIdentity:
    """A task's training examples as the teacher sees them, whatever files and settings they come from."""

    sha256: Sha256
    """Of the sequences, see `sequences.digest_of`."""
    sequence_length: SequenceLength
    tokenizer_sha256: Sha256


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TeacherIdentity:
    sha256: Sha256
    dtype: Dtype


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Identity:
    """What two caches must share to hold the same content."""

    format_version: Literal[2] = FORMAT_VERSION
    objective: Objective
    corpus: CorpusIdentity | TaskCorpusIdentity
    teacher: TeacherIdentity
    masking: MaskingConfig | None
    """None: of a task, whose inputs are asked about as they are."""
    keep: KeepConfig
    soft_labels: SoftLabelsConfig
    hidden: HiddenConfig
    unit_sequences: Positive

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON."""
        return documents.digest_of(to_dict(self))

    @property
    def task(self) -> TaskObjective | None:
        """None: of a masked-LM teacher."""
        return self.objective if isinstance(self.objective, TaskObjective) else None

    @property
    def masks_rare(self) -> bool:
        """Whether masking must know how often each token stands in the corpus."""
        return self.masking is not None and self.masking.policy == "rare"

    @model_validator(mode="after")
    def _parts_fit(self) -> "Identity":
        is_task = self.task is not None
        if (isinstance(self.corpus, TaskCorpusIdentity), self.masking is None) != (is_task, is_task):
            raise ValueError("objective, corpus and masking must all be a task's, or none of them")
        if self.task and (self.keep, self.soft_labels, self.hidden) != _task_targets(self.task):
            raise ValueError("keep, soft_labels and hidden of a task must keep each output as it is, and nothing else")
        return self


def task_identity(
    objective: TaskObjective, *, corpus: TaskCorpusIdentity, teacher: TeacherIdentity, unit_sequences: int
) -> Identity:
    """The identity of a task's cache: every output is kept exactly, wherever the task has one."""
    keep, soft_labels, hidden = _task_targets(objective)
    return Identity(
        objective=objective,
        corpus=corpus,
        teacher=teacher,
        masking=None,
        keep=keep,
        soft_labels=soft_labels,
        hidden=hidden,
        unit_sequences=unit_sequences,
    )


def _task_targets(objective: TaskObjective) -> tuple[KeepConfig, SoftLabelsConfig, HiddenConfig]:
    soft_labels = SoftLabelsConfig(top_k=objective.num_outputs, temperatures=(), code="float32")
    return KeepConfig(masked=1.0, unmasked=1.0), soft_labels, HiddenConfig(code="none")


def create_or_check(store: Store, identity: Identity, notes: dict[str, Any]) -> None:
    """Writes `spec.json`, or checks that the one there has the same identity.

    Raises:
        UserError: the cache was built from another spec; names every differing field with both values.
    """
    document = {"fingerprint": identity.fingerprint, "identity": to_dict(identity), "notes": notes}
    if store.create(KEY, documents.dump(document)):
        return
    there, _ = read(store)
    if there.fingerprint == identity.fingerprint:
        return
    rows = differences(to_dict(there), to_dict(identity))
    listed = "\n".join(f"  {path}: {left!r} in the cache, {right!r} in the spec" for path, left, right in rows)
    raise UserError(
        f"{store.url} was built from another spec:\n{listed}\nchoose another `cache` URL, or the cache's own values"
    )


def digest(store: Store) -> str:
    """SHA-256 of the stored spec.

    Raises:
        FileNotFoundError: there is none.
    """
    return documents.sha256(store.read(KEY, max_bytes=documents.MAX_DOCUMENT_BYTES))


def read(store: Store) -> tuple[Identity, dict[str, Any]]:
    """The identity and the notes of the cache at `store`.

    Raises:
        UserError: there is no cache, or its spec is damaged or of another format version.
    """
    document, name = spec_document.read(store), f"{store.url}/{KEY}"
    with refusing(name, REMEDY):
        try:
            identity = TypeAdapter(Identity).validate_python(document.identity)
        except ValidationError as error:
            raise UserError(f"{name} is refused:\n{explain(error, Identity)}\n{REMEDY}") from None
        if identity.fingerprint != document.fingerprint:
            raise UserError("its fingerprint does not belong to its identity")
        return identity, document.notes


def differences(left: Any, right: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted paths at which two trees of plain values differ, with both values."""
    if isinstance(left, dict) and isinstance(right, dict):
        rows = [differences(left.get(key), right.get(key), f"{path}.{key}") for key in sorted({*left, *right})]
        return [row for group in rows for row in group]
    return [] if left == right else [(path.lstrip("."), left, right)]
