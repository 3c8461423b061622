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
from typing import Any

from tqdm import tqdm

from teacher_cache.config import CacheSpec, ExecutionConfig
from teacher_cache.corpus.files import CorpusFile, resolve
from teacher_cache.errors import UserError
from teacher_cache.executors import Executor, Item, executor
from teacher_cache.format import codebook, manifest, sequences, teacher_files, token_counts
from teacher_cache.format import spec as spec_file
from teacher_cache.format.manifest import Digests
from teacher_cache.format.sequences import Sequences
from teacher_cache.format.spec import CorpusIdentity, FileIdentity, Identity, TeacherIdentity
from teacher_cache.format.store import Store
from teacher_cache.masking import rare_probabilities
from teacher_cache.workers import CodebookWorker, DescribeFile, TokeniseFile, UnitWorker, tokeniser


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
    tokens_per_s: float
    """Teacher's, over this call's units; 0 if there were none."""


def build(spec: CacheSpec, *, progress: bool = True) -> BuildSummary:
    """Builds a cache, or finishes one: sequences, then view after view, each sealed when whole.

    Raises:
        UserError: bad input, found before any work where possible; or units that the teacher could not do, after
            all others are committed.
    """
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
        declare(store, identity, spec, files, folder)
        corpus_sequences = build_sequences(store, identity, files, workers, progress=progress)
        make_codebook(store, identity, corpus_sequences, spec.execution, workers, progress=progress)
        asked = time.perf_counter()
        receipts: list[Item] = []
        for view in range(spec.views):
            receipts += build_view(store, identity, view, corpus_sequences, spec.execution, workers, progress=progress)
        end = time.perf_counter()
        return _summary(store, spec.views, corpus_sequences, receipts, seconds=end - start, asked_s=end - asked)


def prepare_teacher(spec: CacheSpec, folder: Path) -> tuple[TeacherIdentity, str]:
    """Loads and checks the teacher, saves it to `folder`; its identity, and its tokenizer's digest."""
    from teacher_cache import teacher as teachers

    loaded = teachers.load_teacher(spec.teacher.model, spec.teacher.revision)
    teachers.check_sequence_length(loaded.model.config, spec.corpus.sequence_length)
    teachers.check_hidden_layers(loaded.model.config, spec.hidden.stored_layers)
    teachers.check_top_k(loaded.model.config, spec.soft_labels.top_k)
    teachers.save_teacher(loaded, folder)
    identity = TeacherIdentity(sha256=teachers.teacher_sha256(folder), dtype=spec.teacher.dtype)
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


def declare(store: Store, identity: Identity, cache: CacheSpec, files: Sequence[CorpusFile], folder: Path) -> None:
    """Writes spec and teacher into the store, or checks that the same are there."""
    notes = {
        "corpus": [file.url for file in files],
        "teacher": {"model": cache.teacher.model, "revision": cache.teacher.revision},
    }
    spec_file.create_or_check(store, identity, notes)
    teacher_files.put(store, folder)


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


def make_codebook(
    store: Store,
    identity: Identity,
    corpus: Sequences,
    execution: ExecutionConfig,
    workers: Executor,
    *,
    progress: bool,
) -> None:
    """Solves what must be known of the whole corpus before the first view: masking probabilities, codebook.

    Raises:
        UserError: the teacher's answers to the sample are of no use.
    """
    if identity.masking.policy == "rare":
        _count_tokens(store, identity, corpus)
    if not codebook.is_needed(identity) or codebook.exists(store):
        return
    from teacher_cache.codebooks import sample_ids

    ids = sample_ids(identity, num_sequences=corpus.num_sequences, num_tokens=corpus.num_tokens)
    results = _checked(workers.actors([{"ids": ids}], CodebookWorker, _worker_arguments(store, execution)))
    for _ in tqdm(results, f"codebook of {len(ids):,} sequences", 1, unit="", disable=not progress):
        pass


def _worker_arguments(store: Store, execution: ExecutionConfig) -> dict[str, Any]:
    return {"url": store.url, "batch_tokens": execution.batch_tokens, "num_threads": execution.cpus_per_worker}


def build_view(
    store: Store,
    identity: Identity,
    view: int,
    corpus: Sequences,
    execution: ExecutionConfig,
    workers: Executor,
    *,
    progress: bool,
) -> list[Item]:
    """Builds the units of a view that are not committed yet, and seals it; receipts of the units built.

    Raises:
        UserError: some units failed; all others are committed.
    """
    num_units = -(-corpus.num_sequences // identity.unit_sequences)
    if manifest.newest_generation(store, view) is not None:
        return []
    done = manifest.committed_units(store, view)
    pending = [unit for unit in range(num_units) if unit not in done]
    units = [{"view": view, "unit": unit} for unit in pending]
    receipts, num_bytes = [], 0
    with tqdm(
        desc=f"view {view}",
        unit=" tokens",
        unit_scale=True,
        disable=not progress,
        total=corpus.num_tokens,
        # Units hold like numbers of tokens, so those done before are shown by their share.
        initial=corpus.num_tokens * (num_units - len(pending)) // num_units,
    ) as bar:
        for receipt in workers.actors(units, UnitWorker, _worker_arguments(store, execution)):
            receipts.append(receipt)
            num_bytes += receipt["num_bytes"]
            bar.update(receipt["num_tokens"])
            bar.set_postfix_str(f"{num_bytes / 2**20:.1f} MiB written")
    failed = [receipt for receipt in receipts if receipt["error"]]
    if failed:
        causes = "\n".join(f"  unit {receipt['unit']}: {receipt['error']}" for receipt in failed[:5])
        raise UserError(
            f"{len(failed)} of {num_units} units of view {view} failed, all others are committed:\n{causes}\n"
            "mend the cause and run the build again: it does only these"
        )
    digests = Digests(
        spec=spec_file.digest(store),
        teacher=teacher_files.digest(store),
        sequences=corpus.sha256,
        codebook=codebook.digest(store) if codebook.is_needed(identity) else None,
        token_counts=token_counts.digest(store) if identity.masking.policy == "rare" else None,
    )
    manifest.seal(store, view=view, num_units=num_units, fingerprint=identity.fingerprint, digests=digests)
    return receipts


def _count_tokens(store: Store, identity: Identity, corpus: Sequences) -> None:
    """Solves the masking probabilities of policy `rare` on the corpus, once."""
    if token_counts.exists(store):
        return
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


def _summary(
    store: Store,
    num_views: int,
    corpus: Sequences,
    receipts: Sequence[Item],
    *,
    seconds: float,
    asked_s: float,
) -> BuildSummary:
    shards = [shard for view in range(num_views) for shard in manifest.read(store, view).shards]
    num_bytes, num_kept = sum(shard.num_bytes for shard in shards), sum(shard.num_kept for shard in shards)
    return BuildSummary(
        cache=store.url,
        fingerprint=corpus.fingerprint,
        num_views=num_views,
        num_sequences=corpus.num_sequences,
        num_tokens=corpus.num_tokens,
        num_units_built=len(receipts),
        num_kept=num_kept,
        num_bytes=num_bytes,
        bytes_per_token=num_bytes / (corpus.num_tokens * num_views),
        bytes_per_kept_position=num_bytes / max(num_kept, 1),
        seconds=seconds,
        tokens_per_s=sum(receipt["num_tokens"] for receipt in receipts) / asked_s,
    )
