"""A model as an ONNX graph that gives the same logits, by `torch.onnx.export`; any number of texts of any length that
the model takes.

Inputs are those of the model (`input_ids`, `attention_mask`, `token_type_ids` where it has segments), int64 [B, S];
outputs are float32: `logits` [B, S, V] of a masked LM, [B, C] of a classifier, [B, S, C] of a tagger, and
`start_logits` and `end_logits` [B, S] of a model that answers questions.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from student_train.finetune.soft_loss import task_logits
from student_train.saved_model import SavedModel
from teacher_cache.errors import UserError

OPSET = 18
"""The oldest that torch's exporter writes by itself."""
TOLERANCE = 1e-4
"""By how much a logit may differ from PyTorch's, as a share of the batch's largest or of 1, whichever is more."""
CHECKED_LENGTHS = (1, 4, 33, 128)
"""Tokens, of as many texts as the place says; beside these, one text of all that the model takes."""

Inputs = Mapping[str, np.ndarray]
Logits = Callable[[Inputs], np.ndarray]
"""A batch of inputs [B, S] → logits; those of starts and ends as [B, S, 2]."""


def write_onnx(saved: SavedModel, path: Path) -> float:
    """Writes one file and compares it with the model; the largest difference found, as `TOLERANCE` counts it.

    Raises:
        UserError: the graph's logits are not the model's; no file is left.
    """
    with quiet():
        _export(saved, path)
    try:
        return _check(saved, path)
    except UserError:
        path.unlink()
        raise


def _export(saved: SavedModel, path: Path) -> None:
    import onnx_ir
    from onnx_ir.passes import common

    sample = {name: torch.from_numpy(array) for name, array in random_inputs(saved, (2, 8)).items()}
    torch.onnx.export(
        saved.model,
        f=path,
        kwargs=sample,
        output_names=["start_logits", "end_logits"] if saved.head == "question_answering" else ["logits"],
        dynamic_shapes={name: {0: "batch", 1: "length"} for name in sample},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    graph = onnx_ir.load(path)
    common.ClearMetadataAndDocStringPass()(graph)  # paths of this machine above all
    common.DeduplicateHashedInitializersPass()(graph)  # ALBERT's shared layers come as copies
    onnx_ir.save(graph, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporter and quantiser warn of what is not installed, and of nodes that they leave as they are."""
    loggers = [logging.getLogger(), logging.getLogger("torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check(saved: SavedModel, path: Path) -> float:
    expected, found = torch_logits(saved), onnx_logits(path)
    worst = 0.0
    longest = saved.max_length
    for num_texts, length in [*enumerate((min(each, longest) for each in CHECKED_LENGTHS), start=1), (1, longest)]:
        inputs = random_inputs(saved, (num_texts, length))
        exact = expected(inputs)
        difference = np.abs(found(inputs) - exact).max() / max(1.0, np.abs(exact).max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"the ONNX graph of {saved.place} is no true one: of {num_texts} texts of {length} tokens logits differ"
                f" by {difference:.2g} of the largest, and {TOLERANCE:g} is allowed; it was not written"
            )
        worst = max(worst, float(difference))
    return worst


def random_inputs(saved: SavedModel, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Random tokens [B, S]; from the second on each text is shorter than the one before, and padded at its end."""
    config, draw = saved.model.config, np.random.default_rng(0)
    num_texts, length = shape
    lengths = np.maximum(1, length - np.arange(num_texts) * length // (2 * num_texts))
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = draw.integers(0, config.vocab_size, shape)
    segments = (np.arange(length) >= length // 2) * (getattr(config, "type_vocab_size", 1) > 1) * mask
    arrays = {
        "input_ids": np.where(mask == 1, ids, config.pad_token_id),
        "attention_mask": mask,
        "token_type_ids": segments.astype(np.int64),
    }
    return {name: arrays[name] for name in saved.input_names}


def torch_logits(saved: SavedModel) -> Logits:
    """The model itself."""

    @torch.inference_mode()
    def answer(inputs: Inputs) -> np.ndarray:
        tensors = {name: torch.from_numpy(inputs[name]) for name in saved.input_names}
        logits: np.ndarray = task_logits(saved.model(**tensors)).numpy()
        return logits

    return answer


def onnx_logits(path: Path) -> Logits:
    """A file, run by ONNX Runtime on the CPU with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # of errors alone
    # Idle threads that spin for their next work would take the cores of what is timed beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def answer(inputs: Inputs) -> np.ndarray:
        outputs: list[Any] = session.run(None, {name: inputs[name] for name in names})
        return np.stack(outputs, axis=-1) if len(outputs) == 2 else np.asarray(outputs[0])

    return answer
