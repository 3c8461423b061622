"""What `teacher-cache plan` says of a build, against what the build then weighs and takes, part by part.

    python -m infra.bench.plan [--quick] [--json] [--teacher DIR --corpus GLOB] [KEY=VALUE …]

Without a teacher and a corpus, the text is Python's own documentation and the teacher random: its states take fewer
bytes than a real one's, but as many in the plan as in the build. Both run in this process, one after the other.
"""

import argparse
import re
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.bench import output
from infra.bench.random_teacher import save_random_teacher
from infra.quickstart import english
from teacher_cache import CacheSpec, build
from teacher_cache.inspect import info
from teacher_cache.pipeline import BuildSummary
from teacher_cache.plan.plan import Plan, plan
from teacher_cache.shell import settings

TEXT_BYTES, QUICK_TEXT_BYTES = 3_000_000, 150_000
SIZES: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
QUICK_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
NUM_WORDS = 4000
SEQUENCE_LENGTH = 128


def make_inputs(folder: Path, *, quick: bool) -> tuple[str, str]:
    """A random teacher and a corpus, made on the spot: folder and glob."""
    limit = QUICK_TEXT_BYTES if quick else TEXT_BYTES
    paths = english.write(folder / "text", english.up_to(limit, english.english()))
    words = Counter(re.findall(r"[a-z]+", " ".join(path.read_text().lower() for path in paths)))
    most = [word for word, _ in words.most_common(NUM_WORDS)]
    pieces = [*most, *"abcdefghijklmnopqrstuvwxyz.,", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    teacher = save_random_teacher(
        folder / "teacher",
        list(dict.fromkeys(pieces)),
        sequence_length=SEQUENCE_LENGTH,
        **(QUICK_SIZES if quick else SIZES),
    )
    return str(teacher), str(folder / "text" / "english-*.txt")


def make_spec(folder: Path, teacher: str, corpus: str, overrides: list[str]) -> CacheSpec:
    """The defaults, in this process; `overrides` as on a command line."""
    return settings.from_overrides(
        CacheSpec,
        [
            f"cache={folder / 'cache'}",
            f"corpus.paths=[{corpus}]",
            f"corpus.sequence_length={SEQUENCE_LENGTH}",
            "corpus.packing=full",
            f"teacher.model={teacher}",
            "execution.num_workers=0",
            *overrides,
        ],
    )


def measured_bytes(url: str) -> dict[str, int]:
    """A built cache's bytes by part, as `sizes.Sizes` names them."""
    views = info(url)["views"]
    folders = {name: _folder_bytes(Path(url, name)) for name in ("sequences", "teacher", "codebook.safetensors")}
    parts = {
        "labels": sum(view["label_bytes"] for view in views),
        "hidden": sum(view["hidden_bytes"] for view in views),
        "sequences": folders["sequences"],
        "codebook": folders["codebook.safetensors"],
        "teacher": folders["teacher"],
    }
    return parts | {"manifests_and_commits": _folder_bytes(Path(url)) - sum(parts.values())}


def _folder_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def compare(planned: Plan, plan_s: float, built: BuildSummary) -> dict[str, Any]:
    """Planned over measured, and both."""
    views = info(built.cache)["views"]
    num_objects = sum(1 for path in Path(built.cache).rglob("*") if path.is_file())
    asked_s = built.num_views * built.num_tokens / built.tokens_per_s
    pairs: dict[str, tuple[float, float]] = {
        "sequences": (planned.corpus.num_sequences, built.num_sequences),
        "tokens": (planned.corpus.num_tokens, built.num_tokens),
        "masked positions": (planned.num_labels, sum(view["num_labels"] for view in views)),
        "kept positions": (planned.num_kept, built.num_kept),
        "objects": (planned.num_objects, num_objects),
    }
    measured = measured_bytes(built.cache)
    pairs |= {f"bytes of {name}": (size, measured[name]) for name, size in asdict(planned.sizes).items()}
    pairs["bytes, all"] = planned.num_bytes, sum(measured.values())
    pairs["seconds of asking"] = planned.work.teacher_s, built.teacher_seconds
    pairs["seconds of asking and encoding"] = planned.work.teacher_s + planned.work.encode_s, asked_s
    pairs["seconds, all"] = planned.wall_s, built.seconds
    return {
        "name": "plan",
        "ratios": {f"{name}, planned / measured": ours / theirs for name, (ours, theirs) in pairs.items() if theirs},
        "figures": {
            **{f"{name}, planned and measured": list(both) for name, both in pairs.items()},
            "seconds that the plan took": plan_s,
        },
        "machine": output.machine(),
        "versions": output.versions(),
    }


def measure(folder: Path, teacher: str, corpus: str, overrides: list[str]) -> dict[str, Any]:
    """Plans, then builds, then compares."""
    spec = make_spec(folder, teacher, corpus, overrides)
    start = time.perf_counter()
    planned = plan(spec, progress=False)
    plan_s = time.perf_counter() - start
    output.say(f"planned in {plan_s:.1f} s: {planned.num_bytes:,} bytes, {planned.wall_s:.1f} s; building")
    return compare(planned, plan_s, build(spec, progress=False))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small teacher and little text")
    parser.add_argument("--json", action="store_true", help="print JSON, and the table to stderr")
    parser.add_argument("--teacher", help="folder or hub name of a teacher")
    parser.add_argument("--corpus", help="glob of its corpus")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the cache's configuration")
    options = parser.parse_args(arguments)
    if (options.teacher is None) != (options.corpus is None):
        parser.error("give --teacher and --corpus, or neither")
    return options


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = (options.teacher, options.corpus)
        teacher, corpus = given if options.teacher else make_inputs(folder, quick=options.quick)
        found = measure(folder, teacher, corpus, options.overrides)
    output.show(found, output.table_of(found), as_json=options.json)


if __name__ == "__main__":
    main()
