"""Speeds of real models, so far apart that no other work on the machine turns them round."""

import torch
from transformers import AutoConfig

from student_train.worth.speed import measure, num_positions, settings
from tests import families


def test_a_small_model_is_faster_than_a_large_one(tmp_path):
    large = families.save_pretrained(tmp_path / "large", n_layers=12, num_hidden_layers=12)
    small = families.save_pretrained(tmp_path / "small", "distilbert", n_layers=1)
    found = measure({"large": str(large), "small": str(small)}, dtypes=("float32",), threads=1)
    assert found.load_per_core >= 0
    assert found.machine["threads"] == 1
    for reference, speed in zip(found.of_models["large"], found.of_models["small"], strict=True):
        assert (reference.speedup, reference.speedup_low, reference.speedup_high) == (1, 1, 1)
        assert 0 < speed.batch_s < reference.batch_s
        assert speed.speedup_low <= speed.speedup <= speed.speedup_high
        assert speed.speedup > 2, "12 layers beside one"
        assert speed.num_rounds >= 5


def test_lengths_are_those_that_all_models_take():
    lengths = {setting.sequence_length for setting in settings([torch.float32], max_length=512)}
    assert lengths == {128, 512}
    assert {setting.sequence_length for setting in settings([torch.float32], max_length=300)} == {128}
    assert {setting.sequence_length for setting in settings([torch.float32], max_length=64)} == {64}
    dtypes = [setting.dtype_name for setting in settings([torch.float32, torch.bfloat16], max_length=64)]
    assert dtypes[:4] == ["float32", "float32", "bfloat16", "bfloat16"]


def test_roberta_loses_the_positions_up_to_its_padding(tmp_path):
    for family in families.FAMILIES:
        folder = families.save_pretrained(tmp_path / family, family)
        assert num_positions(AutoConfig.from_pretrained(folder)) == families.MAX_LENGTH
