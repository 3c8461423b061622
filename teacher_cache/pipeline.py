"""Building a cache: the Ray Data shell around `corpus`, `units` and `format`. No maths in it.

Corpus files become sequences once; units of sequences become shards, one actor call and one receipt each. What is
committed in the store is never done again, so running a build again finishes it.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from teacher_cache.config import CacheSpec, ExecutionConfig, TaskCacheSpec, TeacherConfig
from teacher_cache.corpus.files import CorpusFile, resolve
from teacher_cache.corpus_workers import DescribeFile, TokeniseFile, tokeniser
from teacher_cache.errors import UserError
from teacher_cache.executors import Executor, Item, executor
from teacher_cache.format import codebook, sequences, teacher_files, token_counts
from teacher_cache.format import spec as spec_file
from teacher_cache.format.cache import open_cache
from teacher_cache.format.refusal import refusing
from teacher_cache.format.sequences import Sequences
from teacher_cache.format.spec import CorpusIdentity, FileIdentity, Identity, TeacherIdentity
from teacher_cache.masking import rare_probabilities
from teacher_cache.single_writer import writable
from teacher_cache.storage.store import Store
from teacher_cache.storage.urls import redacted
from teacher_cache.verify import Verification, verify
from teacher_cache.views import Built, Job, build_views, repair_views
from teacher_cache.workers import CodebookWorker

if TYPE_CHECKING:  # torch is loaded only by who asks a teacher
    from teacher_cache.teacher import LoadedTeacher


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build did and what the cache now holds."""

    cache: str
    fingerprint: str
    num_views: int
    """That the spec asks for; the figures below are of these."""
    num_sequences: int
    """Of the corpus; each is in every view."""
    num_tokens: int
    num_units_built: int
    """By this call; the others were committed before."""
    num_kept: int
    num_bytes: int
    """Of all shards of all views."""
    bytes_per_token: float
    """Per corpus token and view."""
    bytes_per_kept_position: float
    seconds: float
    teacher_seconds: float
    """For how long teachers were asked about this call's units, of all workers together."""
    tokens_per_s: float
    """Over this call's units, from the first that was given out to the last view sealed; 0 if there were none."""


def build(spec: CacheSpec | TaskCacheSpec, *, progress: bool = True) -> BuildSummary:
    """Builds a cache, or finishes one: sequences, then view after view, each sealed when whole.

    Raises:
        UserError: bad input, found before any work where possible; or units that the teacher could not do, after
            all others are committed.
    """
    if isinstance(spec, TaskCacheSpec):
        from teacher_cache.task_build import build_task

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
    start = time.perf_counter()
    with opened(url, execution, progress=progress) as job:
        if job.identity.task:
            raise UserError(f"{url} is a cache of a task, which has one view: nothing is masked, so none would differ")
        return finish_views(job, views, start)


def repair(url: str, *, execution: ExecutionConfig, progress: bool = True) -> Verification:
    """Verifies a cache, asks its teacher again about units that are damaged, and verifies once more.

    A unit that comes back with the same bytes is healed where it lies; others get into a new generation of the view's
    manifest. Who has the old one open keeps it.

    Raises:
        UserError: more than shards is damaged, or the teacher fails.
    """
    found = verify(open_cache(url))
    if not found.bad_units:
        return found
    with opened(url, execution, progress=progress) as job:
        repair_views(job, found.bad_units)
    return verify(open_cache(url))


@contextlib.contextmanager
def opened(url: str, execution: ExecutionConfig, *, progress: bool) -> Iterator[Job]:
    """A cache whose sequences and codebook are made, ready to be asked about.

    Raises:
        UserError: it is not so far.
    """
    cache = open_cache(url)
    begun = f"{cache.url} is at its beginning; run `teacher-cache build` with its configuration first"
    try:
        corpus = Sequences(cache.store)
    except FileNotFoundError:
        raise UserError(begun) from None
    if codebook.is_needed(cache.spec) and not codebook.exists(cache.store):
        raise UserError(begun)
    with executor(execution) as workers, writable(url) as store:
        yield Job(
            store=store,
            identity=cache.spec,
            corpus=corpus,
            execution=execution,
            workers=workers,
            progress=progress,
        )


def finish_views(job: Job, num_views: int, start: float) -> BuildSummary:
    """Builds views that are not sealed; `start` is when the call began."""
    asked = time.perf_counter()
    built = build_views(job, num_views)
    end = time.perf_counter()
    return _summary(job, built, seconds=end - start, asked_s=end - asked)


def load_teacher(spec: CacheSpec) -> "LoadedTeacher":
    """Loads the teacher.

    Raises:
        UserError: it cannot teach, or not what is asked of it.
    """
    from teacher_cache import teacher as teachers

    loaded = teachers.load_teacher(spec.teacher.model, spec.teacher.revision)
    teachers.check_sequence_length(loaded.model.config, spec.corpus.sequence_length)
    teachers.check_hidden_layers(loaded.model.config, spec.hidden.stored_layers)
    teachers.check_top_k(loaded.model.config, spec.soft_labels.top_k)
    return loaded


def prepare_teacher(spec: CacheSpec, folder: Path) -> tuple[TeacherIdentity, str]:
    """Loads and checks the teacher; see `save_teacher`."""
    return save_teacher(load_teacher(spec), spec.teacher, folder)


def save_teacher(loaded: "LoadedTeacher", config: TeacherConfig, folder: Path) -> tuple[TeacherIdentity, str]:
    """Saves a teacher to `folder`; its identity, and its tokenizer's digest."""
    from teacher_cache import teacher as teachers

    teachers.save_teacher(loaded, folder)
    identity = TeacherIdentity(sha256=teachers.teacher_sha256(folder), dtype=config.dtype)
    return identity, teachers.tokenizer_sha256(loaded.tokenizer)


def describe_files(corpus: Sequence[tuple[str, str]], workers: Executor, *, text_field: str | None) -> list[CorpusFile]:
    """Size and digest of every corpus file, in order; with `text_field`, every document is read as well.

    Raises:
        UserError: a file cannot be used, or there is no text in any.
    """
    items = [{"file": file, "url": url, "format": format} for file, (url, format) in enumerate(corpus)]
    described = {row["file"]: row for row in _checked(workers.tasks(items, DescribeFile(text_field)))}
    if not any(row["has_text"] for row in described.values()):
        raise _no_text(len(items))
    return [CorpusFile(**_without(described[file], "file", "has_text")) for file in range(len(corpus))]


def _no_text(num_files: int) -> UserError:
    return UserError(f"the corpus has no usable text: {num_files} files, no token; check corpus.paths and format")


def identify(spec: CacheSpec, files: Sequence[CorpusFile], teacher: TeacherIdentity, tokenizer_digest: str) -> Identity:
    """All that decides the cache's content."""
    return Identity(
        objective=spec.objective,
        corpus=CorpusIdentity(
            files=tuple(FileIdentity(num_bytes=f.num_bytes, sha256=f.sha256, format=f.format) for f in files),  # type: ignore[arg-type]  # pydantic checks the format's name
            text_field=spec.corpus.text_field,
            sequence_length=spec.corpus.sequence_length,
            packing=spec.corpus.packing,
            tokenizer_sha256=tokenizer_digest,
        ),
        teacher=teacher,
        masking=spec.masking,
        keep=spec.keep,
        soft_labels=spec.soft_labels,
        hidden=spec.hidden,
        unit_sequences=spec.unit_sequences,
    )


def declare(store: Store, identity: Identity, teacher: TeacherConfig, urls: Sequence[str], folder: Path) -> None:
    """Writes spec and teacher, which lies in `folder`, into the store, or checks that the same are there."""
    notes = {
        "corpus": [redacted(url) for url in urls],
        "teacher": {"model": redacted(teacher.model), "revision": teacher.revision},
    }
    spec_file.create_or_check(store, identity, notes)

    def check(there: Path) -> None:
        from teacher_cache import teacher as teachers

        refusal = (
            f"{store.url}/teacher holds files of another teacher, or damaged ones; delete it and run the build again"
        )
        with refusing(f"{store.url}/teacher", refusal):
            tokenizer = teachers.load_teacher(str(there), objective=identity.objective).tokenizer
            found = teachers.teacher_sha256(there), teachers.tokenizer_sha256(tokenizer)
        if found != (identity.teacher.sha256, identity.corpus.tokenizer_sha256):
            raise UserError(refusal)

    teacher_files.put(store, folder, check=check)


def build_sequences(
    store: Store, identity: Identity, files: Sequence[CorpusFile], workers: Executor, *, progress: bool
) -> Sequences:
    """Tokenises the files that are not committed yet, in parallel, and seals the sequences.

    Raises:
        UserError: a file cannot be used, or there is no text in any.
    """
    try:
        sealed = Sequences(store)
    except FileNotFoundError:
        sealed = _tokenise(store, identity, files, workers, progress=progress)
    if not sealed.num_sequences:
        raise _no_text(len(files))
    return sealed


def _tokenise(
    store: Store, identity: Identity, files: Sequence[CorpusFile], workers: Executor, *, progress: bool
) -> Sequences:
    done = sequences.committed_files(store)
    items = [
        {"file": place, "url": file.url, "format": file.format} for place, file in enumerate(files) if place not in done
    ]
    results = _checked(workers.tasks(items, TokeniseFile(store.url, identity.fingerprint)))
    for _ in tqdm(results, "tokenising", len(items), unit=" files", disable=not progress):
        pass
    sequences.seal(store, len(files), identity.fingerprint)
    return Sequences(store)


def make_codebook(job: Job) -> None:
    """Solves what must be known of the whole corpus before the first view: masking probabilities, codebook.

    Raises:
        UserError: the teacher's answers to the sample are of no use.
    """
    if job.identity.masks_rare:
        _count_tokens(job.store, job.identity, job.corpus)
    if not codebook.is_needed(job.identity) or codebook.exists(job.store):
        return
    from teacher_cache.codebooks import sample_ids

    ids = sample_ids(job.identity, num_sequences=job.corpus.num_sequences, num_tokens=job.corpus.num_tokens)
    results = _checked(job.workers.actors([{"ids": ids}], CodebookWorker, job.worker_arguments))
    for _ in tqdm(results, f"codebook of {len(ids):,} sequences", 1, unit="", disable=not job.progress):
        pass


def _count_tokens(store: Store, identity: Identity, corpus: Sequences) -> None:
    """Solves the masking probabilities of policy `rare` on the corpus, once."""
    if token_counts.exists(store):
        return
    assert identity.masking, "a task's tokens are not masked"
    from teacher_cache.units import vocabulary_of

    vocabulary = vocabulary_of(tokeniser(store.url, identity.fingerprint)[2])
    counts = token_counts.count(corpus, vocabulary.size)
    token_counts.create(store, counts, rare_probabilities(counts, identity.masking.rate, vocabulary.special_ids))


def _checked(results: Iterator[Item]) -> Iterator[Item]:
    """Stops at the first error.

    Raises:
        UserError: its message.
    """
    for result in results:
        if result["error"]:
            raise UserError(result["error"])
        yield result


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in (*names, "error")}


def _summary(job: Job, built: Sequence[Built], *, seconds: float, asked_s: float) -> BuildSummary:
    num_bytes, num_kept = sum(view.sealed.num_bytes for view in built), sum(view.sealed.num_kept for view in built)
    num_tokens = job.corpus.num_tokens
    return BuildSummary(
        cache=job.store.url,
        fingerprint=job.identity.fingerprint,
        num_views=len(built),
        num_sequences=job.corpus.num_sequences,
        num_tokens=num_tokens,
        num_units_built=sum(view.num_units for view in built),
        num_kept=num_kept,
        num_bytes=num_bytes,
        bytes_per_token=num_bytes / (num_tokens * len(built)),
        bytes_per_kept_position=num_bytes / max(num_kept, 1),
        seconds=seconds,
        teacher_seconds=sum(view.teacher_s for view in built),
        tokens_per_s=sum(view.num_tokens for view in built) / asked_s,
    )
