"""A plan for people."""

import math
from typing import Any

from teacher_cache.plan.costs import HOUR_S, STORED_MONTHS
from teacher_cache.shell import command

NEXT_TO_NOTHING = 0.005
"""Settings that change bytes, time and objects by less are not worth a line."""


def render(plan: dict[str, Any]) -> str:
    """Sections of a plan's plain values."""
    return "\n\n".join(
        [
            f"plan of {plan['cache']}; nothing is written",
            command.pairs(_corpus(plan) | _positions(plan)),
            _sizes(plan),
            command.pairs(_time(plan) | _price(plan)),
            _students(plan),
            _verdict(plan),
            _advice(plan),
        ]
    )


def _corpus(plan: dict[str, Any]) -> dict[str, str]:
    corpus = plan["corpus"]
    error, how = corpus["relative_error"], corpus["known"]
    if how == "sampled":
        how += f", ± {error:.1%} at 95 %" if error is not None else ", of one slice, which tells no error"
    return {
        "corpus": f"{corpus['num_files']:,} files, {command.size(corpus['num_stored_bytes'])} as stored",
        "tokens": f"{corpus['num_tokens']:,} ({how})",
        "sequences": f"{corpus['num_sequences']:,} of {corpus['num_documents']:,} documents",
    }


def _positions(plan: dict[str, Any]) -> dict[str, str]:
    positions = plan["num_positions"]
    return {
        "views": f"{plan['num_views']}, of {plan['num_units']:,} units each",
        "positions": f"{positions:,} in all views; {_share(plan['num_labels'], positions)} masked, "
        f"{_share(plan['num_kept'], positions)} kept: {plan['num_kept']:,}",
        "padding": f"{plan['padding_share']:.1%} of what the teacher computes",
    }


def _sizes(plan: dict[str, Any]) -> str:
    parts = [(name.replace("_", " "), num_bytes) for name, num_bytes in plan["sizes"].items()]
    rows = [(name, command.size(num_bytes), _share(num_bytes, plan["num_bytes"])) for name, num_bytes in parts]
    rows.append((f"all, {plan['num_objects']:,} objects", command.size(plan["num_bytes"]), ""))
    of_shards = (
        f"{plan['bytes_per_kept_position']:.1f} bytes a kept position, {plan['bytes_per_token']:.1f} a token and view"
    )
    return command.table(("part", "size", "share"), rows) + f"\nshards: {of_shards}"


def _time(plan: dict[str, Any]) -> dict[str, str]:
    done, how = plan["work"], _measured_on(plan)
    parts = ", ".join(f"{name} {hours(done[f'{name}_s'])}" for name in ("teacher", "encode", "codebook"))
    return {
        "one worker": f"{plan['tokens_per_s']:,.0f} tokens/s, {how}",
        "device time": f"{hours(plan['build_s'])}: {parts}",
        "wall-clock": f"{hours(plan['wall_s'])} with {plan['num_workers']} worker(s), tokenising and start included",
    }


def _measured_on(plan: dict[str, Any]) -> str:
    if plan["is_speed_given"]:
        return "as given"
    return f"measured here over {plan['num_sample_tokens']:,} tokens on a {plan['device']}"


def _price(plan: dict[str, Any]) -> dict[str, str]:
    price = plan["build_price"]
    if not price:
        return {"prices": "none given (--prices FILE): break-even is of device time alone"}
    unit = price["currency"]
    return {
        "build": f"{amount(price['devices'], unit)} for devices, {amount(price['puts'], unit)} for requests",
        "storage": f"{amount(price['storage_month'], unit)} a month",
    }


def _students(plan: dict[str, Any]) -> str:
    unit = plan["build_price"]["currency"] if plan["build_price"] else None
    head = ["a student epoch", "read", "requests", "device time", *([f"{unit}"] if unit else [])]
    rows = []
    for epoch in plan["student_epochs"]:
        cells = [f"from the cache, {epoch['way']}", command.size(epoch["num_bytes"]), f"{epoch['num_gets']:,}"]
        rows.append([*cells, hours(epoch["device_s"]), *([amount(epoch["price"])] if unit else [])])
    online = plan["student_epochs"][0]["online_price"]
    rows.append(
        ["teacher in memory", "0 B", "0", hours(plan["work"]["online_epoch_s"]), *([amount(online)] if unit else [])]
    )
    start = f"each student reads {command.size(plan['student_start_bytes'])} more once: teacher and codebook"
    return command.table(head, rows) + f"\n{start}"


def _verdict(plan: dict[str, Any]) -> str:
    return "\n".join(pays(epoch, plan) for epoch in plan["student_epochs"])


def pays(epoch: dict[str, Any], plan: dict[str, Any]) -> str:
    """Whether a cache pays for students of one epoch a view, and when."""
    epochs, views, way = epoch["pays_after_epochs"], plan["num_views"], epoch["way"]
    unit = f"in {plan['build_price']['currency']}" if plan["build_price"] else "in device time"
    if epochs is None:
        return f"{way}: caching does not pay {unit}: an epoch from the cache costs no less than the teacher in memory"
    students = math.ceil(epochs / views)
    after = f"{way}: the cache is cheaper {unit} after {epochs:,.2f} student epochs"
    stored = f", {STORED_MONTHS} month of storage included" if plan["build_price"] else ""
    if students <= 1:
        return f"{after}{stored}: it pays with the first student of {views} epochs"
    return f"{after}{stored}: with student {students:,} of {views} epochs each; caching does not pay for fewer"


def _advice(plan: dict[str, Any]) -> str:
    rows, seen = [], (plan["num_bytes"], plan["build_s"], plan["num_objects"])
    for advice in plan["advice"]:
        found = (advice["num_bytes"], advice["build_s"], advice["num_objects"])
        changes = [after / before - 1 for after, before in zip(found, seen, strict=True)]
        if max(map(abs, changes)) >= NEXT_TO_NOTHING:
            rows.append((advice["setting"], *(f"{change:+.1%}" for change in changes), advice["meaning"]))
    if not rows:
        return "no setting changes much"
    table = command.table(("other settings", "bytes", "device time", "objects"), [row[:-1] for row in rows])
    head, *lines = table.splitlines()
    return "\n".join([head, *(f"{line}  {row[-1]}" for line, row in zip(lines, rows, strict=True))])


def _share(part: float, whole: float) -> str:
    return f"{part / max(whole, 1):.1%}"


def hours(seconds: float) -> str:
    """Seconds, minutes or hours, as fit."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:,.1f} h"


def amount(value: float, currency: str = "") -> str:
    """Money, small sums too."""
    return f"{value:,.2f} {currency}".strip() if value >= 0.01 or value == 0 else f"{value:.2g} {currency}".strip()
