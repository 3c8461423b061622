"""GLUE's nine tasks: their columns, labels and metrics (arXiv 1804.07461, section 3 and table 1)."""

from dataclasses import dataclass

from teacher_cache.tasks.table import Table, read_tsv


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    text: tuple[str, ...]
    """Columns of one sentence or of two."""
    label: str
    labels: tuple[str, ...] = ("0", "1")
    """As they stand in the files, sorted; empty for regression."""
    metrics: tuple[str, ...] = ("accuracy",)
    """The first is the score. Of several metrics GLUE takes the unweighted mean."""
    header: tuple[str, ...] | None = None
    """Of files that name no columns."""
    skip_short_rows: bool = False
    """Files as they are handed out hold rows that lack columns, which the field leaves out."""


_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE = {
    "CoLA": GlueTask(
        text=("sentence",), label="label", metrics=("matthews",), header=("source", "label", "mark", "sentence")
    ),
    "SST-2": GlueTask(text=("sentence",), label="label"),
    "MRPC": GlueTask(text=("#1 String", "#2 String"), label="Quality", metrics=("mean", "accuracy", "f1")),
    "STS-B": GlueTask(text=_SENTENCES, label="score", labels=(), metrics=("mean", "pearson", "spearman")),
    "QQP": GlueTask(
        text=("question1", "question2"),
        label="is_duplicate",
        metrics=("mean", "accuracy", "f1"),
        skip_short_rows=True,
    ),
    "MNLI": GlueTask(text=_SENTENCES, label="gold_label", labels=("contradiction", "entailment", "neutral")),
    "QNLI": GlueTask(text=("question", "sentence"), label="label", labels=_ENTAILMENT),
    "RTE": GlueTask(text=_SENTENCES, label="label", labels=_ENTAILMENT),
    "WNLI": GlueTask(text=_SENTENCES, label="label"),
}

MNLI_METRICS = ("mean", "accuracy_matched", "accuracy_mismatched")
"""Where both dev files are read."""


def read_glue(url: str, layout: str) -> Table:
    """The columns of a GLUE file that count.

    Raises:
        UserError: it cannot be read, or is not of this layout.
    """
    task = GLUE[layout]
    return read_tsv(url, [*task.text, task.label], header=task.header, skip_short_rows=task.skip_short_rows)
