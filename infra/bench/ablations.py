"""What each part of the recipe is worth: students of one teacher, each with one thing done otherwise.

    python -m infra.bench.ablations [--quick] [--json] [--teacher DIR --corpus GLOB --heldout FILE] [--steps N]
        [--seeds N] [--sst2 DIR] [--only NAME…] [--work DIR] [--plot PNG] [KEY=VALUE…]

All students learn for as many steps, and those of one cache and seed from the same sequences in the same order; one
view differs from three once there is a second epoch. They are held against each other by masked-LM loss and accuracy on
documents that none has seen and, with `--sst2`, fine-tuned. Caches and students lie in `--work`: what is finished there
is not made again. `KEY=VALUE` are settings of all students, as of `student-train run`. Each row has the bytes of its
views a corpus token and what DistilBERT's authors found, in points of the GLUE score (arXiv 1910.01108, table 4).
"""

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from infra.bench import ablations_plot, held_out, outcome, output, plan, training
from student_train.config import StudentSpec
from student_train.finetune.config import FinetuneConfig, safe_name
from student_train.finetune.results import cell
from student_train.finetune.run import finetune
from student_train.run_folder import StepReport
from student_train.worker import run_worker
from teacher_cache import build
from teacher_cache.errors import UserError
from teacher_cache.format.cache import Cache, open_cache
from teacher_cache.inspect import info
from teacher_cache.shell import settings
from teacher_cache.shell.command import table
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.task import load_task

WHOLE = "whole recipe"
NUM_VIEWS = 3
UNMASKED = 0.1
"""Rate at which unmasked positions are kept, unless a variant has another."""
BATCH_SEQUENCES = 64
SST2, MAX_SST2_ROWS = "SST-2", 10_000


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing done otherwise."""

    name: str
    student: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `student.yaml`, by dotted key."""
    unmasked: float = UNMASKED
    num_views: int = NUM_VIEWS
    published: float | None = None
    """Points of the GLUE score that the published student lost by it; None: not published."""


def variants(*, width: int, num_heads: int) -> tuple[Variant, ...]:
    """All of them, the whole recipe first; `width` and `num_heads` are the teacher's."""
    random = {"student.initial_weights": "random"}
    narrow = random | {"student.width": width // 2, "student.num_heads": max(1, num_heads // 2)}
    return (
        Variant(name=WHOLE, published=0.0),
        Variant(name="without soft labels", student={"loss.weights.soft_labels": 0}, published=-2.96),
        Variant(name="without cosine", student={"loss.weights.cosine": 0}, published=-1.46),
        Variant(name="without masked-LM", student={"loss.weights.masked_lm": 0}, published=-0.31),
        Variant(name="random starting weights", student=random, published=-3.69),
        Variant(name="random, half the width", student=narrow),
        Variant(name="masked positions only", unmasked=0.0),
        Variant(name="every position", unmasked=1.0),
        Variant(name="one view", num_views=1),
        Variant(name="T = 1", student={"loss.temperature": 1}),
        Variant(name="T = 4", student={"loss.temperature": 4}),
    )


def chosen(every: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """Those whose name holds one of `only`, and the whole recipe; all if it is empty."""
    return [each for each in every if each.name == WHOLE or not only or any(part in each.name for part in only)]


def make_cache(work: Path, unmasked: float, teacher: str, corpus: str) -> Cache:
    """The cache that all variants with this rate share."""
    output.say(f"a cache of {NUM_VIEWS} views, unmasked positions at rate {unmasked:g}")
    overrides = [f"keep.unmasked={unmasked:g}", f"views={NUM_VIEWS}"]
    spec = plan.make_spec(work / "caches" / f"unmasked-{unmasked:g}", teacher, corpus, overrides)
    return open_cache(build(spec).cache)


def make_spec(work: Path, variant: Variant, cache: str, seed: int, options: argparse.Namespace) -> StudentSpec:
    """What a variant's student is asked for; what makes it this variant, no override changes."""
    given = {
        "caches": f"[{cache}]",
        "output": work / "students" / safe_name(variant.name) / f"{seed}",
        "seed": seed,
        "steps": options.steps,
        **variant.student,
    }
    own = [f"{key}={value}" for key, value in given.items()]
    overrides = [f"batch_sequences={BATCH_SEQUENCES}", *options.overrides, *own]
    return settings.from_overrides(StudentSpec, overrides)


def make_student(spec: StudentSpec, variant: Variant) -> str:
    """The folder of the finished student."""
    output.say(f"{variant.name}, seed {spec.seed}: {spec.output}")
    return run_worker(spec, device=training.device(), show=_show, num_views=variant.num_views).model


def _show(item: object) -> None:
    if isinstance(item, StepReport) and item.step == item.num_steps:
        output.say(f"  step {item.step}: loss {item.losses['total']:.3f}, {item.seconds:.0f} s")


def finetuned(work: Path, students: Mapping[str, str], folder: Path, dtype: str) -> dict[str, float]:
    """Accuracy on SST-2's dev set as a share, by student: one learning rate and seed each, as students have seeds.

    Raises:
        UserError: a run failed; those that ended are not made again.
    """
    values = {
        "output": str(work / "finetuned"),
        "models": dict(students),
        "tasks": {SST2: sst2_values(folder)},
        "lrs": [1e-4],
        "seeds": [1],
        "dtype": dtype,
        "execution": {"num_workers": 0},
    }
    done = finetune(settings.parse(FinetuneConfig, values))
    if done.errors:
        raise UserError("; ".join(f"{run}: {why}" for run, why in done.errors.items()))
    cells = {name: cell(done.results, name, SST2) for name in students}
    return {name: found.median / 100 for name, found in cells.items() if found}


def sst2_values(folder: Path) -> dict[str, Any]:
    return {"layout": SST2, "folder": str(folder), "max_train_rows": MAX_SST2_ROWS}


def check(options: argparse.Namespace, work: Path) -> None:
    """Refuses, before hours of training, what would be found after them (UserError)."""
    if options.heldout and not options.heldout.is_file():
        raise UserError(f"--heldout {options.heldout} does not exist")
    if options.sst2:
        load_task(SST2, settings.parse(TaskConfig, sst2_values(options.sst2)))
    for variant in variants(width=2, num_heads=1):
        make_spec(work, variant, "cache", 0, options)


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Makes what is missing in `work`, and compares."""
    check(options, work)
    teacher, corpus, heldout = options.teacher, options.corpus, options.heldout
    if teacher is None:
        teacher, corpus = plan.make_inputs(work, quick=True)
        heldout = work / "text" / "heldout.txt"
    caches = {UNMASKED: make_cache(work, UNMASKED, teacher, corpus)}
    first = caches[UNMASKED]
    every = variants(width=first.teacher.hidden_size, num_heads=_num_heads(first.teacher.config))
    runs: list[dict[str, Any]] = []
    for variant in chosen(every, options.only):
        if variant.unmasked not in caches:
            caches[variant.unmasked] = make_cache(work, variant.unmasked, teacher, corpus)
        runs += _make_students(work, variant, caches[variant.unmasked], options)
    students = {f"{each['arm']}, seed {each['seed']}": each["folder"] for each in runs}
    looked = {row["model"]: row for row in held_out.compare(students, first, heldout)}
    dtype = make_spec(work, every[0], first.url, 0, options).dtype
    scores = finetuned(work, students, options.sst2, dtype) if options.sst2 else {}
    for name, each in zip(students, runs, strict=True):
        each |= {figure: looked[name][figure] for figure in ("loss", "accuracy")}
        each |= {SST2: scores.get(name, math.nan)} if options.sst2 else {}
    return result(runs, {variant.name: variant.published for variant in every}, options)


def _make_students(work: Path, variant: Variant, cache: Cache, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A variant's students, one a seed."""
    view, found = info(cache.url)["views"][0], []
    for seed in range(options.seeds):
        spec = make_spec(work, variant, cache.url, seed, options)
        num_epochs = options.steps * spec.batch_sequences / view["num_sequences"]
        num_bytes = variant.num_views * view["bytes_per_token"]
        about = {"arm": variant.name, "seed": seed, "bytes": num_bytes, "epochs": num_epochs}
        found.append(about | {"folder": make_student(spec, variant)})
    return found


def _num_heads(config: Mapping[str, Any]) -> int:
    return int(config.get("num_attention_heads") or config["n_heads"])


def result(
    runs: Sequence[dict[str, Any]], published: Mapping[str, float | None], options: argparse.Namespace
) -> dict[str, Any]:
    """What `--json` prints."""
    rows = outcome.summarise(runs, figures_of(runs))
    whole = rows[0]
    return {
        "name": "ablations" + (" (quick: a random teacher, few steps)" if options.quick else ""),
        "ratios": {f"held-out loss, {row['arm']} / {WHOLE}": row["loss"] / whole["loss"] for row in rows[1:]},
        "figures": {
            "steps": options.steps,
            "epochs": runs[0]["epochs"],
            "arms": [row | {"published": published[row["arm"]]} for row in rows],
        },
        "machine": output.machine(),
        "versions": output.versions(),
    }


def figures_of(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Those that all students have; of one that diverged as it was fine-tuned, SST-2's is not a number."""
    return [figure for figure in ("loss", "accuracy", SST2) if all(figure in run for run in runs)]


def render(found: dict[str, Any]) -> str:
    """One line a variant; gaps are from the whole recipe at the same seed."""
    rows = found["figures"]["arms"]
    figures = [figure for figure in ("loss", "accuracy", SST2) if figure in rows[0]]
    header = ["", "bytes a token", *(name for figure in figures for name in (figure, "gap")), "published, GLUE"]
    lines = [
        [
            row["arm"],
            f"{row['bytes']:.1f}",
            *(outcome.pair(row, name) for figure in figures for name in (figure, f"{figure}_gap")),
            "-" if row["published"] is None else f"{row['published']:+.2f}",
        ]
        for row in rows
    ]
    return table(header, lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small random teacher, a handful of steps")
    parser.add_argument("--json", action="store_true", help="print JSON, and the table to stderr")
    parser.add_argument("--teacher", metavar="DIR", help="folder or hub name of a teacher")
    parser.add_argument("--corpus", metavar="GLOB", help="to learn from")
    parser.add_argument("--heldout", type=Path, metavar="FILE", help=".txt or .txt.zst that is not in the corpus")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="optimiser steps of each student")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--sst2", type=Path, metavar="DIR", help="GLUE's train.tsv and dev.tsv, to fine-tune on")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="variants whose name holds one of these")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where caches and students stay")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write a figure")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of all students")
    options = parser.parse_args(arguments)
    given = (options.teacher, options.corpus, options.heldout)
    if len({each is None for each in given}) > 1 or (options.teacher is None and not options.quick):
        parser.error("give --teacher, --corpus and --heldout; or none of them, and --quick")
    if not options.quick and options.work is None:
        parser.error("give --work: a folder that keeps hours of training where a later step fails")
    if options.quick:
        options.steps, options.seeds = 6, 1
    return options


def main() -> None:
    transformers_logging.disable_progress_bar()
    options = parse()
    with tempfile.TemporaryDirectory() as temporary, output.errors():
        found = run(options, (options.work or Path(temporary)).resolve())
        if options.plot:
            ablations_plot.plot(found["figures"]["arms"], options.plot)
    output.show(found, render(found), as_json=options.json)


if __name__ == "__main__":
    main()
