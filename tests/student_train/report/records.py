"""Made-up records of runs, written as runs write them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from student_train.config import StudentSpec
from student_train.run_folder import (
    HELD_OUT_KEY,
    METRICS_KEY,
    RUN_KEY,
    SUMMARY_KEY,
    CacheDescription,
    HeldOutReport,
    RunDescription,
    StepReport,
    TrainSummary,
    write_records,
)
from teacher_cache.shell.settings import parse, to_dict
from teacher_cache.storage.store import Store

CACHE = CacheDescription(
    url="s3://bucket/bert-base-wikipedia",
    fingerprint="3f9c2b7e51d8a6049b1c" + "0" * 44,
    teacher="bert-base-uncased",
    num_views=3,
    num_sequences=1_204_321,
    num_tokens=308_306_176,
    num_kept=71_834_411,
    label_bytes=4_813_004_812,
    hidden_bytes=4_886_920_330,
)

TOKENS_PER_STEP = 1_024_000


def write_run(
    url: str | Path,
    *,
    num_layers: int = 6,
    width: int = 768,
    num_parameters: int = 66_985_530,
    num_steps: int = 100,
    num_steps_done: int | None = None,
    floor: float = 2.0,
    step_s: float = 3.0,
    losses: dict[int, float] | None = None,
    held_out_every: int | None = 25,
    cache: CacheDescription = CACHE,
    more_spec: dict[str, Any] | None = None,
    **spec: Any,
) -> None:
    """A run whose losses fall towards `floor`; `losses` replaces the total of some steps, `more_spec` is
    recorded unchecked.

    Unfinished if `num_steps_done` is fewer than `num_steps`; nothing held out if `held_out_every` is None.
    """
    done = num_steps if num_steps_done is None else num_steps_done
    steps = [step_report(step, num_steps, floor=floor, step_s=step_s) for step in range(1, done + 1)]
    for step, total in (losses or {}).items():
        steps[step - 1] = replace(steps[step - 1], losses=steps[step - 1].losses | {"total": total})
    looks = (
        [] if held_out_every is None else [held_out_report(step) for step in steps if step.step % held_out_every == 0]
    )
    store = Store(str(url))
    asked = parse(
        StudentSpec, {"caches": [cache.url], "output": store.url, "student": {"num_layers": num_layers}} | spec
    )
    description = RunDescription(
        spec=to_dict(asked) | (more_spec or {}),
        caches=[cache],
        model_type="distilbert",
        num_layers=num_layers,
        width=width,
        num_parameters=num_parameters,
        num_steps=num_steps,
        num_workers=4,
        device="NVIDIA A100-SXM4-80GB",
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
    )
    write_records(store, RUN_KEY, [description])
    write_records(store, METRICS_KEY, steps)
    if looks:
        write_records(store, HELD_OUT_KEY, looks)
    if done == num_steps:
        write_records(store, SUMMARY_KEY, [_summary(store.url, description, steps, looks)])


def step_report(
    step: int, num_steps: int, *, floor: float = 2.0, step_s: float = 3.0, total: float | None = None
) -> StepReport:
    """Losses fall towards `floor`, with a little noise."""
    falling = math.exp(-12 * step / num_steps) * 7 + math.exp(-2 * step / num_steps) * 1.2
    wobble = 0.08 * math.sin(step * 12.9898) * math.cos(step * 4.1414)
    masked_lm, soft, cosine = floor + falling + wobble, 0.35 * floor + 0.5 * falling + wobble / 3, 0.08 + 0.1 * falling
    return StepReport(
        step=step,
        num_steps=num_steps,
        epoch=3 * step // (num_steps + 1),
        losses={
            "total": 5 * soft + 2 * masked_lm + cosine if total is None else total,
            "soft_labels": soft,
            "masked_lm": masked_lm,
            "cosine": cosine,
        },
        grad_norm=1.0 + abs(wobble),
        lr=5e-4,
        num_sequences=4000,
        num_tokens=TOKENS_PER_STEP,
        rows_digest=step,
        step_s=step_s,
        wait_s=0.01,
        seconds=step * step_s,
        peak_bytes=2**34,
    )


def held_out_report(step: StepReport) -> HeldOutReport:
    losses = {name: 1.04 * value for name, value in step.losses.items()}
    accuracy = max(0.0, 0.92 - 0.16 * losses["masked_lm"])
    return HeldOutReport(step=step.step, seconds=step.seconds, num_sequences=2048, losses=losses, accuracy=accuracy)


def _summary(
    url: str, description: RunDescription, steps: list[StepReport], looks: list[HeldOutReport]
) -> TrainSummary:
    return TrainSummary(
        output=url,
        model=f"{url}/model",
        fingerprints=[cache.fingerprint for cache in description.caches],
        num_parameters=description.num_parameters,
        num_steps=description.num_steps,
        num_workers=description.num_workers,
        losses=steps[-1].losses,
        held_out=looks[-1].losses | {"accuracy": looks[-1].accuracy} if looks else {},
        sequences_per_s=steps[-1].num_sequences / steps[-1].step_s,
        seconds=steps[-1].seconds,
    )


def write_four(folder: Path) -> list[str]:
    """Four students: two whole ones, one that is not finished, and one that diverged. Their names."""
    write_run(folder / "six-layers", num_steps=3000, floor=1.72, step_s=3.1, held_out_every=200)
    write_run(
        folder / "six-layers-T4",
        num_steps=3000,
        num_steps_done=1870,
        floor=1.75,
        step_s=3.1,
        held_out_every=200,
        optimizer={"lr": 2e-4},
    )
    write_run(
        folder / "three-layers",
        num_layers=3,
        num_parameters=45_722_170,
        num_steps=3000,
        floor=2.11,
        step_s=1.7,
        held_out_every=200,
    )
    rising = {step: 15 + 25 * ((step - 900) / 500) ** 2 for step in range(900, 1400)}
    write_run(
        folder / "three-layers-wide-random-lr-2e-3",
        num_layers=3,
        width=1024,
        num_parameters=72_050_944,
        num_steps=3000,
        num_steps_done=1399,
        floor=2.9,
        step_s=2.4,
        held_out_every=200,
        losses=rising,
        student={"num_layers": 3, "width": 1024, "num_heads": 16, "initial_weights": "random"},
        optimizer={"lr": 2e-3},
    )
    return ["six-layers", "six-layers-T4", "three-layers", "three-layers-wide-random-lr-2e-3"]
