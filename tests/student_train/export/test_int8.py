"""int8 files are smaller and nearly true, and what they lose is measured."""

import numpy as np
import onnx
import pytest

from student_train.export import int8, onnx_graph
from tests import families
from tests.student_train.export import heads


def test_agreement_is_counted_by_answer():
    exact = [np.array([3.0, 1.0, 0.0]), np.array([0.0, 2.0])]
    assert int8.compare(exact, exact) == int8.Agreement(num_answers=2, top_1=1.0, cosine=pytest.approx(1.0))
    other = [np.array([1.0, 3.0, 0.0]), np.array([0.0, 2.0])]
    assert int8.compare(exact, other) == int8.Agreement(num_answers=2, top_1=0.5, cosine=pytest.approx((0.6 + 1) / 2))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_int8_files_are_smaller_and_nearly_true(family, graph, tmp_path):
    made = graph("masked_lm", family)
    int8.write_int8(made.path, tmp_path / "int8.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert kinds.count("MatMulInteger") >= 6 * 2
    assert (tmp_path / "int8.onnx").stat().st_size < 0.7 * made.path.stat().st_size
    answers = (onnx_graph.onnx_logits(path) for path in (made.path, tmp_path / "int8.onnx"))
    found = int8.agreement(made.saved, *answers)
    assert found.num_answers > 200
    assert 0.9 < found.cosine < 1


@pytest.mark.parametrize("head", ["classification", "regression", "tagging", "question_answering"])
def test_int8_files_of_heads_of_tasks(head, graph, tmp_path):
    made = graph(head, "distilbert")
    int8.write_int8(made.path, tmp_path / "int8.onnx")
    inputs = onnx_graph.random_inputs(made.saved, (3, 12))
    exact, found = (onnx_graph.onnx_logits(path)(inputs) for path in (made.path, tmp_path / "int8.onnx"))
    assert exact.shape == found.shape
    assert 0 < np.abs(found - exact).max() < 0.5 * np.abs(exact).max()


@pytest.mark.parametrize(("head", "num_rows"), [("classification", 1), ("tagging", None), ("question_answering", 2)])
def test_answers_by_head(head, num_rows, tmp_path):
    saved = heads.make(tmp_path / "model", head)
    answer = onnx_graph.torch_logits(saved)
    found = int8.agreement(saved, answer, answer)
    lengths = [len(saved.tokenizer(text)["input_ids"]) for text in int8.SAMPLE]
    assert found.num_answers == (num_rows * len(lengths) if num_rows else sum(lengths))
    assert (found.top_1, found.cosine) == (1, pytest.approx(1))


def test_a_masked_lm_is_asked_about_masked_tokens(tmp_path):
    saved = heads.make(tmp_path / "model")
    inputs = int8._sample_inputs(saved, int8.SAMPLE[0])["input_ids"][0]
    assert (inputs == saved.tokenizer.mask_token_id).sum() == (len(inputs) - 2) // int8.MASK_STRIDE
    assert (inputs[0], inputs[-1]) == (saved.tokenizer.cls_token_id, saved.tokenizer.sep_token_id)
