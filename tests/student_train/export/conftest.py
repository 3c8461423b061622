"""Graphs that several tests read: making one takes seconds."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from student_train.export.onnx_graph import write_onnx
from student_train.saved_model import Head, SavedModel
from tests.student_train.export import heads


@dataclass(frozen=True)
class Graph:
    saved: SavedModel
    path: Path
    difference: float


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Head, str], Graph]:
    """A model of two layers of 64 with a head, of a family, and its graph, in a folder where no other file lies."""

    @functools.cache
    def make(head: Head, family: str) -> Graph:
        folder = tmp_path_factory.mktemp("graph")
        wide = (
            {"dim": 64, "hidden_dim": 256} if family == "distilbert" else {"hidden_size": 64, "intermediate_size": 256}
        )
        saved = heads.make(folder.with_name(f"{folder.name}-model"), head, family, **wide)
        return Graph(saved, folder / "model.onnx", write_onnx(saved, folder / "model.onnx"))

    return make
