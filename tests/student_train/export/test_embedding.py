"""sentence-transformers loads what is exported for it, and its embeddings are the mean over tokens."""

import numpy as np
import pytest
import torch

from student_train.cli import main
from tests import families
from tests.student_train.export import heads

TEXTS = ["the old man saw a small bird", "snow"]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_sentence_transformers_loads_the_folder(family, tmp_path, capsys):
    from sentence_transformers import SentenceTransformer

    model = heads.make(tmp_path / "model", family=family)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--sentence-embedding"]) == 0
    encoder = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert encoder.max_seq_length == families.MAX_LENGTH
    found = encoder.encode(TEXTS)
    inputs = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model.model.base_model(**{name: inputs[name] for name in model.input_names}).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    assert found.shape == (2, 32)
    assert np.allclose(found, ((hidden * mask).sum(dim=1) / mask.sum(dim=1)).numpy(), atol=1e-5)
