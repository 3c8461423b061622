"""The teacher pass: tokens a second of a build against a loop that only asks, and against the script people write.

    python -m infra.bench.teacher_pass [--quick] [--json] [--rounds N]

A build is views that are added to a cache with one: starting Ray and one actor, loading the teacher, reading, masking,
asking, encoding, writing, committing, sealing. What a cache costs once, tokenising and codebook, is told apart.
The loops run in this process, on the same inputs, in the same dtype, with the same threads, before and after each
build. The teacher has BERT-base's shapes and random weights. Text comes packed to full sequences, and as documents of
natural (log-normal) length. Then one actor of one thread is held against two, on two simulated nodes.
"""

import argparse
import copy
import math
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster

from infra.bench import output
from infra.bench.loading.payload import words_of
from infra.bench.random_teacher import save_random_teacher
from infra.bench.teacher_loops import bare_loop, usual_script
from infra.bench.training import device
from student_train.measuring import timed
from teacher_cache import CacheSpec, build, open_cache
from teacher_cache.config import ExecutionConfig
from teacher_cache.format.sequences import Sequences
from teacher_cache.masking import MaskedSequence
from teacher_cache.pipeline import BuildSummary, extend
from teacher_cache.shell.settings import parse
from teacher_cache.teacher import Teacher, load_teacher
from teacher_cache.units import mask_unit, vocabulary_of


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of teacher and text."""

    config: dict[str, int]
    vocab_size: int
    sequence_length: int
    loop_tokens: int
    """That a loop takes a turn."""


BERT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
FULL = Size(config=BERT_BASE, vocab_size=30_522, sequence_length=512, loop_tokens=16_384)
QUICK = Size(config=SMALL, vocab_size=2000, sequence_length=64, loop_tokens=2048)


@dataclass(frozen=True)
class Text:
    packing: str
    num_loops: int
    """Its tokens, in tokens of a loop."""
    num_views: int
    """Of a build: the more, the less does it matter how long its start takes."""
    unit_sequences: int


TEXTS = {"packed": Text("full", 4, 8, 32), "natural lengths": Text("documents", 2, 3, 64)}
PAIR = Text("full", 1, 4, 8)
"""For one actor against two."""
BATCH_TOKENS = 4096


@dataclass
class Rates:
    """Tokens a second."""

    build: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    script: list[float] = field(default_factory=list)
    teacher_share: list[float] = field(default_factory=list)
    """Of a build's time."""
    once_s: float = 0.0
    """Tokenising and the codebook, and all else that a first build does before its view."""

    def ratios(self, to: list[float]) -> list[float]:
        """Of each build to the mean of what was measured before and after it."""
        return [rate / ((to[turn] + to[turn + 1]) / 2) for turn, rate in enumerate(self.build)]


class Case:
    """A cache of one packing, and the loops on what it holds."""

    def __init__(self, folder: Path, teacher: Path, size: Size, text: Text, execution: dict[str, Any]) -> None:
        self._folder, self._size, self._num_views = folder, size, text.num_views
        self._execution = parse(ExecutionConfig, execution | {"batch_tokens": BATCH_TOKENS})
        path = folder / "text.txt"
        folder.mkdir(parents=True)
        path.write_text("\n\n".join(documents(size, text.num_loops * size.loop_tokens)) + "\n")
        values = {
            "cache": str(folder / "cache"),
            "corpus": {"paths": [str(path)], "sequence_length": size.sequence_length, "packing": text.packing},
            "teacher": {"model": str(teacher)},
            "views": 1,
            "unit_sequences": text.unit_sequences,
        }
        self.spec = replace(parse(CacheSpec, values), execution=self._execution)

    def make(self) -> BuildSummary:
        """The cache with its first view."""
        summary = build(self.spec, progress=False)
        cache = open_cache(self.spec.cache)
        loaded = load_teacher(str(cache.teacher.folder))
        dtype = getattr(torch, self.spec.teacher.dtype)
        self._teacher = Teacher(loaded, dtype, device())
        self._model = copy.deepcopy(loaded.model).to(device(), dtype)  # type: ignore[arg-type]  # transformers' own signature
        self._pad_id = loaded.tokenizer.pad_token_id
        sequences = Sequences(cache.store)
        stored = list(sequences.read(0, sequences.num_sequences))
        vocabulary = vocabulary_of(loaded.tokenizer)
        masked = [masked for _, masked in mask_unit(stored, 0, identity=cache.spec, vocabulary=vocabulary)]
        self._inputs = evenly(masked, self._size.loop_tokens)
        return summary

    def build(self) -> tuple[float, float]:
        """Tokens a second of building the next views, and the teacher's share of the time."""
        before = open_cache(self.spec.cache).num_views
        done: list[BuildSummary] = []
        views = before + self._num_views
        seconds = timed(
            lambda: done.append(extend(self.spec.cache, views=views, execution=self._execution, progress=False))
        )
        return self._num_views * done[0].num_tokens / seconds, done[0].teacher_seconds / seconds

    def bare(self) -> float:
        return self._rate(
            lambda: bare_loop(self._teacher, self._inputs, pad_id=self._pad_id, batch_tokens=BATCH_TOKENS)
        )

    def script(self) -> float:
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            return self._rate(lambda: usual_script(self._model, self._inputs, Path(folder), pad_id=self._pad_id))

    def _rate(self, work: Callable[[], None]) -> float:
        return sum(len(masked.input_ids) for masked in self._inputs) / timed(work)


def evenly(masked: list[MaskedSequence], num_tokens: int) -> list[MaskedSequence]:
    """About so many tokens' sequences, spread over all."""
    step = max(1, round(sum(len(sequence.input_ids) for sequence in masked) / num_tokens))
    return masked[::step]


def documents(size: Size, wanted_tokens: int) -> list[str]:
    """Of log-normal length: the median has a quarter of a sequence's tokens, a tenth of them fill one."""
    words, draw = words_of(size.vocab_size), random.Random(0)
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    found, num_tokens = [], 0
    while num_tokens < wanted_tokens:
        length = min(
            size.sequence_length - 2, max(4, int(draw.lognormvariate(math.log(size.sequence_length / 4), 1.1)))
        )
        found.append(" ".join(draw.choices(words, weights, k=length)))
        num_tokens += length + 2
    return found


def measure_case(case: Case, name: str, num_rounds: int) -> Rates:
    """Loops and builds in turns, after a first build."""
    first = case.make()
    rates = Rates()
    rates.once_s = first.seconds - first.num_tokens / first.tokens_per_s
    case.bare()  # warms up
    for turn in range(num_rounds + 1):
        rates.bare.append(case.bare())
        rates.script.append(case.script())
        output.say(f"  {name}: bare {rates.bare[-1]:,.0f} tokens/s, usual script {rates.script[-1]:,.0f}")
        if turn < num_rounds:
            rate, teacher_share = case.build()
            rates.build.append(rate)
            rates.teacher_share.append(teacher_share)
            output.say(f"  {name}: build {rates.build[-1]:,.0f} tokens/s, {rates.teacher_share[-1]:.1%} of it asking")
    return rates


def second_actor(folder: Path, teacher: Path, size: Size) -> tuple[float, dict[str, float]]:
    """Tokens a second of two actors over one's, each of one thread on a simulated node of its own."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    rates = {}
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        for num_workers in (1, 2):
            execution = {"num_workers": num_workers, "cpus_per_worker": 1}
            case = Case(folder / str(num_workers), teacher, size, PAIR, execution)
            build(case.spec, progress=False)
            rates[f"{num_workers} actor(s)"], _ = case.build()
            output.say(f"  {num_workers} actor(s) of one thread: {rates[f'{num_workers} actor(s)']:,.0f} tokens/s")
    finally:
        ray.shutdown()
        cluster.shutdown()
    one, two = rates.values()
    return two / one, rates


def measure(folder: Path, *, quick: bool, num_rounds: int) -> dict[str, Any]:
    size = QUICK if quick else FULL
    threads = torch.get_num_threads()
    teacher = save_random_teacher(
        folder / "teacher", words_of(size.vocab_size), sequence_length=size.sequence_length, **size.config
    )
    ratios: dict[str, float] = {}
    figures: dict[str, Any] = {}
    for name, text in TEXTS.items():
        case = Case(folder / text.packing, teacher, size, text, {"num_workers": 1, "cpus_per_worker": threads})
        rates = measure_case(case, name, num_rounds)
        to_bare, to_script = rates.ratios(rates.bare), rates.ratios(rates.script)
        ratios[f"tokens/s, build / bare loop, {name}"] = statistics.median(to_bare)
        ratios[f"tokens/s, build / usual script, {name}"] = statistics.median(to_script)
        figures[name] = {
            "build, tokens/s": statistics.median(rates.build),
            "bare loop, tokens/s": statistics.median(rates.bare),
            "usual script, tokens/s": statistics.median(rates.script),
            "to bare, least and most": (min(to_bare), max(to_bare)),
            "device idle share": 1 - statistics.median(rates.teacher_share),
            "once a cache, s": rates.once_s,
        }
    ratios["tokens/s, two actors on two nodes / one"], figures["actors of one thread, tokens/s"] = second_actor(
        folder / "pair", teacher, size
    )
    return {
        "name": "teacher_pass" + (" (quick: small shapes)" if quick else ""),
        "ratios": ratios,
        "figures": figures,
        "machine": output.machine(),
        "versions": output.versions() | {"ray": ray.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two minutes: small shapes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="builds of each text; default %(default)s")
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # of the simulated cluster of this process's own
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), quick=arguments.quick, num_rounds=1 if arguments.quick else arguments.rounds)
    output.show(found, output.table_of(found), as_json=arguments.json)


if __name__ == "__main__":
    main()
