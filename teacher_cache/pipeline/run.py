"""A cache built, extended by views, or repaired.

What is committed in the store is never done again, so running a build again finishes it.
"""

import contextlib
import tempfile
import time
from pathlib import Path

from teacher_cache.config import CacheSpec, ExecutionConfig, TaskCacheSpec
from teacher_cache.corpus.files import resolve
from teacher_cache.errors import UserError
from teacher_cache.format import sequences
from teacher_cache.format import spec as spec_file
from teacher_cache.format.cache import open_cache
from teacher_cache.pipeline.codebook import make_codebook
from teacher_cache.pipeline.declare import declare, identify, prepare_teacher
from teacher_cache.pipeline.executors import executor
from teacher_cache.pipeline.job import Job, opened
from teacher_cache.pipeline.single_writer import writable
from teacher_cache.pipeline.summary import BuildSummary, finish_views
from teacher_cache.pipeline.tokenise import build_sequences, describe_files
from teacher_cache.pipeline.views import repair_views
from teacher_cache.storage.store import Store
from teacher_cache.verify import Verification, verify


def build(spec: CacheSpec | TaskCacheSpec, *, progress: bool = True) -> BuildSummary:
    """Builds a cache, or finishes one: sequences, then view after view, each sealed when whole.

    Raises:
        UserError: bad input, found before any work where possible; or units that the teacher could not do, after
            all others are committed.
    """
    if isinstance(spec, TaskCacheSpec):
        from teacher_cache.pipeline.task import build_task

        return build_task(spec, progress=progress)
    start = time.perf_counter()
    with contextlib.ExitStack() as resources:
        store = Store(spec.cache)
        with contextlib.suppress(FileNotFoundError):  # a bad URL should not cost a look at the whole corpus
            spec_file.digest(store)
        corpus = resolve(spec.corpus.paths, spec.corpus.format)
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        teacher, tokenizer_digest = prepare_teacher(spec, folder)
        workers = resources.enter_context(executor(spec.execution))
        is_tokenised = store.exists(sequences.MANIFEST_KEY)
        files = describe_files(corpus, workers, text_field=None if is_tokenised else spec.corpus.text_field)
        identity = identify(spec, files, teacher, tokenizer_digest)
        store = resources.enter_context(writable(spec.cache))
        declare(store, identity, spec.teacher, [file.url for file in files], folder)
        corpus_sequences = build_sequences(store, identity, files, workers, progress=progress)
        job = Job(
            store=store,
            identity=identity,
            corpus=corpus_sequences,
            execution=spec.execution,
            workers=workers,
            progress=progress,
        )
        make_codebook(job)
        return finish_views(job, spec.views, start)


def extend(url: str, *, views: int, execution: ExecutionConfig, progress: bool = True) -> BuildSummary:
    """Builds a cache's missing views up to a number, from what it holds itself: neither corpus nor teacher is needed.

    Raises:
        UserError: there is no cache, it was never tokenised, or it is of a task; or units that the teacher could not
            do.
    """
    if views < 1:
        raise UserError(f"views is {views}: how many there are to be, those that are there included; give 1 or more")
    start = time.perf_counter()
    with opened(url, execution, progress=progress) as job:
        if job.identity.task:
            raise UserError(f"{url} is a cache of a task, which has one view: nothing is masked, so none would differ")
        return finish_views(job, views, start)


def repair(url: str, *, execution: ExecutionConfig, ask_teacher: bool = False, progress: bool = True) -> Verification:
    """Verifies a cache, asks its teacher again about units that are damaged, and verifies once more.

    A unit that comes back with the same bytes is healed where it lies; others get into a new generation of the view's
    manifest. Who has the old one open keeps it.

    Raises:
        UserError: more than shards is damaged, or the teacher fails.
    """
    found = verify(open_cache(url), ask_teacher=ask_teacher)
    if not found.bad_units:
        return found
    with opened(url, execution, progress=progress) as job:
        repair_views(job, found.bad_units)
    return verify(open_cache(url), ask_teacher=ask_teacher)
