"""The quickstart's configuration files are ones that the commands take."""

from pathlib import Path

from student_train.config import StudentSpec
from teacher_cache.config import CacheSpec
from teacher_cache.shell.settings import load

FOLDER = Path(__file__).parents[2] / "infra" / "quickstart"


def test_the_student_learns_from_the_cache_that_is_built():
    cache, student = load(CacheSpec, FOLDER / "cache.yaml"), load(StudentSpec, FOLDER / "student.yaml")
    assert student.caches == (cache.cache,)
