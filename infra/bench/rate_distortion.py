"""Bytes against truth: this package's codes of soft labels and hidden states, and those of other systems.

Usage: `python -m infra.bench.rate_distortion --teacher FOLDER --fit TEXT --text TEXT [--positions N] [--quick] [--json]
[--plot PNG]`

Each code encodes and decodes what a teacher says at masked positions of a held-out text; its bytes are counted, and
its targets are compared with the exact rows by the gradient that each gives to a student (see
`teacher_cache.fidelity.measures`). Statistics of codes are made of the `--fit` text only.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from infra.bench.codes import report, rivals
from infra.bench.codes.answers import (
    SEQUENCE_LENGTH,
    Answers,
    States,
    Teacher,
    ask,
    rank,
    read_text,
    spread,
)
from infra.bench.codes.contenders import Codec
from infra.bench.codes.hidden_rivals import Float16, Int8, Quantiser, Replayed, Rotated
from infra.bench.codes.measure import FEW_POSITIONS, TEMPERATURES, Data, Measured, measure
from infra.bench.codes.ours import Bucket, PackedLabels, Transform
from infra.bench.held_out import HELD_OUT_SEED
from infra.bench.output import machine, say, show, versions
from teacher_cache.format.spec import QUALITY_COSINES

SEED = 0
FIT_POSITIONS, QUICK_FIT_POSITIONS = 24_000, 16_000
UNMASKED_POSITIONS = 2_048
DEFAULT_TOP_K, DEFAULT_COSINE = 8, QUALITY_COSINES["standard"]
TRANSFORMS = (
    *((cosine, DEFAULT_TOP_K) for cosine in (0.93, 0.95, 0.97, *QUALITY_COSINES.values(), 0.9999, 0.99999)),
    *((DEFAULT_COSINE, top_k) for top_k in (4, 16, 64)),
)
"""Mean cosine and top k."""
QUICK_TRANSFORMS = ((0.95, 8), (DEFAULT_COSINE, 8), (QUALITY_COSINES["high"], 8), (DEFAULT_COSINE, 64))
TOP_KS, QUICK_TOP_KS = (8, 16, 32, 64, 128), (8, 64, 128)
DRAWS, QUICK_DRAWS = (25, 50, 100, 200), (50,)
"""The paper has 50."""
ROTATED_BITS = (2, 3, 4)


def our_codecs(sample: Answers, teacher: Teacher, *, quick: bool) -> Iterator[Codec]:
    """This package's, with statistics of `sample`."""
    available = sample.ranked_ids.shape[1]
    transforms, top_ks = (QUICK_TRANSFORMS, QUICK_TOP_KS) if quick else (TRANSFORMS, TOP_KS)
    labels = {
        top_k: PackedLabels.fit(sample, top_k, teacher.vocab_size)
        for top_k in sorted({*top_ks, *(k for _, k in transforms)})
        if top_k <= available
    }
    for cosine, top_k in transforms:
        if top_k in labels:
            begin = time.perf_counter()
            yield Transform.fit(sample, labels[top_k], teacher.head, cosine)
            say(f"fitted cosine {cosine:g}, k = {top_k} in {time.perf_counter() - begin:.0f} s")
    yield from (Bucket(labels[top_k]) for top_k in top_ks if top_k in labels)


def rival_codecs(sample: Answers, teacher: Teacher, *, quick: bool) -> Iterator[Codec]:
    """The others; what needs statistics has them of `sample`."""
    available, size = sample.ranked_ids.shape[1], teacher.vocab_size
    top_ks, draws = (QUICK_TOP_KS, QUICK_DRAWS) if quick else (TOP_KS, DRAWS)
    for spread_ in ("none", "student", "uniform"):
        yield from (rivals.TopK(top_k, spread_, size) for top_k in top_ks if top_k <= available)
    for drawn_at in TEMPERATURES:
        yield from (rivals.RandomSampling(num_draws, drawn_at) for num_draws in draws)
    for make in (rivals.budget, rivals.recommended):
        for normalize_t in (False, True):
            for tail in ("zero", "symmetric_uniform"):
                codec = make(size, normalize_t=normalize_t, tail=tail)
                if codec.top_k <= available:
                    yield codec
    yield from hidden_codecs(sample, teacher)


def hidden_codecs(sample: Answers, teacher: Teacher) -> Iterator[Codec]:
    hidden = sample.states.hidden
    width = hidden.shape[1]
    labels = PackedLabels.fit(sample, DEFAULT_TOP_K, teacher.vocab_size)
    rotated = [Rotated.fit(hidden, bits) for bits in ROTATED_BITS]
    quantisers: list[Quantiser] = [Float16(width), Int8(width), *rotated]
    yield from (Replayed(quantiser, labels, teacher.head) for quantiser in quantisers)


def fit_sample(path: Path, teacher: Teacher, num_positions: int, seed: int = SEED) -> Answers:
    """About `num_positions` kept positions, spread over a text."""
    masked = read_text(path, teacher, seed=seed)
    num_kept = sum(len(sequence.kept_positions) for sequence in masked)
    chosen = spread(masked, -(-num_positions * len(masked) // max(1, num_kept)))
    generator = torch.Generator().manual_seed(seed)
    return rank(ask(teacher, chosen), teacher.head, generator)


def held_out_data(path: Path, teacher: Teacher, num_positions: int) -> Data:
    """Masked positions in random order, so that any first part is a sample of its own, and unmasked ones."""
    masked = read_text(path, teacher, seed=HELD_OUT_SEED)
    num_labels = sum(len(sequence.label_positions) for sequence in masked)
    chosen = spread(masked, -(-num_positions * len(masked) * 11 // (10 * max(1, num_labels))))
    states = ask(teacher, chosen)
    generator = torch.Generator().manual_seed(SEED)

    def drawn(is_masked: bool, count: int) -> States:
        (places,) = torch.nonzero(states.is_masked == is_masked, as_tuple=True)
        return states[places[torch.randperm(len(places), generator=generator)[:count]]]

    return Data(
        masked=rank(drawn(True, num_positions), teacher.head, generator, draw_at=TEMPERATURES),
        unmasked=rank(drawn(False, UNMASKED_POSITIONS), teacher.head, generator, draw_at=TEMPERATURES),
        masked_share=float(states.is_masked.float().mean()),
    )


def result(measured: list[Measured], data: Data, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "name": "rate_distortion",
        "ratios": report.ratios(measured),
        "figures": [report.plain(row) for row in measured],
        "budgets": [asdict(row) for row in report.budgets(measured)],
        "notes": report.notes(measured, data),
        "teacher": arguments.teacher.name,
        "fit": arguments.fit.name,
        "text": arguments.text.name,
        "num_positions": len(data.masked),
        "sequence_length": SEQUENCE_LENGTH,
        "machine": machine(),
        "versions": versions(),
    }


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Measures everything, writes the plot where one is asked for, and gives what is to be printed, both ways."""
    teacher = Teacher.load(arguments.teacher)
    sample = fit_sample(arguments.fit, teacher, QUICK_FIT_POSITIONS if arguments.quick else FIT_POSITIONS)
    data = held_out_data(arguments.text, teacher, arguments.positions)
    say(f"{len(sample)} positions to fit on, {len(data.masked)} masked and {len(data.unmasked)} unmasked to encode")
    quick = arguments.quick
    codecs = [*our_codecs(sample, teacher, quick=quick), *rival_codecs(sample, teacher, quick=quick)]
    measured = measure(codecs, data, teacher.head)
    if arguments.plot:
        report.plot(measured, arguments.plot)
    return result(measured, data, arguments), report.render(measured, data)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares codes of teacher outputs: bytes against gradient error.")
    parser.add_argument("--teacher", required=True, type=Path, metavar="FOLDER", help="a saved masked-LM model")
    parser.add_argument("--fit", required=True, type=Path, metavar="TEXT", help=".txt or .txt.zst for statistics")
    parser.add_argument("--text", required=True, type=Path, metavar="TEXT", help=".txt or .txt.zst, held out")
    parser.add_argument(
        "--positions",
        type=int,
        default=FEW_POSITIONS,
        metavar="N",
        help=f"masked positions (default {FEW_POSITIONS:,}); beyond, errors are given at both numbers",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"fewer settings, statistics of {QUICK_FIT_POSITIONS:,} positions"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, and the table to stderr")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write a figure")
    return parser.parse_args(arguments)


def main() -> None:
    transformers_logging.disable_progress_bar()
    arguments = parse()
    found, table = run(arguments)
    show(found, table, as_json=arguments.json)


if __name__ == "__main__":
    main()
