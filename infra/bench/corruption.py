"""What becomes of a cache of which one bit is flipped, or one file cut short: is it ever read as if it were whole?

Each damage is done to one file of a tiny cache, which is then read as a student, a builder or `verify` reads that kind
of file. A damage is *refused* by a message that names the file and says what to do, or *harmless*: what is read is what
was written. It may not be *vague* (refused without a name or a remedy), *silent* (other data) or a *crash* (any other
error, a dead process, more than 512 MB, or more than 20 s).

Kinds that end in `, unchecked` are read without their SHA-256, and Parquet files without checksums of pages, as from a
cache whose author means harm: there, other data cannot be told, and count as *read*.

Usage: `python -m infra.bench.corruption [--flips N] [--quick] [--json]`
"""

import argparse
import json
import os
import random
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.bench import tiny_caches
from infra.bench.damaged_reading import Kind, kinds
from infra.bench.sandbox import Died, in_sandbox
from teacher_cache.errors import UserError

NUM_DAMAGES, NUM_QUICK = 10_000, 300
SHARE_CUT = 0.25
"""Of damages that are truncations; the others flip a bit."""
REMEDY = re.compile(r"run `teacher-cache (build|verify)|restore it|move it away|at another URL")
OUTCOMES = ("refused", "harmless", "read", "vague", "silent", "crash")
SHOWN = 20
FAULTS = ("vague", "silent", "crash")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """To one file of a kind."""

    kind: Kind
    key: str
    place: int
    """Of the byte that changes, or from which on all are missing."""
    bit: int | None
    """None: the file is cut short."""

    def __str__(self) -> str:
        how = "cut at" if self.bit is None else f"bit {self.bit} of byte"
        return f"{self.kind.name}: {self.key}, {how} {self.place}"

    def of(self, data: bytes) -> bytes:
        if self.bit is None:
            return data[: self.place]
        return data[: self.place] + bytes([data[self.place] ^ 1 << self.bit]) + data[self.place + 1 :]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a damage."""

    name: str
    said: str = ""
    seconds: float = 0.0


def draw(choices: Sequence[Kind], num: int, seed: int) -> list[Damage]:
    """Damages at random places, as many to each kind."""
    random_ = random.Random(seed)
    return [_draw(choices[place % len(choices)], random_) for place in range(num)]


def _draw(kind: Kind, random_: random.Random) -> Damage:
    key = random_.choice(kind.keys)
    is_cut = random_.random() < SHARE_CUT
    place = random_.randrange((kind.folder / key).stat().st_size)
    return Damage(kind=kind, key=key, place=place, bit=None if is_cut else random_.randrange(8))


def judge(damage: Damage, whole: object) -> Outcome:
    """Does a damage, reads, and mends it; `whole` is what is read without it."""
    path = damage.kind.folder / damage.key
    data, start = path.read_bytes(), time.perf_counter()
    _put(path, damage.of(data))
    try:
        name, said = _read(damage, whole)
    finally:
        _put(path, data)
    return Outcome(name=name, said=said, seconds=time.perf_counter() - start)


def _read(damage: Damage, whole: object) -> tuple[str, str]:
    try:
        found = damage.kind.read(damage.key)
    except UserError as error:
        said = str(error)
        is_clear = damage.key.rsplit("/", 1)[-1] in said and REMEDY.search(said)
        return "refused" if is_clear else "vague", said
    except Exception as error:  # what no reader may let through
        return "crash", f"{type(error).__name__}: {error}"
    if found == whole:
        return "harmless", ""
    return "silent" if damage.kind.is_checked else "read", ""


def _put(path: Path, data: bytes) -> None:
    """As another file under the same name: one that is mapped into memory must not change."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def run(num: int, *, seed: int, found: Callable[[Damage, Outcome], None]) -> None:
    """Judges `num` damages; `found` is told of each."""
    with tempfile.TemporaryDirectory() as folder:
        choices = kinds(tiny_caches.make(Path(folder)))
        whole = {(kind.name, key): kind.read(key) for kind in choices for key in kind.keys}
        damages = draw(choices, num, seed)
        answers = in_sandbox(damages, lambda damage: judge(damage, whole[damage.kind.name, damage.key]))
        for damage, answer in zip(damages, answers, strict=True):
            outcome = Outcome(name="crash", said=answer.cause) if isinstance(answer, Died) else answer
            found(damage, outcome)


def table(counts: dict[str, Counter[str]], slowest: dict[str, float]) -> str:
    """Outcomes by kind, and the slowest damage of each."""
    width = max(map(len, counts))
    lines = [f"{'':{width}}" + "".join(f"{name:>10}" for name in OUTCOMES) + "   slowest"]
    total: Counter[str] = sum(counts.values(), Counter())
    for kind, row in {**counts, "all": total}.items():
        seconds = max(slowest.values()) if kind == "all" else slowest[kind]
        lines.append(f"{kind:{width}}" + "".join(f"{row[name]:10,}" for name in OUTCOMES) + f"{1e3 * seconds:7.0f} ms")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, help=f"how many damages (default {NUM_DAMAGES:,})")
    parser.add_argument("--quick", action="store_true", help=f"{NUM_QUICK} damages")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    faults: list[str] = []

    def found(damage: Damage, outcome: Outcome) -> None:
        counts[damage.kind.name][outcome.name] += 1
        slowest[damage.kind.name] = max(slowest[damage.kind.name], outcome.seconds)
        if outcome.name in FAULTS:
            faults.append(f"{outcome.name}: {damage}: {outcome.said}")

    run(options.flips or (NUM_QUICK if options.quick else NUM_DAMAGES), seed=options.seed, found=found)
    print(json.dumps({"outcomes": counts, "faults": faults}, indent=1) if options.json else table(counts, slowest))
    if faults and not options.json:
        print("\n".join([f"{len(faults):,} faults, the first {min(len(faults), SHOWN)}:", *faults[:SHOWN]]))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
