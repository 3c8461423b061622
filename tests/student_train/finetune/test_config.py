"""What fine-tuning refuses before anything is loaded."""

import pytest

from student_train.finetune.config import FinetuneConfig, places, safe_name
from teacher_cache.errors import UserError
from teacher_cache.shell.settings import parse

VALUES = {
    "output": "out",
    "models": {"teacher": "bert-base-uncased", "six layers": "students/six/model"},
    "tasks": {"SST-2": {"layout": "SST-2", "folder": "data/SST-2"}},
}


def test_defaults_are_berts():
    config = parse(FinetuneConfig, VALUES)
    assert (config.lrs, config.seeds, config.epochs, config.batch_size) == ((2e-5, 3e-5, 5e-5), (1, 2, 3), 3, 32)
    assert config.reference_model == "teacher"
    assert parse(FinetuneConfig, VALUES | {"reference": "six layers"}).reference_model == "six layers"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "models: Dictionary should have at least 1 item"),
        ({"tasks": {}}, "tasks: Dictionary should have at least 1 item"),
        ({"models": {"a b": "x", "a/b": "y"}}, "models 'a b' and 'a/b' would share a folder; rename one"),
        ({"reference": "five layers"}, "reference is 'five layers', models are teacher, six layers"),
        ({"lrs": [1e-5, 0.00001]}, "lrs names a value more than once"),
        ({"lrs": [0]}, r"lrs\.0: Input should be greater than 0"),
        ({"seeds": []}, "seeds: .*at least 1"),
        ({"execution": {"gpus_per_worker": 2}}, "less than or equal to 1"),
        ({"epoch": 3}, "epoch: unknown key; valid keys here: output, models, reference, tasks, lrs"),
        (
            {"tasks": {"x": {"layout": "SST-2", "folders": "x"}}},
            r"folders: unknown key; valid keys here: layout, folder",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_key(change, message):
    with pytest.raises(UserError, match=message):
        parse(FinetuneConfig, VALUES | change)


@pytest.mark.parametrize(("name", "safe"), [("six layers", "six_layers"), ("../x", "_._x"), ("-a", "_a"), ("é", "_")])
def test_names_become_parts_of_keys(name, safe):
    assert safe_name(name) == safe


def test_jobs_need_places_that_all_machines_find(tmp_path):
    values = VALUES | {"models": {"teacher": "bert-base-uncased", "six": str(tmp_path)}}
    found = places(parse(FinetuneConfig, values))
    assert found == {"models": [str(tmp_path)], "tasks.SST-2": ["data/SST-2"], "output": ["out"]}
