"""How fast models answer beside their reference: forward passes in turns, in one process.

Weights are random, of each model's shape: seconds do not depend on what a model knows.
"""

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from student_train.console import say
from student_train.measuring import interval, load_per_core, machine, timed, versions
from student_train.saved_model import local_path, read
from student_train.worth.records import Speed, Speeds
from teacher_cache.errors import UserError
from teacher_cache.targets.heads import num_positions

BATCHES = (1, 32)
LENGTHS = (128, 512)
MIN_ROUNDS, MAX_ROUNDS = 5, 40
SETTING_S = 20.0
"""Time after which no further round of a setting begins, but for `MIN_ROUNDS`."""
TURN_S = 0.05
"""A turn repeats the pass for about so long: one of a millisecond would find another model's weights in the caches."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured at a time."""

    device: torch.device
    dtype: torch.dtype
    batch_sequences: int
    sequence_length: int

    def __str__(self) -> str:
        return f"{self.device_name} {self.dtype_name}, {self.batch_sequences} × {self.sequence_length} tokens"

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def measure(paths: Mapping[str, str], *, dtypes: Sequence[str], threads: int | None) -> Speeds:
    """Of models by name, the first of which is the reference.

    Raises:
        UserError: a model's config.json cannot be read.
    """
    before = load_per_core()
    if threads:
        torch.set_num_threads(threads)
    configs = {name: read_config(name, path) for name, path in paths.items()}
    chosen = settings([getattr(torch, dtype) for dtype in dtypes], max_length=longest(configs))
    return Speeds(of_models=_by_model(configs, chosen), load_per_core=before, machine=machine(), versions=versions())


def read_config(name: str, path: str) -> PreTrainedConfig:
    try:
        with local_path(path) as folder:
            config: PreTrainedConfig = read(AutoConfig, "config.json", path, folder)
            return config
    except UserError as error:
        raise UserError(
            f"the speed of model {name!r} cannot be measured: {error}; bring it back, or leave speeds out by --no-speed"
        ) from None


def longest(configs: Mapping[str, PreTrainedConfig]) -> int:
    """Tokens of the longest sequence that all models take, as far as it matters."""
    limits = [num_positions(config.to_dict()) for config in configs.values()]
    return min([max(LENGTHS), *(limit for limit in limits if limit is not None)])


def settings(dtypes: Sequence[torch.dtype], *, max_length: int) -> list[Setting]:
    """On CPU and, where there is one, on a GPU; at lengths that no model is too short for, or the longest such."""
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    lengths = [length for length in LENGTHS if length <= max_length] or [max_length]
    return [
        Setting(device=device, dtype=dtype, batch_sequences=batch, sequence_length=length)
        for device in devices
        for dtype in dtypes
        for batch in BATCHES
        for length in lengths
    ]


def _by_model(configs: Mapping[str, PreTrainedConfig], chosen: Sequence[Setting]) -> dict[str, list[Speed]]:
    """Speeds in the order of the settings."""
    found: dict[str, list[Speed]] = {name: [] for name in configs}
    for (device, dtype), group in groupby(chosen, key=lambda setting: (setting.device, setting.dtype)):
        models = {name: build(config).to(device, dtype) for name, config in configs.items()}
        for setting in group:
            for name, speed in measure_setting(models, setting).items():
                found[name].append(speed)
    return found


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """A sequence classifier of a model's shape, in eval mode."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        config, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.eval()


@torch.inference_mode()
def measure_setting(models: Mapping[str, PreTrainedModel], setting: Setting) -> dict[str, Speed]:
    """Rounds in which each model has a turn, in an order drawn anew for each."""
    passes = {name: _Pass(model, setting) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    draw, begin, num_rounds = random.Random(0), time.perf_counter(), 0
    while num_rounds < MIN_ROUNDS or (num_rounds < MAX_ROUNDS and time.perf_counter() - begin < SETTING_S):
        for name in draw.sample(list(passes), len(passes)):
            times[name].append(passes[name].seconds())
        num_rounds += 1
    speeds = {name: _speed(times, name, setting) for name in models}
    told = ", ".join(f"{name} {1000 * speed.batch_s:,.1f} ms" for name, speed in speeds.items())
    say(f"{setting}: {told}; {num_rounds} rounds")
    return speeds


class _Pass:
    """A forward pass of a whole batch without padding, warmed up."""

    def __init__(self, model: PreTrainedModel, setting: Setting) -> None:
        shape = (setting.batch_sequences, setting.sequence_length)
        # None of the special ids: RoBERTa counts positions from where there is no padding.
        low, high = 5, model.config.vocab_size
        ids = torch.randint(low, high, shape, generator=torch.Generator().manual_seed(0)).to(setting.device)
        mask = torch.ones_like(ids)
        self._run = lambda: model(input_ids=ids, attention_mask=mask)
        timed(self._run)
        self._repeats = max(1, round(TURN_S / max(timed(self._run), 1e-6)))

    def seconds(self) -> float:
        """Of one pass, by a turn of several."""
        return timed(lambda: [self._run() for _ in range(self._repeats)]) / self._repeats


def _speed(times: Mapping[str, Sequence[float]], name: str, setting: Setting) -> Speed:
    reference = next(iter(times.values()))
    speedups = [theirs / ours for theirs, ours in zip(reference, times[name], strict=True)]
    low, high = interval(speedups)
    return Speed(
        device=setting.device_name,
        dtype=setting.dtype_name,
        batch_sequences=setting.batch_sequences,
        sequence_length=setting.sequence_length,
        num_rounds=len(speedups),
        batch_s=statistics.median(times[name]),
        speedup=statistics.median(speedups),
        speedup_low=low,
        speedup_high=high,
    )
