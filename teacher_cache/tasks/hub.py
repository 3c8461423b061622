"""Tables of a data set on the Hugging Face hub, or of a folder that `datasets` reads."""

from typing import TYPE_CHECKING

from teacher_cache.errors import UserError
from teacher_cache.storage.errors import brief
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.table import Table, check_columns

if TYPE_CHECKING:
    from datasets import Dataset

DEV_SPLITS = ("validation", "dev", "test")
"""The first of these that there is."""


def read_hub(config: TaskConfig) -> dict[str, Table]:
    """The tables `train` and `dev` with the columns that the task names; labels as texts where the data set knows them.

    Raises:
        UserError: the data set cannot be loaded, or lacks a split or a column.
    """
    from datasets import DatasetDict, load_dataset

    try:
        splits = load_dataset(config.hub, config.subset)
    except Exception as error:  # of the hub, the network, the file system and every format: no common base class
        raise UserError(
            f"the data set {config.hub!r} cannot be loaded ({brief(error)}); check hub and subset, the network and "
            "HF_TOKEN; or name its files by train and dev"
        ) from None
    assert isinstance(splits, DatasetDict)
    dev = next((name for name in DEV_SPLITS if name in splits), None)
    if "train" not in splits or dev is None:
        raise UserError(
            f"the data set {config.hub!r} has the splits {', '.join(splits)}; needed are train and one of "
            f"{', '.join(DEV_SPLITS)}"
        )
    return {name: _table(splits[split], config, split) for name, split in (("train", "train"), ("dev", dev))}


def _table(split: "Dataset", config: TaskConfig, split_name: str) -> Table:
    from datasets import ClassLabel

    assert config.label is not None
    names, name = [*config.text, config.label], f"{config.hub}, split {split_name}"
    check_columns(name, split.column_names, names)
    columns = {column: split[column][:] for column in names}
    label = split.features[config.label]
    if isinstance(label, ClassLabel):  # -1: not known, as in test splits
        columns[config.label] = [None if value in (None, -1) else label.names[value] for value in columns[config.label]]
    return Table(name=name, columns=columns, lines=range(len(split)), unit="row")
