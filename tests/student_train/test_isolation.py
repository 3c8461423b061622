"""A student is trained with no teacher in memory, and what is light to import stays light."""

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import student_train
from teacher_cache.shell.settings import to_dict
from tests.student_train import runs

ROOT = Path(__file__).parents[2]
FORBIDDEN = [
    "teacher_cache.teacher",
    "teacher_cache.pipeline",
    "teacher_cache.corpus",
    "teacher_cache.units",
    "teacher_cache.codebooks",
]
ALLOWED = {"format", "storage", "targets", "shell", "errors", "tasks", "pretrained"}


def run_python(code: str, *arguments: str) -> Any:
    """What a program prints last, as JSON, in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOADED = "import sys, json, {module}; print(json.dumps([name for name in {names} if name in sys.modules]))"


@pytest.mark.parametrize(
    "module",
    [
        "student_train",
        "student_train.config",
        "student_train.cli",
        "student_train.sweep.records",
        "student_train.worth.worth",
        "student_train.finetune.config",
        "student_train.finetune.text",
        "teacher_cache",
        "teacher_cache.format.cache",
    ],
)
def test_importing_loads_neither_torch_nor_ray(module):
    assert run_python(LOADED.format(module=module, names=["torch", "ray", "transformers", "datasets", "sklearn"])) == []


TRAINING = """
import gc, hashlib, json, sys
import torch
import student_train.cli
from student_train import launch
from student_train.config import StudentSpec
from student_train.loop import Trainer
from student_train.worker import run_worker
from teacher_cache.shell.settings import parse

torch.set_num_threads(1)

def ignore(item):
    pass

def look(found):
    gc.collect()
    objects = gc.get_objects()
    (trainer,) = [item for item in objects if type(item) is Trainer]
    own = {id(module) for module in trainer.modules.modules()}
    modules = [item for item in objects if isinstance(item, torch.nn.Module) and list(item.parameters())]
    found["strangers"] += [type(module).__name__ for module in modules if id(module) not in own]
    for tensor in objects:
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            found["shapes"].append(list(tensor.shape))
            flat = tensor.detach().flatten().clone(memory_format=torch.contiguous_format)
            data = flat.view(torch.uint8).numpy().tobytes()
            found["digests"].append(hashlib.sha256(data).hexdigest())
    found["checks"] += 1

def train(spec):
    found = {"shapes": [], "digests": [], "strangers": [], "checks": 0}
    launch.check(spec)
    run_worker(spec, device=torch.device("cpu"), show=ignore, on_checkpoint=lambda report: look(found))
    launch.train(spec)
    return found

runs = {name: train(parse(StudentSpec, values)) for name, values in json.loads(sys.argv[1]).items()}
print()
print(json.dumps({"runs": runs, "loaded": [name for name in sys.modules if name.startswith("teacher_cache.")]}))
"""
"""Trains as `launch.train` does in process, and looks through all of its memory after each step."""

STUDENTS: dict[str, dict[str, Any]] = {
    "copied": {"teacher_layers": [0, 3]},
    "wider": {"initial_weights": "random", "width": 40, "num_layers": 1},
}


@pytest.fixture(scope="module")
def training(default_cache, tmp_path_factory) -> dict[str, Any]:
    """What a process that trained two students found in its memory."""
    execution = runs.make_execution(checkpoint_steps=1)
    specs = {}
    for name, student in STUDENTS.items():
        output = tmp_path_factory.mktemp(name)
        specs[name] = to_dict(runs.make_spec(default_cache, output, steps=2, student=student, execution=execution))
    return run_python(TRAINING, json.dumps(specs))


def teacher_tensors(cache: Any) -> dict[str, Any]:
    with safe_open(cache.teacher.folder / "model.safetensors", framework="np") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  # no mapping


@pytest.mark.parametrize("student", STUDENTS)
def test_training_holds_no_teacher(training, default_cache, student):
    found, tensors = training["runs"][student], teacher_tensors(default_cache)
    assert found["checks"] == 2
    assert found["strangers"] == []
    digests = {name: hashlib.sha256(tensor.tobytes()).hexdigest() for name, tensor in tensors.items()}
    seen = {name for name, digest in digests.items() if digest in found["digests"]}
    # The output head, whose decoder is the word embedding, is there: the search does find what is there.
    assert {"bert.embeddings.word_embeddings.weight", "cls.predictions.transform.dense.weight"} <= seen
    assert not [name for name in seen if ".encoder." in name or "position_embeddings" in name]


def test_a_wider_student_leaves_no_tensor_of_the_teachers_layers_in_any_precision(training, default_cache):
    layers = {name: tensor.shape for name, tensor in teacher_tensors(default_cache).items() if ".intermediate." in name}
    assert set(layers.values()) == {(64, 32), (64,)}
    shapes = {tuple(shape) for shape in training["runs"]["wider"]["shapes"]}
    assert not shapes & set(layers.values())
    assert (160, 40) in shapes  # the student's own


def test_training_loads_nothing_of_the_teachers_side(training):
    assert not set(FORBIDDEN) & set(training["loaded"])
    assert {name.split(".")[1] for name in training["loaded"]} <= ALLOWED


def test_sources_import_only_the_contract_between_the_packages():
    for path in Path(student_train.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            parts = [name.split(".") for name in names]
            wrong = [name for name in parts if name[0] == "teacher_cache" and name[1] not in ALLOWED]
            assert not wrong, f"{path.name} imports {wrong}"
