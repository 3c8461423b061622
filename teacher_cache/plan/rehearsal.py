"""A sample of a cache, made as a build makes it, weighed and timed, and thrown away."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from teacher_cache.config import CacheSpec, ExecutionConfig
from teacher_cache.corpus.files import CorpusFile
from teacher_cache.format import codebook, manifest, sequences, teacher_files, token_counts
from teacher_cache.format import spec as spec_file
from teacher_cache.format.coder import Coder
from teacher_cache.format.manifest import Digests, Shard
from teacher_cache.format.sequences import Sequences, StoredSequence, TokenisedFile
from teacher_cache.format.shard import encode_unit, put_shard
from teacher_cache.format.shard_columns import BLOCK_SEQUENCES
from teacher_cache.format.shard_list import Shards, columns_of
from teacher_cache.format.sizes import part_sizes
from teacher_cache.format.spec import Identity, TeacherIdentity
from teacher_cache.masking import Vocabulary, rare_probabilities
from teacher_cache.pipeline import declare, identify
from teacher_cache.plan.asking import Asker, threads
from teacher_cache.plan.costs import Times
from teacher_cache.plan.sample import MaskedShares, masked_shares, sample_units
from teacher_cache.plan.sizes import Counts, FileRates, Rates, padded_tokens
from teacher_cache.plan.survey import Survey
from teacher_cache.storage.store import Store
from teacher_cache.teacher import LoadedTeacher, tokenizer_sha256
from teacher_cache.units import vocabulary_of

MANIFEST_UNITS, NO_VIEW = 1024, 90_000
"""Of a made-up manifest that is weighed."""
NO_DIGEST = "0" * 64
"""Stands where a build writes a digest: plans read neither all of a corpus nor save a teacher."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Sampled units, asked and encoded as a worker does; the codebook's sample comes beside them."""

    shards: Sequence[Shard]
    coder: Coder
    device: str
    num_padded_tokens: int
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
    with threads(spec.execution.cpus_per_worker):
        tried = _try(store, spec, loaded, stored, identity, vocabulary, progress=progress)
    num_kept = sum(shard.num_kept for shard in tried.shards)
    shares = masked_shares(stored, identity=identity, vocabulary=vocabulary, num_views=spec.views)
    return Rehearsal(
        counts=_counts(spec, survey, stored, shares),
        rates=_rates(store, loaded, identity, corpus, tried, num_sources=len(survey.sources)),
        times=Times(
            padded_token=tried.ask_s / tried.num_padded_tokens,
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
    progress: bool,
) -> Tried:
    on_gpu = torch.cuda.is_available() and spec.execution.gpus_per_worker != 0
    units = sample_units(stored, unit_sequences=spec.unit_sequences)
    # Not in view 0 alone: of that the codebook is made, and of a small corpus of all of it.
    views = [(-1 - unit) % spec.views for unit in range(len(units))]
    with tqdm(total=3, desc="asking the teacher", unit=" samples", disable=not progress) as bar:
        batch_tokens, device = spec.execution.batch_tokens, "cuda" if on_gpu else "cpu"
        asker = Asker(loaded, identity, vocabulary, batch_tokens=batch_tokens, device=device)
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
        device=torch.cuda.get_device_name() if on_gpu else _cpu(spec.execution),
        num_padded_tokens=sum(_padded(unit, spec) for unit in units),
        ask_s=ask_s,
        encode_s=encode_s,
        codebook_s=codebook_s,
        head_position_s=head_position_s,
    )


def _cpu(execution: ExecutionConfig) -> str:
    name = f"CPU with {execution.cpus_per_worker} thread(s)"
    return f"{name}, for want of the GPU that is asked for" if execution.gpus_per_worker else name


def _counts(spec: CacheSpec, survey: Survey, stored: Sequence[StoredSequence], shares: MaskedShares) -> Counts:
    figures = survey.figures
    scale = figures.num_tokens / sum(len(sequence.input_ids) for sequence in stored)
    return Counts(
        num_files=figures.num_files,
        num_views=spec.views,
        unit_sequences=spec.unit_sequences,
        num_sequences=figures.num_sequences,
        num_tokens=figures.num_tokens,
        num_padded_tokens=round(scale * _padded(stored, spec)),
        num_labels=figures.num_tokens * shares.labels,
        num_kept=figures.num_tokens * shares.kept,
    )


def _padded(stored: Sequence[StoredSequence], spec: CacheSpec) -> int:
    lengths = [len(sequence.input_ids) for sequence in stored]
    return padded_tokens(lengths, unit_sequences=spec.unit_sequences, batch_tokens=spec.execution.batch_tokens)


def _declare(store: Store, spec: CacheSpec, loaded: LoadedTeacher, survey: Survey, folder: Path) -> Identity:
    """The cache's spec and its teacher's files but for the weights."""
    files = [CorpusFile(url=f.url, format=f.format, num_bytes=f.num_bytes, sha256=NO_DIGEST) for f in survey.files]
    teacher = TeacherIdentity(sha256=NO_DIGEST, dtype=spec.teacher.dtype)
    identity = identify(spec, files, teacher, tokenizer_sha256(loaded.tokenizer))
    loaded.model.config.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    declare(store, identity, spec, files, folder)
    return identity


def _store_sequences(store: Store, survey: Survey, identity: Identity) -> Sequences:
    for number, source in enumerate(survey.sources):
        parts = []
        for place, start in enumerate(range(0, len(source.sequences), sequences.PART_SEQUENCES)):
            part = source.sequences[start : start + sequences.PART_SEQUENCES]
            ids, documents = [s.input_ids for s in part], [s.document for s in part]
            parts.append(sequences.write_part(store, number, place, ids, documents))
        tokenised = TokenisedFile(parts=tuple(parts), num_documents=source.sequences[-1].document + 1)
        sequences.commit_file(store, number, tokenised)
    sequences.seal(store, len(survey.sources), identity.fingerprint)
    return Sequences(store)


def _vocabulary(store: Store, loaded: LoadedTeacher, corpus: Sequences, identity: Identity) -> Vocabulary:
    vocabulary = vocabulary_of(loaded.tokenizer)
    if identity.masking.policy != "rare":
        return vocabulary
    counts = token_counts.count(corpus, vocabulary.size)
    probability = rare_probabilities(counts, identity.masking.rate, vocabulary.special_ids)
    token_counts.create(store, counts, probability)
    return replace(vocabulary, mask_probability=probability)


def _rates(
    store: Store, loaded: LoadedTeacher, identity: Identity, corpus: Sequences, tried: Tried, *, num_sources: int
) -> Rates:
    """Of what lies in the folder by now, and of commits and a manifest."""
    for shard in tried.shards:
        manifest.commit(store, 0, shard, identity.fingerprint)
    one, many = (_manifest_bytes(store, tried.shards[0], num_units, identity) for num_units in (1, MANIFEST_UNITS))
    manifest_unit = (many - one) / (MANIFEST_UNITS - 1)
    labels, hidden = _file_rates(store, tried.shards, encode_unit([], identity, tried.coder, view=0, unit=0))
    sequence_parts = sum(part.ref.num_bytes for part in corpus.parts)
    sequences_manifest, counts_bytes = _weigh(store, sequences.MANIFEST_KEY), _weigh(store, token_counts.KEY)
    sequence_commits = _weigh(store, "sequences") - sequence_parts - sequences_manifest - counts_bytes
    teacher_refs = teacher_files.listed(store)
    return Rates(
        labels=labels,
        hidden=hidden,
        sequences_token=sequence_parts / corpus.num_tokens,
        sequences_file=sequence_commits / num_sources,
        sequences_manifest=sequences_manifest,
        token_counts=counts_bytes,
        codebook=_weigh(store, codebook.KEY),
        teacher=_weigh(store, "teacher") + weights_bytes(loaded),
        num_teacher_objects=len(teacher_refs) + 2,  # weights and manifest
        spec=_weigh(store, spec_file.KEY),
        commit=_weigh(store, manifest.commits_folder(0)) / len(tried.shards),
        manifest=one - manifest_unit,
        manifest_unit=manifest_unit,
    )


def _file_rates(
    store: Store, shards: Sequence[Shard], empty: tuple[bytes, bytes | None]
) -> tuple[FileRates, FileRates | None]:
    """Of labels and of hidden objects; `empty` are those of a unit without sequences."""
    parts = [part_sizes(store, shard) for shard in shards]
    soft_labels, inputs, states = (sum(part[name] for part in parts) for name in ("soft_labels", "inputs", "hidden"))
    num_kept, num_tokens = sum(shard.num_kept for shard in shards), sum(shard.num_tokens for shard in shards)
    num_blocks = sum(-(-shard.num_sequences // BLOCK_SEQUENCES) for shard in shards)

    def of_block(num_bytes: int, content: int, unit: bytes) -> float:
        return (num_bytes - content - len(unit) * len(shards)) / num_blocks

    labels = FileRates(
        unit=len(empty[0]),
        block=of_block(sum(shard.labels.num_bytes for shard in shards), soft_labels + inputs, empty[0]),
        kept=soft_labels / max(num_kept, 1),
        token=inputs / num_tokens,
    )
    if empty[1] is None:
        return labels, None
    hidden_bytes = sum(shard.hidden.num_bytes for shard in shards if shard.hidden)
    block = of_block(hidden_bytes, states, empty[1])
    return labels, FileRates(unit=len(empty[1]), block=block, kept=states / max(num_kept, 1))


def _manifest_bytes(store: Store, like: Shard, num_units: int, identity: Identity) -> int:
    """Of the manifest of a view with so many units like one, but for their digests; the view is not one to come."""
    view, draw = NO_VIEW + num_units, np.random.default_rng(0)
    columns = {
        name: draw.integers(0, 256, (num_units, 32), dtype=np.uint8)
        if name.endswith("sha256")
        else (values[0] * draw.uniform(0.95, 1.05, num_units)).astype(np.int64)
        for name, values in columns_of(0, [like]).items()
    }
    digests = Digests(spec=NO_DIGEST, teacher=NO_DIGEST, sequences=NO_DIGEST, codebook=NO_DIGEST)
    shards = Shards(view=view, columns=columns)
    manifest.create(store, shards, generation=0, fingerprint=identity.fingerprint, digests=digests)
    return _weigh(store, manifest.manifest_key(view, 0))


def weights_bytes(loaded: LoadedTeacher) -> int:
    """Of model.safetensors: each tensor once, however many names it has, and the header that lists them."""
    distinct = {tensor.data_ptr(): (name, tensor) for name, tensor in loaded.model.state_dict().items()}
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in distinct.values())
    listed = {
        name: {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [size, size]}
        for name, tensor in distinct.values()
    }
    return size + len(json.dumps(listed, separators=(",", ":")))


def _weigh(store: Store, key: str) -> int:
    """Bytes of the object at a key, or of those below it; 0 where there is none."""
    path = Path(store.path(key))
    files = [path] if path.is_file() else [below for below in path.rglob("*") if below.is_file()]
    return sum(file.stat().st_size for file in files)
