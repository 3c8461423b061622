"""Building a task's cache: its training features become sequences once, and then all goes as in `pipeline`."""

import contextlib
import tempfile
import time
from pathlib import Path

from teacher_cache import teacher as teachers
from teacher_cache.config import TaskCacheSpec
from teacher_cache.executors import executor
from teacher_cache.format import sequences
from teacher_cache.format import spec as spec_file
from teacher_cache.format.sequences import Sequences
from teacher_cache.format.spec import TaskCorpusIdentity, TaskObjective, task_identity
from teacher_cache.pipeline import BuildSummary, declare, finish_views, save_teacher
from teacher_cache.single_writer import writable
from teacher_cache.storage.store import Store
from teacher_cache.task_sequences import put_sequences, task_sequences
from teacher_cache.tasks.task import load_task
from teacher_cache.views import Job


def build_task(spec: TaskCacheSpec, *, progress: bool = True) -> BuildSummary:
    """Builds a task's cache, or finishes one.

    Raises:
        UserError: see `pipeline.build`.
    """
    start = time.perf_counter()
    with contextlib.ExitStack() as resources:
        store = Store(spec.cache)
        with contextlib.suppress(FileNotFoundError):  # a bad URL should not cost a look at the task
            spec_file.digest(store)
        task = load_task(spec.task.layout, spec.task)
        objective = TaskObjective(kind=task.kind, labels=task.labels)
        loaded = teachers.load_teacher(spec.teacher.model, spec.teacher.revision, objective=objective)
        teachers.check_sequence_length(loaded.model.config, spec.task.max_length, key="task.max_length")
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        teacher, tokenizer_digest = save_teacher(loaded, spec.teacher, folder)
        found = task_sequences(task, loaded.tokenizer)
        corpus = TaskCorpusIdentity(
            sha256=sequences.digest_of(found),
            sequence_length=spec.task.max_length,
            tokenizer_sha256=tokenizer_digest,
        )
        identity = task_identity(objective, corpus=corpus, teacher=teacher, unit_sequences=spec.unit_sequences)
        workers = resources.enter_context(executor(spec.execution))
        store = resources.enter_context(writable(spec.cache))
        urls = [file.name for file in task.files] or [f"{spec.task.hub} of the hub"]
        declare(store, identity, spec.teacher, urls, folder)
        if not store.exists(sequences.MANIFEST_KEY):
            put_sequences(store, found, identity.fingerprint)
        job = Job(
            store=store,
            identity=identity,
            corpus=Sequences(store),
            execution=spec.execution,
            workers=workers,
            progress=progress,
        )
        return finish_views(job, 1, start)
