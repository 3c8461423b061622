"""ONNX graphs answer as the models do, whatever the family, the head, the number of texts and their lengths."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from student_train.export import onnx_graph
from student_train.saved_model import SavedModel
from teacher_cache.errors import UserError
from tests import families
from tests.student_train.export import heads


def padded_batch(saved: SavedModel) -> dict[str, np.ndarray]:
    """Three texts of 11, 5 and 2 words, as the tokenizer makes them."""
    texts = [" ".join(families.WORDS[start : start + count]) for start, count in ((0, 11), (20, 5), (40, 2))]
    batch = saved.tokenizer(texts, padding=True, return_tensors="np")
    return {name: batch[name].astype(np.int64) for name in saved.input_names}


def check_same(saved: SavedModel, path: str) -> None:
    """Against transformers and ONNX Runtime themselves."""
    batch = padded_batch(saved)
    with torch.inference_mode():
        output = saved.model(**{name: torch.from_numpy(array) for name, array in batch.items()})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == list(saved.input_names)
    names = [item.name for item in session.get_outputs()]
    for name, found in zip(names, session.run(None, batch), strict=True):
        expected = output[name].numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("family", families.FAMILIES)
def test_masked_lms_of_all_families(family, tmp_path):
    saved = heads.make(tmp_path / "model", family=family)
    path = tmp_path / "model.onnx"
    assert onnx_graph.write_onnx(saved, path) <= onnx_graph.TOLERANCE
    assert [item.name for item in tmp_path.iterdir() if item.is_file()] == ["model.onnx"]
    check_same(saved, str(path))
    graph = onnx.load(path)
    assert {item.domain: item.version for item in graph.opset_import}[""] == onnx_graph.OPSET
    alone = {name: array[2:, :4] for name, array in padded_batch(saved).items()}
    together = onnx_graph.onnx_logits(path)(padded_batch(saved))
    assert np.allclose(onnx_graph.onnx_logits(path)(alone)[0], together[2, :4], atol=1e-3)


@pytest.mark.parametrize("head", ["classification", "regression", "tagging", "question_answering"])
def test_heads_of_tasks(head, tmp_path):
    saved = heads.make(tmp_path / "model", head)
    onnx_graph.write_onnx(saved, tmp_path / "model.onnx")
    check_same(saved, str(tmp_path / "model.onnx"))
    batch = padded_batch(saved)
    expected = {"classification": (3, 3), "regression": (3, 1), "tagging": (3, 13, 3), "question_answering": (3, 13, 2)}
    for answer in (onnx_graph.torch_logits(saved), onnx_graph.onnx_logits(tmp_path / "model.onnx")):
        assert answer(batch).shape == expected[head]


def test_the_longest_text_fits_and_a_longer_one_does_not(tmp_path):
    saved = heads.make(tmp_path / "model", "classification", "roberta")
    onnx_graph.write_onnx(saved, tmp_path / "model.onnx")
    answer = onnx_graph.onnx_logits(tmp_path / "model.onnx")
    longest = onnx_graph.random_inputs(saved, (1, saved.max_length))
    assert saved.max_length == families.MAX_LENGTH
    assert np.allclose(answer(longest), onnx_graph.torch_logits(saved)(longest), atol=1e-3)


def test_shared_layers_are_written_once_and_nothing_of_this_machine(tmp_path):
    saved = heads.make(tmp_path / "model", "classification", "albert", num_hidden_layers=6, intermediate_size=2048)
    onnx_graph.write_onnx(saved, tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    assert len(data) < 1.3 * 4 * saved.num_parameters
    assert b"site-packages" not in data


def test_a_graph_that_answers_otherwise_is_not_left(tmp_path, monkeypatch):
    saved = heads.make(tmp_path / "model", "classification")
    true = onnx_graph.onnx_logits
    monkeypatch.setattr(onnx_graph, "onnx_logits", lambda path: lambda inputs: true(path)(inputs) + 1)
    with pytest.raises(UserError, match=r"is no true one: of 1 texts of 1 tokens logits differ by .* 0\.0001 is allow"):
        onnx_graph.write_onnx(saved, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_logits_that_are_no_numbers_are_refused(tmp_path):
    saved = heads.make(tmp_path / "model", "classification")
    with torch.no_grad():
        saved.model.classifier.bias[0] = float("nan")
    with pytest.raises(UserError, match="is no true one"):
        onnx_graph.write_onnx(saved, tmp_path / "model.onnx")


def test_random_inputs_are_padded_at_their_ends(tmp_path):
    saved = heads.make(tmp_path / "model", family="roberta")
    inputs = onnx_graph.random_inputs(saved, (3, 12))
    lengths = inputs["attention_mask"].sum(axis=1)
    assert list(lengths) == [12, 10, 8]
    assert (np.diff(inputs["attention_mask"], axis=1) <= 0).all()
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == saved.tokenizer.pad_token_id).all()
