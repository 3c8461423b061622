"""What a student cost, from the run that made it."""

from dataclasses import replace

import pytest

from student_train.sources import describe
from student_train.worth.cost import cost_of
from tests.student_train.report import records


def test_a_finished_run_tells_its_time_tokens_and_caches(tmp_path):
    records.write_run(tmp_path, num_steps=100, step_s=3.0)
    cost = cost_of(f"{tmp_path}/model")
    assert cost
    assert cost_of(str(tmp_path)) == cost
    assert (cost.training_s, cost.num_steps, cost.num_workers) == (300, 100, 4)
    assert cost.num_tokens == 100 * records.TOKENS_PER_STEP
    assert cost.caches[0].num_bytes == 3 * (records.CACHE.label_bytes + records.CACHE.hidden_bytes)
    assert cost.device == "NVIDIA A100-SXM4-80GB"


def test_views_that_were_not_read_cost_a_student_nothing(tmp_path):
    records.write_run(tmp_path, num_steps=100, num_steps_done=50)
    cost = cost_of(str(tmp_path))
    assert cost
    assert cost.caches[0].num_views == 2
    assert cost.caches[0].num_bytes == 2 * (records.CACHE.label_bytes + records.CACHE.hidden_bytes)
    assert cost_of(f"{tmp_path}/bert-base-uncased") is None, "a hub's name, seen from the run's folder"


def test_the_time_of_teachers_is_read_from_the_cache(tmp_path, default_cache):
    assert cost_of(f"{tmp_path}/model") is None
    records.write_run(tmp_path, cache=describe(default_cache, num_views=2))
    cost = cost_of(f"{tmp_path}/model")
    assert cost
    assert cost.caches[0].teacher_s
    assert 0 < cost.caches[0].teacher_s < 100
    records.write_run(tmp_path, cache=replace(describe(default_cache, num_views=2), fingerprint="e" * 64))
    rebuilt = cost_of(f"{tmp_path}/model")
    assert rebuilt
    assert rebuilt.caches[0].teacher_s is None, "another cache is there now"


@pytest.mark.parametrize("path", ["bert-base-uncased", "google/bert", "a/model"])
def test_what_no_run_left_has_no_known_cost(path):
    assert cost_of(path) is None
