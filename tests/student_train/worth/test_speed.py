"""Speeds of real models, so far apart that no other work on the machine turns them round."""

import torch
from transformers import PreTrainedConfig

from student_train.worth import speed
from student_train.worth.speed import longest, measure, settings
from tests import families


def test_a_small_model_is_faster_than_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "MAX_ROUNDS", speed.MIN_ROUNDS)
    layers = {"large": 12, "small": 1}
    paths = {name: str(families.save_pretrained(tmp_path / name, num_hidden_layers=n)) for name, n in layers.items()}
    found = measure(paths, dtypes=("float32",), threads=1)
    assert found.load_per_core >= 0
    assert found.machine["threads"] == 1
    for large, small in zip(found.of_models["large"], found.of_models["small"], strict=True):
        assert (large.speedup, large.speedup_low, large.speedup_high) == (1, 1, 1)
        assert 0 < small.batch_s < large.batch_s
        assert small.speedup_low <= small.speedup <= small.speedup_high
        assert small.speedup > 1.5, "12 layers beside one"
        assert small.num_rounds == speed.MIN_ROUNDS


def test_lengths_are_those_that_all_models_take():
    lengths = {setting.sequence_length for setting in settings([torch.float32], max_length=512)}
    assert lengths == {128, 512}
    assert {setting.sequence_length for setting in settings([torch.float32], max_length=300)} == {128}
    assert {setting.sequence_length for setting in settings([torch.float32], max_length=64)} == {64}
    assert longest({"any length": PreTrainedConfig()}) == 512
    dtypes = [setting.dtype_name for setting in settings([torch.float32, torch.bfloat16], max_length=64)]
    assert dtypes[:4] == ["float32", "float32", "bfloat16", "bfloat16"]
