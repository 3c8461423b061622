"""The loss in chunks against the dense loss: time, peak memory, and how far their gradients differ.

    python -m infra.bench.loss [--quick] [--json]

The dense loss is the usual code: all logits of the student and all rows of the teacher at once, autograd for the rest.
Both get the same hidden states, all of them kept and 15 % labelled, and each runs in a process of its own, so that its
peak is its own. BERT-base's shapes: d = 768, V = 30,522.

Legend: K positions, V vocabulary, d hidden size.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from infra.bench import output, training
from student_train import measuring
from student_train.batch import MicroBatch
from student_train.config import LossConfig
from student_train.loop import peak_bytes
from student_train.losses import TripleLoss, step_denominators
from teacher_cache.shell.settings import parse
from teacher_cache.targets.heads import OutputHead, head_logits
from teacher_cache.targets.soft_labels import bucket_log_probabilities, keep_top, replay_log_probabilities

WAYS = ("replay", "bucket")
TOP_K, TEMPERATURE = 8, 2.0
LABELLED_SHARE = 0.15


@dataclass(frozen=True)
class Sizes:
    num_positions: int
    vocab_size: int
    hidden_size: int
    rounds: int


FULL = Sizes(num_positions=8192, vocab_size=30_522, hidden_size=768, rounds=3)
QUICK = Sizes(num_positions=1024, vocab_size=8192, hidden_size=128, rounds=2)


@dataclass(frozen=True)
class Setting:
    """What both losses get."""

    hidden: torch.Tensor
    """The student's, `[K, d]`."""
    student: OutputHead
    teacher: OutputHead
    batch: MicroBatch
    loss: LossConfig

    def parameters(self) -> list[torch.Tensor]:
        return [self.hidden, *(value for value in vars(self.student).values() if isinstance(value, torch.Tensor))]


def make_head(sizes: Sizes, device: torch.device, *, learns: bool) -> OutputHead:
    def tensor(*shape: int) -> torch.Tensor:
        return (0.05 * torch.randn(shape, device=device)).requires_grad_(learns)

    d, v = sizes.hidden_size, sizes.vocab_size
    return OutputHead(tensor(d, d), tensor(d), tensor(d) + 1, tensor(d), tensor(v, d), tensor(v), 1e-12, "gelu")


def make_setting(sizes: Sizes, way: str, device: torch.device) -> Setting:
    torch.manual_seed(0)
    num_labels = int(LABELLED_SHARE * sizes.num_positions)
    states = torch.randn(2, sizes.num_positions, sizes.hidden_size, device=device)
    teacher = make_head(sizes, device, learns=False)
    with torch.no_grad():
        parts = [
            keep_top(head_logits(teacher, part), top_k=TOP_K, temperatures=(1.0, TEMPERATURE))
            for part in states[0].split(512)
        ]
    batch = MicroBatch(
        input_ids=torch.zeros(1, sizes.num_positions, dtype=torch.int64, device=device),
        attention_mask=torch.ones(1, sizes.num_positions, dtype=torch.int64, device=device),
        places=torch.arange(sizes.num_positions, device=device),
        label_ids=torch.randint(sizes.vocab_size, (num_labels,), device=device),
        weights=torch.ones(sizes.num_positions, device=device),
        soft_labels=type(parts[0]).concatenate(parts),
        hidden=states[0],
    )
    student = make_head(sizes, device, learns=True)
    for value in vars(student).values():
        if isinstance(value, torch.Tensor):
            value.retain_grad()
    loss = parse(LossConfig, {"soft_labels": way, "temperature": TEMPERATURE})
    return Setting(states[1].requires_grad_(), student, teacher, batch, loss)


def chunked(setting: Setting) -> None:
    loss = TripleLoss(setting.loss, setting.teacher, None)
    batch = setting.batch
    loss.backward(
        setting.hidden * 1, setting.student, batch, step_denominators(len(batch.places), len(batch.label_ids), 1.0)
    )


def dense(setting: Setting) -> None:
    batch, weights = setting.batch, setting.loss.weights
    logits = head_logits(setting.student, setting.hidden)
    scaled = (logits / TEMPERATURE).log_softmax(dim=-1)
    if setting.loss.soft_labels == "replay":
        assert batch.hidden is not None
        with torch.no_grad():
            teacher = replay_log_probabilities(batch.hidden, setting.teacher, batch.soft_labels, TEMPERATURE)
    else:
        teacher = bucket_log_probabilities(batch.soft_labels, TEMPERATURE)
        ids = batch.soft_labels.topk_ids
        rest = scaled.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
        scaled = torch.cat([scaled.gather(-1, ids), rest], dim=-1)
    soft = F.kl_div(scaled, teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2
    masked_lm = F.cross_entropy(logits[-len(batch.label_ids) :], batch.label_ids)
    cosine = (1 - F.cosine_similarity(setting.hidden, batch.hidden, dim=-1)).mean()
    (weights.soft_labels * soft + weights.masked_lm * masked_lm + weights.cosine * cosine).backward()


LOSSES: dict[str, Callable[[Setting], None]] = {"chunks": chunked, "dense": dense}


def measure_one(name: str, way: str, sizes: Sizes) -> dict[str, float]:
    """Seconds of a pass and bytes above what was held before, in this process."""
    device = training.device()
    setting = make_setting(sizes, way, device)
    for parameter in setting.parameters():
        parameter.grad = torch.zeros_like(parameter)  # not the losses' memory
    training.forget_peak()
    before = peak_bytes(device)
    times = [measuring.timed(lambda: LOSSES[name](setting)) for _ in range(sizes.rounds + 1)]
    return {"seconds": sorted(times[1:])[sizes.rounds // 2], "bytes": peak_bytes(device) - before}


def gradient_error(way: str, sizes: Sizes) -> float:
    """Largest relative difference of a gradient between the two."""
    device = training.device()
    gradients = []
    for run in LOSSES.values():
        setting = make_setting(sizes, way, device)
        run(setting)
        gradients.append([parameter.grad for parameter in setting.parameters()])
    pairs = [(one, other) for one, other in zip(*gradients, strict=True) if one is not None and other is not None]
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


def in_a_process(name: str, way: str, quick: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "infra.bench.loss", "--only", name, way, *(["--quick"] if quick else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    output.say(f"{way}, {name}: {found['seconds']:.2f} s, {found['bytes'] / 2**20:,.0f} MiB")
    return found


def measure(quick: bool) -> dict[str, Any]:
    sizes = QUICK if quick else FULL
    figures: dict[str, Any] = {"positions": sizes.num_positions, "vocabulary": sizes.vocab_size}
    ratios = {}
    for way in WAYS:
        found = {name: in_a_process(name, way, quick) for name in LOSSES}
        figures |= {f"{way}, {name}: {key}": value for name, part in found.items() for key, value in part.items()}
        ratios[f"{way}: speed, chunks / dense"] = found["dense"]["seconds"] / found["chunks"]["seconds"]
        ratios[f"{way}: memory, chunks / dense"] = found["chunks"]["bytes"] / found["dense"]["bytes"]
        figures[f"{way}: gradient error"] = gradient_error(way, QUICK)
    return {
        "name": "loss" + (" (quick: small shapes)" if quick else ""),
        "ratios": ratios,
        "figures": figures,
        "machine": output.machine(),
        "versions": output.versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds: small shapes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", nargs=2, metavar=("LOSS", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure_one(*arguments.only, sizes=QUICK if arguments.quick else FULL)))
        return
    found = measure(arguments.quick)
    output.show(found, output.table_of(found), as_json=arguments.json)


if __name__ == "__main__":
    main()
