"""The reader's tax: steps a second from a cache against the same batches, decoded, already in memory.

    python -m infra.bench.reader [--quick] [--json] [--cache DIR]

Each pair trains twice on one batch of a DistilBERT-sized student: as it comes from the cache, while the next one is
read, decoded and padded, and then from memory, while nothing else goes on. Caches come from a random teacher of
BERT-base's width, at sequence lengths 128 and 512, on the local disk, and at 128 in a bucket of an S3 gateway, whose
copies begin empty.
"""

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.bench import output, training
from infra.bench.loading.payload import Size, make_cache
from infra.bench.loading.places import bucket, upload
from student_train import measuring
from student_train.batch import Batch, decode_hidden, made_ahead
from student_train.loop import Trainer

PAIRS, QUICK_PAIRS = 10, 2
SIZES = {
    128: Size(num_sequences=2048, sequence_length=128, hidden_size=768, vocab_size=30_522),
    512: Size(num_sequences=512, sequence_length=512, hidden_size=768, vocab_size=30_522),
}
QUICK_SIZES = {64: Size(num_sequences=512, sequence_length=64, hidden_size=64, vocab_size=2000)}


@dataclass(frozen=True)
class Tax:
    """Of one setting; ratios are seconds from memory / seconds from the cache, so 1 is no tax."""

    ratios: list[float]
    step_s: list[float]
    wait_s: list[float]
    """Of each step from the cache, until its batch was there."""
    first_batch_s: float


def measure_tax(trainer: Trainer, num_pairs: int) -> Tax:
    """Pairs of steps, after a first batch that nothing could be read ahead of."""
    batches = made_ahead(trainer.batches())
    first: list[Batch] = []
    first_batch_s = measuring.timed(lambda: first.append(next(batches)))
    trainer.step(first[0])
    tax = Tax(ratios=[], step_s=[], wait_s=[], first_batch_s=first_batch_s)
    for _ in range(num_pairs):
        taken: list[Batch] = []

        def from_cache(taken: list[Batch] = taken) -> None:
            tax.wait_s.append(measuring.timed(lambda: taken.append(next(batches))))
            trainer.step(taken[0])

        cached_s = measuring.timed(from_cache)
        decoded = decode(trainer, taken[0])
        memory_s = measuring.timed(lambda decoded=decoded: trainer.step(decoded))
        tax.ratios.append(memory_s / cached_s)
        tax.step_s.append(cached_s)
        output.say(f"  {cached_s:.3f} s from the cache, {memory_s:.3f} s from memory: {memory_s / cached_s:.3f}")
    return tax


def decode(trainer: Trainer, batch: Batch) -> Batch:
    """The batch with hidden states as floats, on the device."""
    layer = trainer.caches[0].last_hidden_layer
    assert layer is not None
    coders = [cache.coder.to(trainer.device) for cache in trainer.caches]
    micro_batches = [decode_hidden(part.to(trainer.device), coders, layer) for part in batch.micro_batches]
    return replace(batch, micro_batches=[replace(part, levels=None, sources=None) for part in micro_batches])


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    sizes, num_pairs = (QUICK_SIZES, QUICK_PAIRS) if quick else (SIZES, PAIRS)
    found: dict[str, Tax] = {}
    with ExitStack() as stack:
        for length, size in sizes.items():
            output.say(f"building a cache of {size.num_sequences} sequences of {length}")
            cache = make_cache(folder / str(length), "transform", size)
            found[f"disk, {length}"] = of_cache(cache, size, num_pairs)
            if length == min(sizes):
                own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                url, server = stack.enter_context(bucket(own))
                remote = upload(Path(cache), url)
                found[f"S3 ({server}), {length}"] = of_cache(remote, size, num_pairs, disk_cache=own / "copies")
    return {
        "name": "reader" + (" (quick: small shapes)" if quick else ""),
        "ratios": {f"steps/s, {name} / memory": statistics.median(tax.ratios) for name, tax in found.items()},
        "figures": {name: figures(tax) for name, tax in found.items()},
        "machine": output.machine(),
        "versions": output.versions(),
    }


def of_cache(cache: str, size: Size, num_pairs: int, disk_cache: Path | None = None) -> Tax:
    output.say(f"{cache}:")
    trainer = training.make_trainer(
        cache, sequence_length=size.sequence_length, width=size.hidden_size, disk_cache=disk_cache
    )
    return measure_tax(trainer, num_pairs)


def figures(tax: Tax) -> dict[str, Any]:
    return {
        "interval_95": measuring.interval(tax.ratios),
        "pairs": len(tax.ratios),
        "step_s": statistics.median(tax.step_s),
        "wait_share": sum(tax.wait_s) / sum(tax.step_s),
        "first_batch_s": tax.first_batch_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute: small shapes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the caches there, and use what is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = measure((arguments.cache or Path(temporary)).resolve(), quick=arguments.quick)
    output.show(found, output.table_of(found), as_json=arguments.json)


if __name__ == "__main__":
    main()
