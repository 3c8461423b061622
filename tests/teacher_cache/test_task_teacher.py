"""A fine-tuned model as a teacher of its task: what it answers, and which models it refuses."""

from pathlib import Path

import pytest
import torch

from teacher_cache.errors import UserError
from teacher_cache.format.spec import TaskKind, TaskObjective
from teacher_cache.pretrained import AUTO_CLASSES
from teacher_cache.targets.batching import pad
from teacher_cache.task_teacher import TaskTeacher
from teacher_cache.teacher import LoadedTeacher, load_teacher
from tests import families

OBJECTIVES: dict[TaskKind, TaskObjective] = {
    "classification": TaskObjective(kind="classification", labels=("no", "perhaps", "yes")),
    "regression": TaskObjective(kind="regression"),
    "tagging": TaskObjective(kind="tagging", labels=("O", "B-animal", "I-animal")),
    "question_answering": TaskObjective(kind="question_answering"),
}
PAIRS = [("the cat", "a big dog ran"), ("we saw one old bird", "it"), ("he", "she made bread and gave it")]


def save(folder: Path, kind: TaskKind, family: str = "bert", names: tuple[str, ...] | None = None) -> str:
    if names is None:
        names = OBJECTIVES[kind].labels or tuple(f"LABEL_{place}" for place in range(OBJECTIVES[kind].num_outputs))
    options = {"auto_class": AUTO_CLASSES[kind], "id2label": dict(enumerate(names))}
    return str(families.save_pretrained(folder, family, **options))


def alone(loaded: LoadedTeacher, kind: TaskKind, first: str, second: str) -> torch.Tensor:
    """[S, C] what the model itself says of a pair, by its tokenizer's own inputs."""
    inputs = loaded.tokenizer(first, second, return_tensors="pt")
    if loaded.model.config.model_type == "distilbert":  # which has no segments
        del inputs["token_type_ids"]
    with torch.inference_mode():
        said = loaded.model(**inputs)
    if kind == "question_answering":
        return torch.stack([said.start_logits[0], said.end_logits[0]], dim=-1)
    return said.logits[0] if kind == "tagging" else said.logits.expand(inputs["input_ids"].shape[1], -1)


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_it_answers_of_each_pair_in_a_batch_as_the_model_does_alone(family, kind, tmp_path):
    loaded = load_teacher(save(tmp_path, kind, family), objective=OBJECTIVES[kind])
    ids = [loaded.tokenizer(*pair, return_tensors="np")["input_ids"][0] for pair in PAIRS]
    input_ids, attention_mask = pad(ids, loaded.tokenizer.pad_token_id)
    places = attention_mask.flatten().nonzero().flatten()
    answers = TaskTeacher(loaded, kind, torch.float32, "cpu").answers(input_ids, attention_mask, places)
    expected = torch.cat([alone(loaded, kind, *pair) for pair in PAIRS])
    assert answers.dtype == torch.float32
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-5)


def test_a_teacher_whose_tokenizer_makes_no_segments_sees_none(tmp_path):
    loaded = load_teacher(save(tmp_path, "classification", "roberta"), objective=OBJECTIVES["classification"])
    loaded.tokenizer.model_input_names = ["input_ids", "attention_mask"]  # as RoBERTa's own
    inputs = loaded.tokenizer(*PAIRS[0], return_tensors="pt")
    teacher = TaskTeacher(loaded, "classification", torch.float32, "cpu")
    with torch.inference_mode():
        expected = loaded.model(**inputs).logits
    torch.testing.assert_close(teacher.answers(**inputs, places=torch.zeros(1, dtype=torch.long)), expected)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_head_computes_in_float32_also_of_a_bfloat16_encoder(kind, tmp_path):
    loaded = load_teacher(save(tmp_path, kind), objective=OBJECTIVES[kind])
    ids = torch.tensor([[2, 10, 11, 3]])
    whole, half = (
        TaskTeacher(loaded, kind, dtype, "cpu").answers(ids, torch.ones_like(ids), torch.arange(4))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert (half != half.bfloat16()).any()
    weights = dict(loaded.model.named_parameters())
    asked = TaskTeacher(loaded, kind, torch.bfloat16, "cpu")._model.named_parameters()
    exact = [name for name, value in asked if value.equal(weights[name])]
    assert any(name.startswith(("classifier", "qa_outputs")) for name in exact)
    torch.testing.assert_close(half, whole, rtol=0.1, atol=0.3)
    assert next(loaded.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("no", "yes"),
            r"has 2 outputs \(no, yes\), the task needs 3 \(no, perhaps, yes\); use one that was fine-tuned",
        ),
        (
            ("Yes", "No", "Perhaps"),
            "has its outputs in the order Yes, No, Perhaps, the task's labels are no, perhaps, yes",
        ),
    ],
)
def test_a_teacher_of_another_task_is_refused(names, message, tmp_path):
    folder = save(tmp_path, "classification", names=names)
    with pytest.raises(UserError, match=message):
        load_teacher(folder, objective=OBJECTIVES["classification"])


@pytest.mark.parametrize("names", [("NO", "PERHAPS", "YES"), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_names_of_outputs_need_not_be_the_tasks_own(names, tmp_path):
    load_teacher(save(tmp_path, "classification", names=names), objective=OBJECTIVES["classification"])


def test_a_model_that_was_not_fine_tuned_is_refused(tmp_path):
    families.save_pretrained(tmp_path, id2label={0: "no", 1: "perhaps", 2: "yes"})
    with pytest.raises(UserError, match=r"no whole classification model: .*classifier\.weight.*fine-tuned on the task"):
        load_teacher(str(tmp_path), objective=OBJECTIVES["classification"])
