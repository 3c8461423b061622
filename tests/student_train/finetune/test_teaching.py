"""Students learn tasks from caches as they would from the teacher itself."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from student_train.finetune import training
from student_train.finetune.config import FinetuneConfig
from student_train.finetune.plan import Run
from student_train.finetune.run import finetune
from student_train.finetune.soft_loss import answer_mask, divergence, task_logits
from student_train.finetune.teacher_logits import TEACHER_LOGITS, is_permuted, read_logits, teachings
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache
from teacher_cache.pretrained import AUTO_CLASSES
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.tasks.record import Task
from teacher_cache.tasks.task import features
from tests import caches, families, task_caches
from tests.student_train.finetune import tiny

RUN = Run(model="taught", task="t", lr=3e-3, seed=1)


@pytest.fixture(scope="module", params=task_caches.KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Cache]:
    folder = tmp_path_factory.mktemp(request.param)
    task = task_caches.make_task(folder / "files", request.param)
    return task, task_caches.build_cache(folder / "cache", task)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Task, Cache]:
    task = task_caches.make_task(tmp_path / "files", "pair")
    return task, task_caches.build_cache(tmp_path / "cache", task)


def make_config(folder: Path, task: Task, cache: Cache, **changes: Any) -> FinetuneConfig:
    model = tiny.make_model(folder / "student", seed=1)
    values = {
        "models": {"taught": model, "untaught": model},
        "tasks": {"t": to_dict(task.config)},
        "distillation": {"caches": {"taught": {"t": cache.url}}},
        "batch_size": 8,
    }
    return tiny.make_config(folder, **values | changes)


class SeenError(Exception):
    """Ends training after its first step."""


def embeddings() -> list[torch.nn.Embedding]:
    gc.collect()
    return [item for item in gc.get_objects() if isinstance(item, torch.nn.Embedding)]


def first_step(config: FinetuneConfig, run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The first batch of a run without dropout, its loss and gradients, and embeddings in memory that are another's."""
    seen: dict[str, Any] = {}
    compute_loss, load_model, before = training._Trainer.compute_loss, training.load_model, embeddings()

    def spy(self: Any, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        seen["inputs"] = dict(inputs)
        seen["loss"] = compute_loss(self, model, inputs, *arguments, **options)
        known = {*map(id, before), *map(id, model.modules())}
        seen["strangers"] = [item for item in embeddings() if id(item) not in known]
        seen["model"] = model
        model.zero_grad()
        seen["loss"].backward()
        raise SeenError

    def without_dropout(*arguments: Any) -> Any:
        model = load_model(*arguments)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model

    with monkeypatch.context() as patch:
        patch.setattr(training._Trainer, "compute_loss", spy)
        patch.setattr(training, "load_model", without_dropout)
        with pytest.raises(SeenError):
            training.finetune_once(config, run, on_gpu=False)
    return seen


def online_loss(seen: dict[str, Any], teacher: Any, kind: str, temperature: float, weight: float) -> torch.Tensor:
    """The loss of the same batch with the teacher in memory, feature by feature."""
    model, inputs = seen["model"], {k: v for k, v in seen["inputs"].items() if k != TEACHER_LOGITS}
    outputs = model(**inputs)
    known = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        said = task_logits(teacher(**known))
    own, mask = task_logits(outputs), answer_mask(kind, inputs)
    if kind == "regression":
        soft = ((own - said) ** 2).mean()
    elif kind == "classification":
        soft = divergence(own, said, temperature)
    elif kind == "tagging":
        soft = divergence(own[mask], said[mask], temperature)
    else:
        rows = [
            divergence(own[row, :length, side][None], said[row, :length, side][None], temperature)
            for row, length in enumerate(mask.sum(-1))
            for side in (0, 1)
        ]
        soft = torch.stack(rows).mean()
    return weight * soft + (1 - weight) * outputs.loss


def test_a_step_from_the_cache_is_a_step_beside_the_teacher(built, tmp_path, monkeypatch):
    task, cache = built
    config = make_config(tmp_path, task, cache)
    seen = first_step(config, RUN, monkeypatch)
    grads = [parameter.grad.clone() for parameter in seen["model"].parameters() if parameter.grad is not None]
    seen["model"].zero_grad()
    teacher = AUTO_CLASSES[task.kind].from_pretrained(cache.teacher.folder).eval()
    loss = online_loss(seen, teacher, task.kind, config.distillation.temperature, config.distillation.soft_weight)
    loss.backward()
    assert seen["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    online = [parameter.grad for parameter in seen["model"].parameters() if parameter.grad is not None]
    assert len(grads) == len(online) > 10
    error = sum(float(((a - b) ** 2).sum()) for a, b in zip(grads, online, strict=True)) ** 0.5
    norm = sum(float((b**2).sum()) for b in online) ** 0.5
    assert error < 1e-5 * norm


def test_no_teacher_is_in_memory(pair, tmp_path, monkeypatch):
    task, cache = pair
    seen = first_step(make_config(tmp_path, task, cache), RUN, monkeypatch)
    assert TEACHER_LOGITS in seen["inputs"]
    assert seen["strangers"] == []


def test_a_model_without_a_cache_learns_from_labels_alone(pair, tmp_path, monkeypatch):
    task, cache = pair
    seen = first_step(make_config(tmp_path, task, cache), replace(RUN, model="untaught"), monkeypatch)
    assert TEACHER_LOGITS not in seen["inputs"]
    assert seen["loss"].item() == pytest.approx(seen["model"](**seen["inputs"]).loss.item(), rel=1e-6)


def test_a_students_answers_come_close_to_the_teachers(pair, tmp_path):
    """With no weight on the labels, which a random teacher does not know."""
    task, cache = pair
    own = {"caches": {"taught": {"t": cache.url}}, "soft_weight": 1.0}
    config = make_config(tmp_path, task, cache, epochs=30, distillation=own)
    taught, untaught = (
        training.finetune_once(config, replace(RUN, model=model), on_gpu=False) for model in ("taught", "untaught")
    )
    logits = torch.from_numpy(np.stack([row.topk_logits[0] for row in cache.rows()]))
    losses = [float(divergence(said(record.folder, task), logits, 2.0)) for record in (taught, untaught)]
    assert losses[0] < 0.25 * losses[1]


def said(folder: str | None, task: Task) -> torch.Tensor:
    """[N, C] what a fine-tuned model says of the train features."""
    model = AUTO_CLASSES[task.kind].from_pretrained(folder).eval()
    made = features(task, "train", AutoTokenizer.from_pretrained(folder))
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.inference_mode():
        return torch.cat([model(**{name: torch.tensor([row[name]]) for name in names}).logits for row in made])


def test_the_whole_command_records_whose_word_a_model_had(pair, tmp_path):
    task, cache = pair
    config = make_config(tmp_path, task, cache)
    result = finetune(config)
    assert result.ok, result.errors
    taught = {run.model: run.taught for run in result.results.runs}
    assert taught["taught"].fingerprint == cache.fingerprint
    assert taught["untaught"] is None
    warmer = replace(config, distillation=replace(config.distillation, temperature=4.0))
    with pytest.raises(UserError, match=r"distillation\.taught\.t\.temperature is 2\.0 there and 4\.0 here"):
        finetune(warmer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train": 12}, "holds 20 features of task pair, model six has 12: teacher and student need tokenizers"),
        ({"num_dev": 5, "seed": 7}, "feature 0 of task pair is not the same in .* and for model six: teacher and"),
    ],
)
def test_other_examples_are_refused(pair, change, message, tmp_path, monkeypatch):
    task, cache = pair
    if seed := change.pop("seed", None):
        made = tiny.sentences
        monkeypatch.setattr(tiny, "sentences", lambda num, split: made(num, split + seed))
    values = tiny.make_task(tmp_path / "others", "pair", **{"num_train": task_caches.NUM_TRAIN} | change)
    other = task_caches.load_task("pair", parse(type(task.config), values))
    made = features(other, "train", families.make_tokenizer())
    with pytest.raises(UserError, match=message):
        read_logits(cache.url, other, made, "six")


@pytest.mark.parametrize(
    ("said", "is_so"),
    [
        ([[90, 10], [10, 90]], False),
        ([[10, 90], [90, 10]], True),
        ([[0, 10], [0, 10]], False),  # one class for all
        ([[40, 60], [60, 40]], False),  # chance, or nearly
        ([[2, 8], [8, 2]], False),  # too few to tell
        ([[90, 5, 5], [5, 5, 90], [5, 90, 5]], True),
        ([[0] * 3] * 3, False),
    ],
)
def test_classes_in_another_order_are_told_from_a_weak_teacher(said, is_so):
    assert is_permuted(np.array(said)) is is_so


def test_a_teacher_with_its_classes_in_another_order_is_refused(pair):
    task, cache = pair
    made = features(task, "train", families.make_tokenizer())
    first = [int(logits.argmax()) for logits in read_logits(cache.url, task, made, "six")]
    others = made.remove_columns("labels").add_column("labels", [1 - label for label in first])
    with pytest.raises(UserError, match=r"knows the classes of task pair in another order: its teacher agrees with 0%"):
        read_logits(cache.url, task, others, "six")


def test_a_cache_of_other_examples_is_refused_before_anything_runs(pair, tmp_path):
    task, cache = pair
    config = make_config(tmp_path, replace(task, config=replace(task.config, max_train_rows=12)), cache)
    with pytest.raises(UserError, match=r"task t, model taught: .* holds 20 features of task t, model taught has 12"):
        finetune(config)
    assert not list(Path(config.output).rglob("runs/*/*/*.json"))


def test_a_cache_of_another_task_is_refused_before_anything_runs(pair, tmp_path):
    task, cache = pair
    tagging = task_caches.make_task(tmp_path / "tags", "tagging")
    config = make_config(tmp_path, tagging, cache)
    with pytest.raises(UserError, match=r"is of classification \(animal, thing\), the task of tagging \(O, B-animal"):
        finetune(config)
    corpus = caches.build_cache(tmp_path / "corpus")
    with pytest.raises(UserError, match="is the cache of a corpus; task t needs one that was built with its `task`"):
        finetune(make_config(tmp_path, task, corpus))


@pytest.mark.parametrize(
    ("distillation", "message"),
    [
        ({"caches": {"five": {"t": "c"}}}, "distillation.caches names 'five', models are taught, untaught"),
        ({"caches": {"taught": {"u": "c"}}}, r"distillation\.caches\.taught names 'u', tasks are t"),
        ({"temperature": 0}, r"distillation\.temperature: Input should be greater than 0"),
        ({"soft_weight": 1.5}, r"distillation\.soft_weight: Input should be less than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(distillation, message, tmp_path):
    values = {
        "output": "o",
        "models": {"taught": "m", "untaught": "m"},
        "tasks": {"t": {"layout": "RTE", "folder": "f"}},
    }
    with pytest.raises(UserError, match=message):
        parse(FinetuneConfig, values | {"distillation": distillation})


def test_models_without_caches_have_no_teaching(tmp_path):
    assert teachings(tiny.make_config(tmp_path).distillation, []) == {}
