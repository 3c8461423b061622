"""int8 files are smaller and nearly true, and what they lose is measured."""

import numpy as np
import onnx
import pytest

from student_train.export import int8, onnx_graph
from tests import families
from tests.student_train.export import heads


def test_agreement_is_counted_by_answer():
    exact = [np.array([3.0, 1.0, 0.0]), np.array([0.0, 2.0])]
    assert int8.compare(exact, exact) == int8.Agreement(num_answers=2, top_1=1.0, divergence=0.0, difference=0.0)
    p, q = (np.exp(logits) / np.exp(logits).sum() for logits in (exact[0], np.array([1.0, 3.0, 0.0])))
    other = [np.array([2.0, 4.0, 1.0]), np.array([5.0, 7.0])]  # a constant more: the same classes
    found = int8.compare(exact, other)
    assert (found.top_1, found.divergence) == (0.5, pytest.approx(float(p @ np.log(p / q)) / 2))
    assert found.difference == pytest.approx((5 / 3 + 5) / 2)


def test_of_a_regression_the_difference_alone_is_known():
    found = int8.compare([np.array([3.0]), np.array([1.0])], [np.array([2.5]), np.array([1.0])])
    assert found == int8.Agreement(num_answers=2, top_1=None, divergence=None, difference=0.25)


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
    assert 0 < found.divergence < 0.3, "of random models"


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
    assert found.num_answers == (num_rows * len(lengths) if num_rows else sum(lengths) - 2 * len(lengths))
    assert (found.top_1, found.divergence) == (1, pytest.approx(0))


def test_a_masked_lm_is_asked_about_masked_tokens(tmp_path):
    saved = heads.make(tmp_path / "model")
    batches = [batch["input_ids"][0] for batch in int8._sample_inputs(saved, int8.SAMPLE[0])]
    num_masked = sum(batch == saved.tokenizer.mask_token_id for batch in batches)
    assert num_masked.tolist() == [0, *[1] * (len(batches[0]) - 2), 0]  # each once, and no special one
    answer = onnx_graph.torch_logits(saved)
    assert int8.agreement(saved, answer, answer).num_answers == sum(
        len(saved.tokenizer(text)["input_ids"]) - 2 for text in int8.SAMPLE
    )
