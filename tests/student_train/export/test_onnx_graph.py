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
def test_masked_lms_of_all_families(family, graph):
    made = graph("masked_lm", family)
    assert made.difference <= onnx_graph.TOLERANCE
    assert [item.name for item in made.path.parent.iterdir()] == ["model.onnx"]
    check_same(made.saved, str(made.path))
    opsets = {item.domain: item.version for item in onnx.load(made.path).opset_import}
    assert opsets == {"": onnx_graph.OPSET}


def test_padding_does_not_change_an_answer(graph):
    made = graph("masked_lm", "bert")
    answer, batch = onnx_graph.onnx_logits(made.path), padded_batch(made.saved)
    alone = answer({name: array[2:, :4] for name, array in batch.items()})
    assert np.allclose(alone[0], answer(batch)[2, :4], atol=1e-3)


@pytest.mark.parametrize("head", ["classification", "regression", "tagging", "question_answering"])
def test_heads_of_tasks(head, graph):
    made = graph(head, "distilbert")
    check_same(made.saved, str(made.path))
    batch = padded_batch(made.saved)
    expected = {"classification": (3, 3), "regression": (3, 1), "tagging": (3, 13, 3), "question_answering": (3, 13, 2)}
    for answer in (onnx_graph.torch_logits(made.saved), onnx_graph.onnx_logits(made.path)):
        assert answer(batch).shape == expected[head]


def test_the_longest_text_fits(graph):
    made = graph("masked_lm", "roberta")
    longest = onnx_graph.random_inputs(made.saved, (1, families.MAX_LENGTH))
    exact = onnx_graph.torch_logits(made.saved)(longest)
    assert np.allclose(onnx_graph.onnx_logits(made.path)(longest), exact, atol=1e-3)


def test_shared_layers_are_written_once_and_nothing_of_this_machine(tmp_path):
    saved = heads.make(tmp_path / "model", "classification", "albert", num_hidden_layers=6, intermediate_size=2048)
    onnx_graph.write_onnx(saved, tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx").read_bytes()
    assert len(data) < 1.3 * 4 * saved.num_parameters
    assert b"site-packages" not in data


def test_a_graph_that_is_not_true_is_not_left(tmp_path):
    saved = heads.make(tmp_path / "model", "classification")
    with torch.no_grad():
        saved.model.classifier.bias[0] = float("nan")
    with pytest.raises(
        UserError, match=r"is no true one: of 1 texts of 1 tokens logits differ by nan .* 0\.0001 is allo"
    ):
        onnx_graph.write_onnx(saved, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_random_inputs_are_padded_at_their_ends(tmp_path):
    saved = heads.make(tmp_path / "model", family="roberta")
    inputs = onnx_graph.random_inputs(saved, (3, 12))
    lengths = inputs["attention_mask"].sum(axis=1)
    assert list(lengths) == [12, 10, 8]
    assert (np.diff(inputs["attention_mask"], axis=1) <= 0).all()
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == saved.tokenizer.pad_token_id).all()
