import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForMaskedLM

from student_train import student as student_module
from student_train.config import StudentConfig
from student_train.student import build_student, encode_student, spread_layers
from teacher_cache.errors import UserError
from teacher_cache.targets.heads import head_logits, head_of
from tests import families

ALL_LAYERS = StudentConfig(num_layers=4)
RANDOM = "random"


def logits_of(model, family: str) -> torch.Tensor:
    """[N, V] logits at the N positions that are not padding."""
    input_ids, attention_mask = families.make_batch(family)
    with torch.no_grad():
        return model.eval()(input_ids=input_ids, attention_mask=attention_mask).logits[attention_mask.bool()]


def layer_stack(model) -> torch.nn.ModuleList:
    return model.base_model.get_submodule(
        "transformer.layer" if model.config.model_type == "distilbert" else "encoder.layer"
    )


@pytest.mark.parametrize("family", families.FAMILIES)
def test_copy_of_all_layers_equals_its_teacher(family, tmp_path):
    teacher = families.make_model(family)
    teacher.save_pretrained(tmp_path)
    student = build_student(tmp_path, ALL_LAYERS)
    assert student.config.model_type == ("distilbert" if family == "bert" else family)
    torch.testing.assert_close(logits_of(student, family), logits_of(teacher, family), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_encoder_and_head_equal_the_whole_student(family, tmp_path):
    families.save_pretrained(tmp_path, family)
    student = build_student(tmp_path, StudentConfig()).eval()
    input_ids, attention_mask = families.make_batch(family)
    with torch.no_grad():
        hidden = encode_student(student, input_ids, attention_mask)
        logits = head_logits(head_of(student), hidden[attention_mask.bool()])
    torch.testing.assert_close(logits, logits_of(student, family), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_gradients_reach_every_parameter(family, tmp_path):
    families.save_pretrained(tmp_path, family)
    student = build_student(tmp_path, StudentConfig(dropout=0.0))
    input_ids, attention_mask = families.make_batch(family)
    hidden = encode_student(student, input_ids, attention_mask)
    embedding = student.get_input_embeddings().weight
    (of_head,) = torch.autograd.grad(head_logits(head_of(student), hidden.detach()).square().sum(), embedding)
    assert of_head.abs().sum() > 0
    head_logits(head_of(student), hidden).square().sum().backward()
    assert not torch.equal(embedding.grad, of_head)
    assert [name for name, value in student.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("family", families.FAMILIES)
def test_saved_student_reloads(family, tmp_path):
    families.save_pretrained(tmp_path / "teacher", family)
    student = build_student(tmp_path / "teacher", StudentConfig(num_layers=2))
    student.save_pretrained(tmp_path / "student")
    again, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(logits_of(again, family), logits_of(student, family), rtol=0, atol=0)


def test_only_the_tensors_needed_are_read(tmp_path, monkeypatch):
    families.save_pretrained(tmp_path)
    safe_open, read = student_module.safe_open, []

    class Spy:
        def __init__(self, *args, **options):
            self.file = safe_open(*args, **options)

        def __enter__(self):
            self.tensors = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            read.append(name)
            return self.tensors.get_tensor(name)

    monkeypatch.setattr(student_module, "safe_open", Spy)
    student = build_student(tmp_path, StudentConfig(teacher_layers=(1, 3)))
    layers = {name.split(".")[3] for name in read if ".layer." in name}
    assert layers == {"1", "3"}
    # One tensor a parameter, and the segment embedding.
    assert len(read) == len(set(read)) == len(list(student.parameters())) + 1


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_named_layers_are_the_ones_taken(family, tmp_path):
    teacher = families.make_model(family)
    teacher.save_pretrained(tmp_path)
    student = build_student(tmp_path, StudentConfig(teacher_layers=(3, 1)))
    theirs, ours = layer_stack(teacher), layer_stack(student)
    for layer, source in zip(ours, (3, 1), strict=True):
        expected = sorted(value.sum().item() for value in theirs[source].parameters())
        assert sorted(value.sum().item() for value in layer.parameters()) == expected


@pytest.mark.parametrize("family", families.FAMILIES)
def test_defaults_are_half_the_layers(family, tmp_path):
    families.save_pretrained(tmp_path, family)
    assert build_student(tmp_path, StudentConfig()).config.num_hidden_layers == 2


@pytest.mark.parametrize("family", families.FAMILIES)
def test_dropout_is_the_given_one_in_training_and_the_teachers_in_what_is_saved(family, tmp_path):
    of_teacher = {"hidden_dropout_prob": 0.15, "attention_probs_dropout_prob": 0.05}
    if family == "distilbert":
        of_teacher = {"dropout": 0.15, "attention_dropout": 0.05}
    families.save_pretrained(tmp_path, family, **of_teacher)
    student = build_student(tmp_path, StudentConfig(dropout=0.25))
    assert {module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    values = student.config.to_dict()
    saved = [values[name] for name in ("dropout", "attention_dropout", *of_teacher) if name in values]
    assert saved[:2] == [0.15, 0.05]


def test_bfloat16_teacher_gives_a_float32_student(tmp_path):
    families.make_model("roberta").to(torch.bfloat16).save_pretrained(tmp_path)
    for weights in ("teacher", RANDOM):
        student = build_student(tmp_path, StudentConfig(initial_weights=weights))
        assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
        student.save_pretrained(tmp_path / weights)
        assert AutoModelForMaskedLM.from_pretrained(tmp_path / weights).dtype == torch.float32


@pytest.mark.parametrize(
    ("num_teacher", "num_student", "layers"),
    [
        (12, 6, (0, 2, 4, 7, 9, 11)),
        (6, 3, (0, 2, 5)),
        (12, 1, (0,)),
        (12, 2, (0, 11)),
        (4, 4, (0, 1, 2, 3)),
        (24, 6, (0, 5, 9, 14, 18, 23)),
    ],
)
def test_spread_layers(num_teacher, num_student, layers):
    assert spread_layers(num_teacher, num_student) == layers


def test_spread_layers_are_always_distinct_and_in_range():
    for num_teacher in range(1, 25):
        for num_student in range(1, num_teacher + 1):
            layers = spread_layers(num_teacher, num_student)
            assert len(set(layers)) == num_student
            assert set(layers) <= set(range(num_teacher))


def test_single_layer_teacher_gives_a_single_layer_student(tmp_path):
    families.save_pretrained(tmp_path, num_hidden_layers=1)
    assert build_student(tmp_path, StudentConfig()).config.num_hidden_layers == 1


@pytest.mark.parametrize("family", families.FAMILIES)
def test_random_student_of_another_width_and_depth(family, tmp_path):
    families.save_pretrained(tmp_path, family)
    spec = StudentConfig(initial_weights=RANDOM, num_layers=5, width=48, num_heads=6)
    students = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        students.append(build_student(tmp_path, spec))
    config = students[0].config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (5, 48, 6)
    assert (config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size) == 192
    assert encode_student(students[0], *families.make_batch(family)).shape == (3, 12, 48)
    first, again, other = (logits_of(model, family) for model in students)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_going_on_from_a_saved_student(tmp_path):
    families.save_pretrained(tmp_path / "teacher")
    student = build_student(tmp_path / "teacher", StudentConfig(num_layers=3))
    student.save_pretrained(tmp_path / "student")
    again = build_student(tmp_path / "teacher", StudentConfig(initial_weights=str(tmp_path / "student")))
    torch.testing.assert_close(logits_of(again, "bert"), logits_of(student, "bert"), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"num_layers": 5}, "num_layers is 5, the teacher has 4"),
        ({"teacher_layers": (0, 4)}, "names 4, the teacher has layers 0 to 3"),
        ({"initial_weights": RANDOM, "width": 30}, "width 30 is not divisible by 4 attention heads"),
        ({"initial_weights": RANDOM, "num_heads": 5}, "width 32 is not divisible by 5 attention heads"),
        ({"initial_weights": "/no/where"}, "/no/where is no folder"),
    ],
)
def test_what_does_not_fit_the_teacher_is_refused(spec, message, tmp_path):
    families.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        build_student(tmp_path, StudentConfig(**spec))


def test_bert_of_another_epsilon_is_refused(tmp_path):
    families.save_pretrained(tmp_path, layer_norm_eps=1e-5)
    with pytest.raises(UserError, match="layer_norm_eps 1e-05, its DistilBERT student's is fixed at 1e-12"):
        build_student(tmp_path, StudentConfig())
    build_student(tmp_path, StudentConfig(initial_weights=RANDOM))


def test_saved_students_that_do_not_fit_are_refused(tmp_path):
    families.save_pretrained(tmp_path / "teacher")
    families.save_pretrained(tmp_path / "wide", vocab_size=families.VOCAB_SIZE + 4)
    families.make_model().base_model.save_pretrained(tmp_path / "headless")
    (tmp_path / "empty").mkdir()

    def build(name: str, **options):
        build_student(tmp_path / "teacher", StudentConfig(initial_weights=str(tmp_path / name), **options))

    with pytest.raises(UserError, match="vocabulary of 64, the teacher one of 60"):
        build("wide")
    with pytest.raises(UserError, match=r"num_layers is 2, .* has 4; leave it out"):
        build("teacher", num_layers=2)
    with pytest.raises(UserError, match=r"lacks cls\.predictions\.bias"):
        build("headless")
    with pytest.raises(UserError, match=r"the model in .*empty cannot be loaded; name a folder"):
        build("empty")


def test_no_teacher_module_is_imported():
    code = "import sys, student_train.student; sys.exit('teacher_cache.teacher' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
