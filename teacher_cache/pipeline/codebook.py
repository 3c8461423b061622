"""What must be known of the whole corpus before the first view: masking probabilities, the codebook."""

from tqdm import tqdm

from teacher_cache.format import attempts, codebook, token_counts
from teacher_cache.format.sequences import Sequences
from teacher_cache.format.spec import Identity
from teacher_cache.masking import rare_probabilities
from teacher_cache.pipeline.executors import checked
from teacher_cache.pipeline.job import Job
from teacher_cache.pipeline.tokenise import tokeniser
from teacher_cache.pipeline.workers import CodebookWorker
from teacher_cache.storage.store import Store


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
    results = checked(job.workers.actors([{"ids": ids}], CodebookWorker, job.worker_arguments))
    try:
        for _ in tqdm(results, f"codebook of {len(ids):,} sequences", 1, unit="", disable=not job.progress):
            pass
    finally:
        attempts.withdraw(job.store, 0, attempts.CODEBOOK)


def _count_tokens(store: Store, identity: Identity, corpus: Sequences) -> None:
    """Solves the masking probabilities of policy `rare` on the corpus, once."""
    if token_counts.exists(store):
        return
    assert identity.masking, "a task's tokens are not masked"
    from teacher_cache.units import vocabulary_of

    vocabulary = vocabulary_of(tokeniser(store.url, store.single_writer, identity.fingerprint)[2])
    counts = token_counts.count(corpus, vocabulary.size)
    token_counts.create(store, counts, rare_probabilities(counts, identity.masking.rate, vocabulary.special_ids))
