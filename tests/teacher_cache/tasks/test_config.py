"""What a user may say of a task."""

import subprocess
import sys
from typing import Any

import pytest

from teacher_cache.errors import UserError
from tests.teacher_cache.tasks.task_files import make_config

TABLE = {"layout": "table", "text": ["a"], "label": "b", "kind": "classification"}


@pytest.mark.parametrize(
    "values",
    [
        {"layout": "CoLA", "folder": "CoLA"},
        {"layout": "MNLI", "train": "a.tsv", "dev": "b.tsv"},
        {"layout": "conll", "train": "a", "dev": "b"},
        {"layout": "squad", "train": "a", "dev": "b", "max_length": 384, "stride": 128},
        TABLE | {"train": "a.csv", "dev": "b.csv"},
        TABLE | {"hub": "nyu-mll/glue", "subset": "cola"},
        TABLE | {"hub": "folder", "text": ["a", "c"], "kind": "regression"},
    ],
)
def test_each_layout_has_its_sources(values: dict[str, Any]) -> None:
    assert make_config(**values).layout == values["layout"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layout": "colour"}, "layout"),
        ({"layout": "CoLA"}, "layout CoLA is read from folder or train and dev, not from nothing"),
        ({"layout": "CoLA", "train": "a"}, "train and dev are named together"),
        ({"layout": "CoLA", "folder": "a", "train": "a", "dev": "b"}, "not from folder or train and dev"),
        ({"layout": "conll", "folder": "a"}, "layout conll is read from train and dev, not from folder"),
        ({"layout": "CoLA", "hub": "a"}, "not from hub"),
        ({"layout": "CoLA", "folder": "a", "subset": "b"}, "subset is one of a hub data set"),
        ({"layout": "table", "hub": "a"}, "layout table needs text, label, kind"),
        ({"layout": "RTE", "folder": "a", "label": "b"}, "layout RTE knows its own"),
        (TABLE | {"hub": "a", "label": "a"}, "name one column twice"),
        (TABLE | {"hub": "a", "text": ["a", "c", "d"]}, "text"),
        ({"layout": "squad", "train": "a", "dev": "b", "stride": 128}, "stride 128 must be below max_length 128"),
        ({"layout": "CoLA", "folder": "a", "max_length": 7}, "max_length"),
        ({"layout": "CoLA", "folder": "a", "max_train_rows": 0}, "max_train_rows"),
        ({"layout": "CoLA", "folder": "a", "lenght": 7}, "lenght: unknown key; valid keys here: layout, folder"),
    ],
)
def test_refusals_say_what_is_wanted(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config(**values)


@pytest.mark.parametrize("module", ["config", "record", "files", "task"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    banned = ["torch", "ray", "transformers", "datasets", "sklearn", "scipy", "seqeval", "pandas"]
    code = f"import sys, teacher_cache.tasks.{module}; print([name for name in {banned} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
