"""What a user says of a task: `TaskConfig`. Light to import."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from teacher_cache.format.spec import Positive, Url
from teacher_cache.shell.settings import STRICT

Layout = Literal[
    "CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI", "conll", "squad", "table"
]  # fmt: skip
"""GLUE's nine in its own `.tsv` files; a token and its tag a line; SQuAD's JSON; named columns."""
Column = Annotated[str, Field(min_length=1)]

_SOURCES = {"folder": "folder", "train": "train and dev", "hub": "hub"}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskConfig:
    layout: Layout
    folder: Url | None = None
    """Of a GLUE task: holds train.tsv and dev.tsv, for MNLI dev_matched.tsv and dev_mismatched.tsv."""
    train: Url | None = None
    """A file by name or URL, also .gz or .zst. A table's extension is .csv, .tsv (quotes are text) or .jsonl."""
    dev: Url | None = None
    """What the score is of. Of MNLI it counts as matched."""
    hub: str | None = None
    """Of a table instead of files: a data set's name on the Hugging Face hub, or a folder of data files, as
    `datasets.load_dataset` takes them. Its dev split is `validation`, or `dev`, otherwise `test`."""
    subset: str | None = None
    """The hub data set's configuration."""
    text: Annotated[tuple[Column, ...], Field(max_length=2)] = ()
    """Of a table: one column of text, or the two of a pair."""
    label: Column | None = None
    """Of a table: the column to be predicted."""
    kind: Literal["classification", "regression"] | None = None
    """Of a table."""
    max_length: Annotated[int, Field(ge=8, strict=True)] = 128
    """Tokens of a feature, special ones included; what is longer is cut, or of squad put into several windows."""
    stride: Annotated[int, Field(ge=0, strict=True)] = 64
    """Of squad: tokens that neighbouring windows share."""
    max_train_rows: Positive | None = None
    """So many train examples, of a fixed random order; None: all."""

    @model_validator(mode="after")
    def _one_source(self) -> "TaskConfig":
        if (self.train is None) != (self.dev is None):
            raise ValueError("train and dev are named together; name both files")
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        allowed = {"conll": ["train"], "squad": ["train"], "table": ["train", "hub"]}.get(
            self.layout, ["folder", "train"]
        )
        if len(given) != 1 or given[0] not in allowed:
            wanted, found = (" or ".join(_SOURCES[name] for name in names) for names in (allowed, given))
            raise ValueError(f"layout {self.layout} is read from {wanted}, not from {found or 'nothing'}")
        if self.subset is not None and self.hub is None:
            raise ValueError("subset is one of a hub data set; name it by hub")
        return self

    @model_validator(mode="after")
    def _columns_of_tables(self) -> "TaskConfig":
        named = {"text": bool(self.text), "label": self.label is not None, "kind": self.kind is not None}
        if self.layout == "table" and not all(named.values()):
            missing = [name for name, is_given in named.items() if not is_given]
            raise ValueError(f"layout table needs {', '.join(missing)}")
        if self.layout != "table" and any(named.values()):
            raise ValueError(f"text, label and kind are for layout table; layout {self.layout} knows its own")
        if len({*self.text, self.label}) != len(self.text) + 1:
            raise ValueError("text and label name one column twice")
        return self

    @model_validator(mode="after")
    def _windows_advance(self) -> "TaskConfig":
        if self.layout == "squad" and self.stride >= self.max_length:
            raise ValueError(f"stride {self.stride} must be below max_length {self.max_length}")
        return self
