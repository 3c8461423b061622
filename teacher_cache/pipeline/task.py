"""Building a task's cache: its training features become sequences once, and then all goes as in `run`."""

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from teacher_cache import teacher as teachers
from teacher_cache.config import TaskCacheSpec
from teacher_cache.format import sequences
from teacher_cache.format import spec as spec_file
from teacher_cache.format.sequences import Sequences, StoredSequence
from teacher_cache.format.spec import Identity, TaskCorpusIdentity, TaskObjective, task_identity
from teacher_cache.pipeline.declare import declare, save_teacher
from teacher_cache.pipeline.executors import executor
from teacher_cache.pipeline.job import Job
from teacher_cache.pipeline.single_writer import writable
from teacher_cache.pipeline.summary import BuildSummary, finish_views
from teacher_cache.storage.store import Store
from teacher_cache.task_sequences import put_sequences, task_sequences
from teacher_cache.tasks.task import load_task


def build_task(spec: TaskCacheSpec, *, progress: bool = True) -> BuildSummary:
    """Builds a task's cache, or finishes one.

    Raises:
        UserError: see `run.build`.
    """
    start = time.perf_counter()
    with contextlib.ExitStack() as resources:
        store = Store(spec.cache)
        with contextlib.suppress(FileNotFoundError):  # a bad URL should not cost a look at the task
            spec_file.digest(store)
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        asked = _prepare(spec, folder)
        workers = resources.enter_context(executor(spec.execution))
        store = resources.enter_context(writable(spec.cache))
        declare(store, asked.identity, spec.teacher, [asked.source], folder)
        if not store.exists(sequences.MANIFEST_KEY):
            put_sequences(store, asked.sequences, asked.identity.fingerprint)
        job = Job(
            store=store,
            identity=asked.identity,
            corpus=Sequences(store),
            execution=spec.execution,
            workers=workers,
            progress=progress,
        )
        return finish_views(job, 1, start)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a teacher is asked."""

    identity: Identity
    sequences: list[StoredSequence]
    source: str
    """File or hub data set of the examples."""


def _prepare(spec: TaskCacheSpec, folder: Path) -> _Asked:
    """Reads the task, loads and checks its teacher, and saves that to `folder`."""
    task = load_task(spec.task.layout, spec.task)
    objective = TaskObjective(kind=task.kind, labels=task.labels)
    loaded = teachers.load_teacher(spec.teacher.model, spec.teacher.revision, objective=objective)
    teachers.check_sequence_length(loaded.model.config, spec.task.max_length, key="task.max_length")
    teacher, tokenizer_digest = save_teacher(loaded, spec.teacher, folder)
    found = task_sequences(task, loaded.tokenizer)
    corpus = TaskCorpusIdentity(
        sha256=sequences.digest_of(found), sequence_length=spec.task.max_length, tokenizer_sha256=tokenizer_digest
    )
    return _Asked(
        identity=task_identity(objective, corpus=corpus, teacher=teacher, unit_sequences=spec.unit_sequences),
        sequences=found,
        source=task.files[0].name if task.files else f"{spec.task.hub} of the hub",
    )
