"""What the files of each layout hold."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from teacher_cache.tasks import classification, question_answering, tagging
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.conll import read_conll
from teacher_cache.tasks.glue import GLUE, MNLI_METRICS, read_glue
from teacher_cache.tasks.hub import read_hub
from teacher_cache.tasks.record import Kind
from teacher_cache.tasks.squad import read_squad
from teacher_cache.tasks.table import read_table


@dataclass(frozen=True, kw_only=True)
class Read:
    """A task but for its name; `train` and `dev` are columns of examples, see `record.Task`."""

    kind: Kind
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...]
    train: dict[str, list[Any]]
    dev: dict[str, list[Any]]


def read(config: TaskConfig, urls: dict[str, str]) -> Read:
    """All examples of a task, checked.

    Args:
        urls: of `files.task_urls`.

    Raises:
        UserError: a file or the hub cannot be read, or something in it is wrong.
    """
    match config.layout:
        case "conll":
            return _read_tagging(urls)
        case "squad":
            return _read_squad(urls)
        case "table":
            return _read_table(config, urls)
    return _read_glue(config, urls)


def _read_tagging(urls: dict[str, str]) -> Read:
    train, dev = read_conll(urls["train"]), read_conll(urls["dev"])
    labels = tagging.tag_names(train)
    return Read(
        kind="tagging",
        labels=labels,
        metrics=tagging.METRICS,
        train=tagging.examples(urls["train"], train, labels),
        dev=tagging.examples(urls["dev"], dev, labels),
    )


def _read_squad(urls: dict[str, str]) -> Read:
    return Read(
        kind="question_answering",
        metrics=question_answering.METRICS,
        train=read_squad(urls["train"]),
        dev=read_squad(urls["dev"]),
    )


def _read_glue(config: TaskConfig, urls: dict[str, str]) -> Read:
    glue = GLUE[config.layout]
    read = {
        split: classification.examples(
            read_glue(url, config.layout), text=glue.text, label=glue.label, labels=glue.labels
        )
        for split, url in urls.items()
    }
    metrics = glue.metrics
    if mismatched := read.pop("mismatched", None):
        metrics = MNLI_METRICS
        flags = [0] * len(read["dev"]["label"]) + [1] * len(mismatched["label"])
        read["dev"] = {name: values + mismatched[name] for name, values in read["dev"].items()} | {"mismatched": flags}
    kind: Kind = "classification" if glue.labels else "regression"
    return Read(kind=kind, labels=glue.labels, metrics=metrics, **read)


def _read_table(config: TaskConfig, urls: dict[str, str]) -> Read:
    assert config.label is not None
    assert config.kind is not None
    names = [*config.text, config.label]
    tables = read_hub(config) if config.hub else {split: read_table(url, names) for split, url in urls.items()}
    labels = classification.label_names(tables["train"], config.label) if config.kind == "classification" else ()
    examples = partial(classification.examples, text=config.text, label=config.label, labels=labels)
    return Read(
        kind=config.kind,
        labels=labels,
        metrics=classification.METRICS[config.kind],
        train=examples(tables["train"]),
        dev=examples(tables["dev"]),
    )
