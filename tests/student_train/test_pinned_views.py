"""A run keeps to the views that were sealed when it began, whatever is sealed while it learns."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from student_train import diverged
from student_train.config import StudentSpec
from student_train.run_folder import StepReport, read_run
from student_train.sources import views_line
from student_train.worker import run_worker
from teacher_cache.config import ExecutionConfig
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.pipeline import extend
from teacher_cache.storage.store import Store
from tests import caches
from tests.student_train import runs

EPOCHS, EPOCH_STEPS = 3, 3
SAVED = 4
"""Steps before the kill: the second epoch has begun."""


@pytest.fixture(scope="module")
def one_view(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """40 sequences of which view 0 is sealed."""
    return caches.build_cache(tmp_path_factory.mktemp("one-view") / "cache")


@pytest.fixture(scope="module")
def whole(one_view: Cache, tmp_path_factory: pytest.TempPathFactory) -> list[StepReport]:
    """The steps of a run that was never stopped, while view 0 was all there was."""
    output = tmp_path_factory.mktemp("whole")
    run(make_spec(one_view, output))
    return read_run(Store(str(output))).steps


@pytest.fixture
def cache(one_view: Cache, tmp_path: Path) -> Cache:
    """A copy that may be extended."""
    return open_cache(str(shutil.copytree(one_view.url, tmp_path / "cache")))


def make_spec(cache: Cache, output: Path) -> StudentSpec:
    execution = runs.make_execution(checkpoint_steps=SAVED)
    return runs.make_spec(cache, output, epochs=EPOCHS, execution=execution)


def run(spec: StudentSpec, **options: Any) -> list[str]:
    """Trains to the end; the lines that were shown."""
    shown: list[Any] = []
    run_worker(spec, device=runs.CPU, show=shown.append, **options)
    return [item for item in shown if isinstance(item, str)]


def kill(_: StepReport) -> None:
    raise runs.KilledError


def extend_to(cache: Cache, views: int) -> None:
    extend(cache.url, views=views, execution=ExecutionConfig(num_workers=0, gpus_per_worker=0), progress=False)
    assert open_cache(cache.url).num_views == views


def test_a_run_goes_on_with_the_views_of_its_beginning(cache: Cache, whole: list[StepReport], tmp_path: Path) -> None:
    spec = make_spec(cache, tmp_path / "run")
    with pytest.raises(runs.KilledError):
        run(spec, on_checkpoint=kill)
    extend_to(cache, 2)
    lines = run(spec)
    assert lines == ["3 epoch(s) read 1 of 2 sealed view(s): those that were sealed when the run began"]
    done = read_run(Store(spec.output))
    assert [step.step for step in done.steps] == list(range(1, EPOCHS * EPOCH_STEPS + 1))
    assert [step.rows_digest for step in done.steps] == [step.rows_digest for step in whole]
    assert [step.losses for step in done.steps] == [step.losses for step in whole]
    assert [told.num_views for told in done.description.caches] == [1]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"view 0 `{cache.manifest(0).sha256}`" in card
    assert "view 1" not in card


def test_a_run_that_begins_later_reads_both(cache: Cache, whole: list[StepReport], tmp_path: Path) -> None:
    extend_to(cache, 2)
    spec = make_spec(cache, tmp_path / "run")
    assert run(spec) == ["3 epoch(s) read 2 of 2 sealed view(s) in turn; the run keeps to these when more are sealed"]
    both, one = ([step.rows_digest for step in steps] for steps in (read_run(Store(spec.output)).steps, whole))
    assert both[:EPOCH_STEPS] == one[:EPOCH_STEPS]
    assert both[EPOCH_STEPS : 2 * EPOCH_STEPS] != one[EPOCH_STEPS : 2 * EPOCH_STEPS]


def test_a_checkpoint_names_the_manifests_that_were_read(cache: Cache, tmp_path: Path) -> None:
    extend_to(cache, 3)
    opened = open_cache(cache.url)
    spec = make_spec(opened, tmp_path / "run")
    for step, num_read in ((2, 1), (EPOCH_STEPS, 1), (SAVED, 2)):
        trainer = runs.make_trainer(spec)
        runs.train_until(trainer, step)
        trainer.save(Store(spec.output))
        state = json.loads((tmp_path / "run" / "checkpoints" / f"step-{step:09d}" / "state.json").read_text())
        assert state["progress"]["manifests"] == [[opened.manifest(view).sha256 for view in range(num_read)]]
        assert state["progress"]["num_views"] == 3


def test_a_batch_that_diverged_is_of_a_view_of_the_run(cache: Cache, tmp_path: Path) -> None:
    trainer = runs.make_trainer(make_spec(cache, tmp_path / "run"))
    runs.train_until(trainer, SAVED)
    store = Store(str(tmp_path / "run"))
    diverged.save_batch(store, trainer, trainer.batch(list(cache.rows())[:2], epoch=1))
    (saved,) = json.loads("[" + (tmp_path / "run" / "diverged" / "worker-0.json").read_text() + "]")
    assert (trainer.progress.epoch, saved["view"]) == (1, 0)


@pytest.mark.parametrize(
    ("num_views", "num_epochs", "expected"),
    [
        (2, 1, "1 epoch(s) read 1 of 2 sealed view(s)"),
        (2, 2, "2 epoch(s) read 2 of 2 sealed view(s)"),
        (2, 3, "3 epoch(s) read 2 of 2 sealed view(s) in turn; the run keeps to these when more are sealed"),
        (1, 1, "1 epoch(s) read 1 of 2 sealed view(s): those that were sealed when the run began"),
    ],
)
def test_a_person_is_told_which_views_are_read(
    default_cache: Cache, num_views: int, num_epochs: int, expected: str
) -> None:
    assert views_line([default_cache], num_views=num_views, num_epochs=num_epochs) == expected


def test_of_several_caches_only_common_views_count(default_cache: Cache, one_view: Cache) -> None:
    line = views_line([default_cache, one_view], num_views=1, num_epochs=1)
    assert line == "1 epoch(s) read 1 of 1 sealed view(s)"
