"""Students from a cache against students with the teacher in memory: tokens a second, and peak memory.

    python -m infra.bench.online [--quick] [--json] [--cache DIR]

The online reference is the usual loop: the teacher's forward pass, whole rows at all non-pad positions, the three
losses. Both train the same student (6 layers of 768) on the same inputs, in turns. The cache is built with the default
rates, and once with every position kept. What a cached answer holds does not depend on the teacher's depth, so the
caches come from random teachers of one layer; the online teachers have 12 layers of 768 and 24 of 1,024. Peaks are of
processes of their own.

Legend: B sequences, S positions, V vocabulary.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

from infra.bench import output, training
from infra.bench.loading.payload import Size, make_cache
from student_train import measuring
from student_train.batch import Batch, made_ahead
from student_train.loop import Trainer, peak_bytes

TEMPERATURE = 2.0
NUM_SEQUENCES = 384


@dataclass(frozen=True)
class Case:
    """A teacher, and how much of it is cached."""

    name: str
    num_layers: int
    width: int
    unmasked_rate: float
    student_width: int = training.WIDTH
    vocab_size: int = 30_522
    sequence_length: int = 128

    @property
    def size(self) -> Size:
        return Size(
            num_sequences=NUM_SEQUENCES,
            sequence_length=self.sequence_length,
            hidden_size=self.width,
            vocab_size=self.vocab_size,
        )


CASES = (
    Case("BERT-base, default rates", 12, 768, 0.1),
    Case("BERT-large, default rates", 24, 1024, 0.1),
    Case("BERT-base, every position", 12, 768, 1.0),
)
QUICK_CASES = (Case("small (quick)", 4, 128, 0.1, student_width=64, vocab_size=2000, sequence_length=64),)
ROUNDS, QUICK_ROUNDS = 4, 2


class OnlineDistillation:
    """The published recipe with the teacher in memory, for the student of a trainer."""

    def __init__(self, trainer: Trainer, case: Case) -> None:
        self._trainer = trainer
        config = BertConfig(
            vocab_size=case.vocab_size,
            num_hidden_layers=case.num_layers,
            hidden_size=case.width,
            num_attention_heads=case.width // 64,
            intermediate_size=4 * case.width,
            max_position_embeddings=max(512, case.sequence_length),
        )
        self._teacher = BertForMaskedLM(config).eval().to(trainer.device)  # type: ignore[arg-type]  # see Trainer

    def step(self, batch: Batch) -> None:
        modules = self._trainer.modules
        self._trainer.optimizer.zero_grad(set_to_none=True)
        for part in batch.micro_batches:
            part = part.to(self._trainer.device)
            is_token = part.attention_mask.bool()
            inputs = {"input_ids": part.input_ids, "attention_mask": part.attention_mask}
            with torch.no_grad():
                taught = self._teacher(**inputs, output_hidden_states=True)
            learned = modules["student"](**inputs, output_hidden_states=True)
            states = learned.hidden_states[-1]
            if "projection" in modules:
                states = modules["projection"](states)
            labels = torch.full_like(part.input_ids.flatten(), -100)
            labels[part.label_places] = part.label_ids
            soft = soft_label_loss(learned.logits[is_token], taught.logits[is_token])
            masked_lm = F.cross_entropy(learned.logits.flatten(0, 1), labels)
            cosine = (1 - F.cosine_similarity(states, taught.hidden_states[-1], dim=-1))[is_token].mean()
            (5 * soft + 2 * masked_lm + cosine).backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 5.0)
        self._trainer.optimizer.step()


def soft_label_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """T² KL between rows `[N, V]`, as the published code has it."""
    loss = F.kl_div(
        (student / TEMPERATURE).log_softmax(dim=-1), (teacher / TEMPERATURE).softmax(dim=-1), reduction="batchmean"
    )
    return loss * TEMPERATURE**2


def make_cache_of(case: Case, folder: Path) -> str:
    keep = {"unmasked": case.unmasked_rate}
    return make_cache(folder / f"{case.width}", f"keep-{case.unmasked_rate:g}", case.size, keep=keep)


def make_trainer(case: Case, cache: str) -> Trainer:
    return training.make_trainer(cache, sequence_length=case.sequence_length, width=case.student_width)


def speeds(case: Case, folder: Path, rounds: int) -> dict[str, Any]:
    """Tokens a second of both, step about, after one step each."""
    trainer = make_trainer(case, make_cache_of(case, folder))
    online, batches = OnlineDistillation(trainer, case), made_ahead(trainer.batches())
    times: dict[str, list[float]] = {"cache": [], "online": []}
    num_tokens = 0
    for number in range(rounds + 1):
        taken: list[Batch] = []
        cached_s = measuring.timed(lambda taken=taken: (taken.append(next(batches)), trainer.step(taken[0])))
        online_s = measuring.timed(lambda taken=taken: online.step(taken[0]))
        num_tokens = int(taken[0].counts[1])
        output.say(f"  {case.name}: {cached_s:.2f} s from the cache, {online_s:.2f} s with the teacher")
        if number:
            times["cache"].append(cached_s)
            times["online"].append(online_s)
    ratios = [online / cached for cached, online in zip(*times.values(), strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "interval_95": measuring.interval(ratios),
        **{f"{name}, tokens/s": num_tokens / statistics.median(values) for name, values in times.items()},
    }


def peak(way: str, case: Case, folder: Path) -> int:
    """The most memory that two steps take in this process."""
    cache = make_cache_of(case, folder)
    training.forget_peak()
    trainer = make_trainer(case, cache)
    step = OnlineDistillation(trainer, case).step if way == "online" else trainer.step
    batches = made_ahead(trainer.batches())
    for _ in range(2):
        step(next(batches))
    return peak_bytes(trainer.device)


def peak_of_a_process(way: str, case: Case, folder: Path, quick: bool) -> int:
    command = [sys.executable, "-m", "infra.bench.online", "--peak", way, case.name, "--cache", str(folder)]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    cases, rounds = (QUICK_CASES, QUICK_ROUNDS) if quick else (CASES, ROUNDS)
    found = {case.name: speeds(case, folder, rounds) for case in cases}
    for case in cases:
        for way in ("cache", "online"):
            found[case.name][f"{way}, peak bytes"] = peak_of_a_process(way, case, folder, quick)
    return {
        "name": "online" + (" (quick: small shapes)" if quick else ""),
        "ratios": {f"tokens/s, cache / online, {name}": part["ratio"] for name, part in found.items()},
        "figures": found,
        "machine": output.machine(),
        "versions": output.versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute: small shapes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the caches there, and use what is there")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        way, name = arguments.peak
        cases = {case.name: case for case in (QUICK_CASES if arguments.quick else CASES)}
        print(peak(way, cases[name], arguments.cache))
        return
    with tempfile.TemporaryDirectory() as temporary:
        found = measure((arguments.cache or Path(temporary)).resolve(), quick=arguments.quick)
    output.show(found, output.table_of(found), as_json=arguments.json)


if __name__ == "__main__":
    main()
