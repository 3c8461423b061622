"""What lies in an output, and which commands may share one."""

import math
from dataclasses import asdict, replace

import pytest

from student_train.finetune import records
from student_train.finetune.records import Recipe, Teaching, read_results, write
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store
from teacher_cache.tasks.record import TaskFile
from tests.student_train.finetune.made import model_of, run_of, task_of

RECIPE = Recipe(
    training={"epochs": 3, "weight_decay": 0.0, "dtype": "float32"},
    models=["six layers", "teacher"],
    reference="teacher",
    tasks=["x"],
    lrs=[2e-5, 5e-5],
    seeds=[1, 2],
)
MODELS = [model_of("six layers"), model_of("teacher")]
TASKS = [task_of("x", files=[TaskFile(name="/data/x.tsv", num_bytes=3, sha256="1" * 64)])]


@pytest.fixture
def store(tmp_path):
    store = Store(str(tmp_path))
    records.begin(store, RECIPE, MODELS, TASKS, {})
    return store


def test_results_are_what_the_newest_command_named(store):
    runs = [
        run_of("six layers", "x", 2e-5, 1, 91.25),
        run_of("six layers", "x", 5e-5, 1, None),
        run_of("teacher", "x", 2e-5, 1, 93.0),
    ]
    others = [run_of("teacher", "x", 3e-5, 1, 99.0), run_of("teacher", "y", 2e-5, 1, 99.0)]
    for run in [*runs, *others]:
        write(store, run)
    results = read_results(store)
    assert (results.reference, results.models, results.tasks) == ("teacher", MODELS, TASKS)
    assert (results.lrs, results.seeds) == ([2e-5, 5e-5], [1, 2])
    assert results.runs == runs


def test_a_model_beside_the_records_is_no_record(store):
    run = run_of("teacher", "x", 2e-5, 1, 93.0)
    write(store, run)
    store.replace("runs/teacher/x/2e-05-1/model/config.json", b"{}")
    assert read_results(store).runs == [run]


def test_an_output_without_fine_tuning_says_so(tmp_path):
    with pytest.raises(UserError, match="holds nothing of `student-train finetune`"):
        read_results(Store(str(tmp_path)))


def test_damaged_records_are_named(store, tmp_path):
    write(store, run_of("teacher", "x", 2e-5, 1, 93.0))
    path = tmp_path / "runs" / "teacher" / "x" / "2e-05-1.json"
    path.write_text(path.read_text().replace("93", "99"))
    with pytest.raises(UserError, match=r"2e-05-1\.json is damaged"):
        read_results(store)


def test_a_score_that_is_no_number_cannot_be_written(store):
    with pytest.raises(ValueError, match="nan"):
        write(store, run_of("teacher", "x", 2e-5, 1, math.nan))


def test_models_and_tasks_may_come_move_and_go(store):
    moved = [model_of("teacher", path="/elsewhere"), model_of("new")]
    files = [TaskFile(name="s3://data/x.tsv.zst", num_bytes=2, sha256="2" * 64)]
    tasks = [task_of("x", files=files, config={"layout": "SST-2", "folder": "s3://data", "averaged": False})]
    tasks.append(task_of("new"))
    recipe = replace(RECIPE, models=["teacher", "new"], tasks=["x", "new"], lrs=[5e-5], seeds=[1, 2, 3])
    records.begin(store, recipe, moved, tasks, {})
    assert read_results(store).models == moved
    assert read_results(store).tasks == tasks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"epochs": 4}}, "epochs is 3 there and 4 here"),
        ({"model": {"content_sha256": "f" * 64}}, "models.teacher.content_sha256 is another there and another here"),
        ({"model": {"num_layers": 6}}, "models.teacher.num_layers is 2 there and 6 here"),
        ({"task": {"num_train": 50}}, "tasks.x.num_train is 100 there and 50 here"),
        ({"task": {"content_sha256": "f" * 64}}, "tasks.x.content_sha256 is another there and another here"),
        ({"task": {"config": {"layout": "CoLA"}}}, "tasks.x.config.layout is 'SST-2' there and 'CoLA' here"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_differs(store, tmp_path, change, message):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    recipe = replace(RECIPE, training=RECIPE.training | change.get("training", {}))
    models = [MODELS[0], replace(MODELS[1], **change.get("model", {}))]
    with pytest.raises(UserError, match=f"holds runs that cannot be compared with these: {message}; choose another"):
        records.begin(store, recipe, models, [replace(TASKS[0], **change.get("task", {}))], {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_a_model_may_learn_further_tasks_from_caches_and_none_otherwise_than_before(store):
    teaching = Teaching(fingerprint="a" * 64, temperature=2.0, soft_weight=0.5)
    write(store, replace(run_of("teacher", "x", 2e-5, 1, 93.0), taught=teaching))
    recipe, tasks = replace(RECIPE, tasks=["x", "new"]), [*TASKS, task_of("new")]
    records.begin(store, recipe, MODELS, tasks, {("teacher", "x"): teaching, ("teacher", "new"): teaching})
    records.begin(store, replace(RECIPE, tasks=["new"]), MODELS, [task_of("new")], {})
    with pytest.raises(UserError, match=r"distillation\.teacher\.x is another there and None here"):
        records.begin(store, RECIPE, MODELS, TASKS, {})
    with pytest.raises(UserError, match=r"distillation\.teacher\.x\.temperature is 2\.0 there and 4\.0 here"):
        records.begin(store, RECIPE, MODELS, TASKS, {("teacher", "x"): replace(teaching, temperature=4.0)})


def test_two_names_of_one_folder_are_two_models(store):
    with pytest.raises(UserError, match=r"models\.six_layers\.name is 'six layers' there and 'six_layers' here"):
        records.begin(store, RECIPE, [model_of("six_layers")], TASKS, {})


def test_records_are_plain_values(store):
    write(store, run_of("teacher", "x", 2e-5, 1, 93.0))
    assert asdict(read_results(store))["runs"][0]["score"] == 93.0
