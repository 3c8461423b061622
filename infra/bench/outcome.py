"""What students become that are taught from different codes of the same teacher outputs.

Usage: `python -m infra.bench.outcome --teacher FOLDER --fit TEXT --text TEXT [--seeds 3] [--steps 60] [--json]`

One student, the teacher cut to every other layer, learns from the same batches of the `--fit` text in the same
order, each time from the targets that one code gives back; a seed decides the batches and their masks. Bytes are
counted over exactly the positions that were taught.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from infra.bench.codes import rivals
from infra.bench.codes.answers import Answers, Teacher, read_text, spread
from infra.bench.codes.contenders import Codec, Encoded
from infra.bench.codes.gradients import DenseRows
from infra.bench.codes.hidden_rivals import Int8, Replayed
from infra.bench.codes.ours import PackedLabels, Transform
from infra.bench.codes.teaching import Examination, Lesson, examine, teach
from infra.bench.held_out import HELD_OUT_SEED
from infra.bench.output import machine, say, show, versions
from infra.bench.rate_distortion import DEFAULT_COSINE, DEFAULT_TOP_K, FIT_POSITIONS, fit_sample
from teacher_cache.targets.heads import OutputHead, head_logits

FIRST_SEED = 100
"""Of masks; the sample that statistics are made of has another."""
EXAMINED_SEQUENCES = 128
UNSEEN_POSITIONS = 1000
"""At which the size of ours is taken, for rivals of about the same."""
PUBLISHED_DRAWS = 50


@dataclass(frozen=True)
class Exact:
    """What the teacher says, as it is."""

    head: OutputHead
    name: str = "exact rows"
    family: str = "exact"

    def encode(self, answers: Answers) -> Encoded:
        hidden = answers.states.hidden

        def rows(chunk: slice, temperature: float) -> DenseRows:
            scaled = head_logits(self.head, hidden[chunk]) / temperature
            return DenseRows(log_probabilities=scaled.log_softmax(dim=-1))

        size = 4 * len(answers) * (self.head.decoder_weight.shape[0] + hidden.shape[1])
        return Encoded(hidden_bytes=0, label_bytes=size, rows=rows, hidden=hidden)


@dataclass(frozen=True)
class Arm:
    """One way of teaching."""

    codec: Codec | None
    """None: no word of the teacher."""
    cosine: bool
    """With the cosine term, for which hidden states are needed."""

    @property
    def name(self) -> str:
        if self.codec is None:
            return "untaught: text alone"
        return self.codec.name + (" + cosine" if self.cosine else "")


def make_arms(sample: Answers, unseen: Answers, teacher: Teacher, temperature: float) -> list[Arm]:
    """All arms; `sample` is what codes' statistics are made of, `unseen` are other positions."""
    labels = PackedLabels.fit(sample, DEFAULT_TOP_K, teacher.vocab_size)
    ours, exact = Transform.fit(sample, labels, teacher.head, DEFAULT_COSINE), Exact(teacher.head)
    size, available = teacher.vocab_size, sample.ranked_ids.shape[1]
    top_k = min(available, _top_k_of_bytes(ours.encode(unseen).num_bytes / len(unseen), size))
    sparse: list[Codec] = [
        rivals.TopK(top_k, "none", size),
        rivals.TopK(top_k, "student", size),
        rivals.RandomSampling(PUBLISHED_DRAWS, temperature),
    ]
    made = [make(size, normalize_t=True, tail="symmetric_uniform") for make in (rivals.budget, rivals.recommended)]
    sparse += [codec for codec in made if codec.top_k <= available]
    int8 = Replayed(Int8(sample.states.hidden.shape[1]), labels, teacher.head)
    whole: list[Codec] = [exact, ours, int8]
    without_cosine = [*whole[:2], *sparse]
    return [
        *(Arm(codec, cosine=True) for codec in whole),
        *(Arm(codec, cosine=False) for codec in without_cosine),
        Arm(None, cosine=False),
    ]


def _top_k_of_bytes(num_bytes: float, vocab_size: int) -> int:
    """The k at which a raw top k takes about so many bytes."""
    return max(1, round(8 * num_bytes / (rivals.id_bits(vocab_size) + rivals.VALUE_BITS)))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Teaches every arm with every seed; writes what there is to `--save` after each."""
    teacher = Teacher.load(arguments.teacher)
    held_out = spread(read_text(arguments.text, teacher, seed=HELD_OUT_SEED), arguments.examined)
    examination = Examination.of(held_out, teacher)
    sample = fit_sample(arguments.fit, teacher, arguments.fit_positions)
    unseen = fit_sample(arguments.fit, teacher, UNSEEN_POSITIONS, seed=FIRST_SEED - 1)
    arms = make_arms(sample, unseen, teacher, arguments.temperature)
    arms = [arm for arm in arms if not arguments.arms or any(part in arm.name for part in arguments.arms)]
    say(f"{len(arms)} arms, {arguments.steps} steps; examined at {len(examination.teacher_hidden):,} positions")
    runs: list[dict[str, Any]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        masked = read_text(arguments.fit, teacher, seed=seed)
        lesson = Lesson.draw(masked, teacher, steps=arguments.steps, seed=seed, at=arguments.temperature)
        encoded: dict[str, Encoded] = {}
        for arm in arms:
            runs.append({"seed": seed, **_run(arm, lesson, examination, teacher, encoded, arguments.temperature)})
            say("{seed} {arm}: loss {loss:.4f}, KL {kl:.4f}, {seconds:.0f} s".format(**runs[-1]))
            found = result(runs, arguments)
            if arguments.save:
                arguments.save.write_text(json.dumps(found))
    return found


def _run(
    arm: Arm,
    lesson: Lesson,
    examination: Examination,
    teacher: Teacher,
    encoded: dict[str, Encoded],
    temperature: float,
) -> dict[str, Any]:
    """One student; `encoded` remembers codes by name for the arms that share one."""
    begin, taught = time.perf_counter(), None
    if arm.codec is not None:
        taught = encoded.setdefault(arm.codec.name, encoded.get(arm.codec.name) or arm.codec.encode(lesson.answers))
    student = teach(lesson, taught, teacher, temperature=temperature, cosine=arm.cosine)
    figures = examine(student, examination, teacher)
    num_bytes = taught.num_bytes / len(lesson.answers) if taught else 0.0
    return {"arm": arm.name, "bytes": num_bytes, **figures, "seconds": time.perf_counter() - begin}


def result(runs: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "name": "outcome",
        "figures": summarise(runs),
        "runs": list(runs),
        "steps": arguments.steps,
        "seeds": arguments.seeds,
        "temperature": arguments.temperature,
        "teacher": arguments.teacher.name,
        "fit": arguments.fit.name,
        "text": arguments.text.name,
        "machine": machine(),
        "versions": versions(),
    }


def summarise(runs: Sequence[dict[str, Any]], figures: Sequence[str] = ("loss", "kl")) -> list[dict[str, Any]]:
    """Each arm's mean over seeds, standard deviation, and difference from the first arm's at the same seeds."""
    first = {run["seed"]: run for run in runs if run["arm"] == runs[0]["arm"]}
    rows = []
    for name in dict.fromkeys(run["arm"] for run in runs):
        of_arm = [run for run in runs if run["arm"] == name]
        row: dict[str, Any] = {
            "arm": name,
            "seeds": len(of_arm),
            "bytes": statistics.mean(run["bytes"] for run in of_arm),
        }
        for figure in figures:
            values = [run[figure] for run in of_arm]
            gaps = [run[figure] - first[run["seed"]][figure] for run in of_arm]
            row[figure], row[f"{figure}_gap"] = statistics.mean(values), statistics.mean(gaps)
            row[f"{figure}_deviation"], row[f"{figure}_gap_deviation"] = _deviation(values), _deviation(gaps)
        rows.append(row)
    return rows


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def render(rows: Sequence[dict[str, Any]]) -> str:
    """One line an arm; gaps are from the first arm at the same seed."""
    width = max(len(row["arm"]) for row in rows)
    lines = [
        f"{'taught from':{width}}   bytes   masked-LM loss    gap to the first       KL(teacher)     gap to the first"
    ]
    for row in rows:
        columns = [pair(row, name) for name in ("loss", "loss_gap", "kl", "kl_gap")]
        lines.append(f"{row['arm']:{width}}{row['bytes']:8.0f}" + "".join(f"{column:>18}" for column in columns))
    return "\n".join(lines)


def pair(row: dict[str, Any], name: str) -> str:
    deviation = row[f"{name}_deviation"]
    return f"{row[name]:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Teaches the same student from different codes of teacher outputs.")
    parser.add_argument("--teacher", required=True, type=Path, metavar="FOLDER", help="a saved masked-LM model")
    parser.add_argument("--fit", required=True, type=Path, metavar="TEXT", help=".txt or .txt.zst to learn from")
    parser.add_argument("--text", required=True, type=Path, metavar="TEXT", help=".txt or .txt.zst, held out")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, metavar="N")
    parser.add_argument("--arms", nargs="*", default=(), metavar="TEXT", help="only arms whose name holds one of these")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="optimiser steps of each student")
    parser.add_argument("--temperature", type=float, default=2.0, metavar="T", help="of the soft-label loss: 1 or 2")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one seed, three steps")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write results so far after each student, as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON, and the table to stderr")
    found = parser.parse_args(arguments)
    found.examined, found.fit_positions = EXAMINED_SEQUENCES, FIT_POSITIONS
    if found.quick:
        found.seeds, found.steps, found.examined, found.fit_positions = 1, 3, 32, 4_000
    return found


def main() -> None:
    transformers_logging.disable_progress_bar()
    arguments = parse()
    with torch.random.fork_rng():
        found = run(arguments)
    show(found, render(found["figures"]), as_json=arguments.json)


if __name__ == "__main__":
    main()
