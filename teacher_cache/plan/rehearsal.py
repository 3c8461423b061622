"""A sample of a cache, made as a build makes it, weighed and timed, and thrown away."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from teacher_cache.config import CacheSpec, ExecutionConfig
from teacher_cache.corpus.files import CorpusFile
from teacher_cache.format import sequences, token_counts
from teacher_cache.format.coder import Coder
from teacher_cache.format.manifest import Shard
from teacher_cache.format.sequences import Sequences, StoredSequence, TokenisedFile
from teacher_cache.format.shard import put_shard
from teacher_cache.format.spec import Identity, TeacherIdentity
from teacher_cache.masking import Vocabulary, rare_probabilities
from teacher_cache.pipeline.declare import declare, identify
from teacher_cache.pipeline.executors import cpus_each
from teacher_cache.plan.asking import Asker, threads
from teacher_cache.plan.costs import Times
from teacher_cache.plan.sample import MaskedShares, masked_shares, sample_units
from teacher_cache.plan.sizes import Counts, Rates, padded_tokens
from teacher_cache.plan.survey import Survey
from teacher_cache.plan.weighing import NO_DIGEST, weigh
from teacher_cache.storage.store import Store
from teacher_cache.teacher import LoadedTeacher, tokenizer_sha256
from teacher_cache.units import micro_batch_tokens, vocabulary_of


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Sampled units, asked and encoded as a worker does; the codebook's sample comes beside them."""

    shards: Sequence[Shard]
    coder: Coder
    device: str
    units: Sequence[Sequence[StoredSequence]]
    ask_s: float
    encode_s: float
    codebook_s: float
    head_position_s: float


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a build will do, what it writes weighs, and what it takes."""

    counts: Counts
    rates: Rates
    times: Times
    device: str
    num_sample_tokens: int
    """About which the teacher was asked; beside the codebook's sample."""
    num_sample_kept: int


def rehearse(
    spec: CacheSpec, loaded: LoadedTeacher, survey: Survey, folder: Path, *, load_s: float, progress: bool
) -> Rehearsal:
    """Makes everything of a cache but its teacher's weights in `folder`, with a sample of its shards.

    Raises:
        UserError: as a build: the teacher's answers are of no use, or no position is kept.
    """
    store = Store(str(folder / "cache"))
    identity = _declare(store, spec, loaded, survey, folder / "teacher")
    corpus = _store_sequences(store, survey, identity)
    stored = list(corpus.read(0, corpus.num_sequences))
    vocabulary = _vocabulary(store, loaded, corpus, identity)
    on_gpu = torch.cuda.is_available() and spec.execution.gpus_per_worker != 0
    device = torch.device("cuda" if on_gpu else "cpu")
    with threads(cpus_each(spec.execution)):
        max_tokens = micro_batch_tokens(spec.execution.batch_tokens, device)
        tried = _try(store, spec, loaded, stored, identity, vocabulary, device=device, progress=progress)

    def padded(sequences: Sequence[StoredSequence]) -> int:
        lengths = [len(sequence.input_ids) for sequence in sequences]
        return padded_tokens(lengths, unit_sequences=spec.unit_sequences, batch_tokens=max_tokens)

    num_kept = sum(shard.num_kept for shard in tried.shards)
    shares = masked_shares(stored, identity=identity, vocabulary=vocabulary, num_views=spec.views)
    return Rehearsal(
        counts=_counts(spec, survey, stored, shares, num_padded_tokens=padded(stored)),
        rates=weigh(store, loaded, identity, corpus, tried.shards, tried.coder, num_sources=len(survey.sources)),
        times=Times(
            padded_token=tried.ask_s / sum(map(padded, tried.units)),
            encoded=tried.encode_s / max(num_kept, 1),
            head=tried.head_position_s,
            codebook=tried.codebook_s,
            start=load_s,
            tokenise=survey.tokenise_s,
        ),
        device=tried.device,
        num_sample_tokens=sum(shard.num_tokens for shard in tried.shards),
        num_sample_kept=num_kept,
    )


def _try(
    store: Store,
    spec: CacheSpec,
    loaded: LoadedTeacher,
    stored: Sequence[StoredSequence],
    identity: Identity,
    vocabulary: Vocabulary,
    *,
    device: torch.device,
    progress: bool,
) -> Tried:
    units = sample_units(stored, unit_sequences=spec.unit_sequences)
    # Not in view 0 alone: of that the codebook is made, and of a small corpus of all of it.
    views = [(-1 - unit) % spec.views for unit in range(len(units))]
    with tqdm(total=3, desc="asking the teacher", unit=" samples", disable=not progress) as bar:
        asker = Asker(loaded, identity, vocabulary, batch_tokens=spec.execution.batch_tokens, device=device)
        codebook_s = asker.make_codebook(store, stored)
        coder = asker.coder(store)
        bar.update()
        answers, ask_s = asker.ask(units, views)
        bar.update()
        encoded, encode_s = asker.encode(answers, views, coder)
        head_position_s = asker.head_s()
        bar.update()
    made = enumerate(zip(answers, encoded, strict=True))
    return Tried(
        shards=[put_shard(store, rows, data, view=0, unit=unit) for unit, (rows, data) in made],
        coder=coder,
        device=torch.cuda.get_device_name() if device.type == "cuda" else _cpu(spec.execution),
        units=units,
        ask_s=ask_s,
        encode_s=encode_s,
        codebook_s=codebook_s,
        head_position_s=head_position_s,
    )


def _cpu(execution: ExecutionConfig) -> str:
    name = f"CPU with {cpus_each(execution)} thread(s)"
    return f"{name}, for want of the GPU that is asked for" if execution.gpus_per_worker else name


def _counts(
    spec: CacheSpec,
    survey: Survey,
    stored: Sequence[StoredSequence],
    shares: MaskedShares,
    *,
    num_padded_tokens: int,
) -> Counts:
    """Of the corpus; `num_padded_tokens` are the sample's, `stored`."""
    figures = survey.figures
    scale = figures.num_tokens / sum(len(sequence.input_ids) for sequence in stored)
    return Counts(
        num_files=figures.num_files,
        num_views=spec.views,
        unit_sequences=spec.unit_sequences,
        num_sequences=figures.num_sequences,
        num_tokens=figures.num_tokens,
        num_padded_tokens=round(scale * num_padded_tokens),
        num_labels=figures.num_tokens * shares.labels,
        num_kept=figures.num_tokens * shares.kept,
    )


def _declare(store: Store, spec: CacheSpec, loaded: LoadedTeacher, survey: Survey, folder: Path) -> Identity:
    """The cache's spec and its teacher's files but for the weights."""
    files = [CorpusFile(url=f.url, format=f.format, num_bytes=f.num_bytes, sha256=NO_DIGEST) for f in survey.files]
    teacher = TeacherIdentity(sha256=NO_DIGEST, dtype=spec.teacher.dtype)
    identity = identify(spec, files, teacher, tokenizer_sha256(loaded.tokenizer))
    loaded.model.config.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    declare(store, identity, spec.teacher, [file.url for file in files], folder)
    return identity


def _store_sequences(store: Store, survey: Survey, identity: Identity) -> Sequences:
    for number, source in enumerate(survey.sources):
        parts = []
        for place, start in enumerate(range(0, len(source.sequences), sequences.PART_SEQUENCES)):
            part = source.sequences[start : start + sequences.PART_SEQUENCES]
            ids, documents = [s.input_ids for s in part], [s.document for s in part]
            parts.append(sequences.write_part(store, number, place, ids, documents))
        tokenised = TokenisedFile(parts=tuple(parts), num_documents=source.sequences[-1].num_documents)
        sequences.commit_file(store, number, tokenised)
    sequences.seal(store, len(survey.sources), identity.fingerprint)
    return Sequences(store)


def _vocabulary(store: Store, loaded: LoadedTeacher, corpus: Sequences, identity: Identity) -> Vocabulary:
    vocabulary = vocabulary_of(loaded.tokenizer)
    if identity.masking is None or identity.masking.policy != "rare":
        return vocabulary
    counts = token_counts.count(corpus, vocabulary.size)
    probability = rare_probabilities(counts, identity.masking.rate, vocabulary.special_ids)
    token_counts.create(store, counts, probability)
    return replace(vocabulary, mask_probability=probability)
