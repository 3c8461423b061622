"""The published run's configuration files are ones that the commands take, and fit each other."""

from pathlib import Path

import pytest

from student_train.config import StudentSpec
from student_train.finetune.config import FinetuneConfig
from teacher_cache.config import CacheSpec
from teacher_cache.shell.settings import load
from teacher_cache.tasks.glue import GLUE

FOLDER = Path(__file__).parents[2] / "infra" / "published"


def test_each_reads_what_the_one_before_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE", "s3://bucket")
    cache, student = load(CacheSpec, FOLDER / "cache.yaml"), load(StudentSpec, FOLDER / "student.yaml")
    worth = load(FinetuneConfig, FOLDER / "worth.yaml")
    assert student.caches == (cache.cache,)
    assert worth.models == {"teacher": cache.teacher.model, "six layers": f"{student.output}/model"}
    assert set(worth.tasks) == set(GLUE)
