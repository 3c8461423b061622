"""An ONNX graph with int8 weights, and what that costs in truth.

Dynamic quantisation: weights are rounded beforehand, a scale a column; activations as they come, a scale a tensor.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from student_train.export.onnx_graph import Inputs, Logits, quiet
from student_train.saved_model import SavedModel

MASK_STRIDE = 7
"""Of a masked LM's sample text each so-manieth token is masked, beginning in turn with each of the first so many."""
SAMPLE = (
    "The old bridge was closed for the winter, and the farmers had to drive around the lake to reach the market.",
    "She read the letter twice before she put it back into the drawer and locked the door behind her.",
    "In 1887 the company opened its first factory near the railway station and employed four hundred workers.",
    "The committee will meet on Thursday to decide whether the school should be built on the northern side of town.",
    "Water expands when it freezes, which is why pipes that are not emptied in autumn often burst in January.",
    "He plays the violin better than anyone I have ever heard, but he has never given a concert.",
    "Although the film was far too long, the last twenty minutes were worth the price of the ticket.",
    "The island has two harbours, a small airport and about nine thousand inhabitants, most of whom live by fishing.",
    "Nobody knew who had painted the portrait until a signature was found under the frame.",
    "If you boil the potatoes with their skins on, they keep more of their taste and do not fall apart.",
    "The river rises in the mountains, crosses three countries and flows into the Black Sea.",
    "After the war the palace was used as a hospital, later as a museum, and today it belongs to the university.",
)
"""English text to compare answers on."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near int8 is to float32 on `SAMPLE`."""

    num_answers: int
    """Masked tokens, a tagger's tokens, a classifier's or a regression's texts, starts and ends of answers."""
    top_1: float | None
    """Share of answers with the same largest logit; None of a regression."""
    divergence: float | None
    """Mean, over answers, of KL(float32 || int8) in nats; None of a regression."""
    difference: float
    """Mean distance of a logit from float32's."""


def write_int8(source: Path, target: Path) -> None:
    """Quantises the matrix products and embeddings of an ONNX file.

    Weights take 7 of the 8 bits: sums of products of 8 bits overflow on x86 processors without VNNI, and a file
    should answer alike everywhere (ONNX Runtime's documentation of `reduce_range`).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared)
        del graph.graph.value_info[:]  # the quantiser turns weights over, and then takes these for true
        quantize_dynamic(graph, target, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)


def agreement(saved: SavedModel, exact: Logits, other: Logits) -> Agreement:
    """Compares answers to `SAMPLE`; a masked LM's where a token is masked."""
    inputs = [batch for text in SAMPLE for batch in _sample_inputs(saved, text)]
    rows = ([row for batch in inputs for row in _rows(saved, batch, answer(batch))] for answer in (exact, other))
    return compare(*rows)


def compare(exact: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> Agreement:
    """Rows of logits, one an answer, as both give them."""
    pairs = list(zip(exact, other, strict=True))
    ranks = len(exact[0]) > 1
    return Agreement(
        num_answers=len(pairs),
        top_1=float(np.mean([ours.argmax() == theirs.argmax() for ours, theirs in pairs])) if ranks else None,
        divergence=float(np.mean([_divergence(ours, theirs) for ours, theirs in pairs])) if ranks else None,
        difference=float(np.mean([np.abs(ours - theirs).mean() for ours, theirs in pairs])),
    )


def _divergence(exact: np.ndarray, other: np.ndarray) -> float:
    log_p, log_q = (torch.from_numpy(row).double().log_softmax(dim=-1) for row in (exact, other))
    return float(log_p.exp() @ (log_p - log_q))


def _sample_inputs(saved: SavedModel, text: str) -> list[dict[str, np.ndarray]]:
    encoded = saved.tokenizer([text], truncation=True, max_length=saved.max_length, return_tensors="np")
    inputs = {name: np.asarray(encoded[name], dtype=np.int64) for name in saved.input_names}
    if saved.head != "masked_lm":
        return [inputs]
    return [inputs | {"input_ids": _masked(inputs["input_ids"], first, saved)} for first in range(1, MASK_STRIDE + 1)]


def _masked(input_ids: np.ndarray, first: int, saved: SavedModel) -> np.ndarray:
    masked = input_ids.copy()
    masked[:, first:-1:MASK_STRIDE] = saved.tokenizer.mask_token_id
    return masked


def _rows(saved: SavedModel, inputs: Inputs, logits: np.ndarray) -> np.ndarray:
    """Of one text: [1, S, C] → [answers, C], [1, C] as it is; starts and ends [1, S, 2] → [2, S]."""
    match saved.head:
        case "masked_lm":
            return logits[inputs["input_ids"] == saved.tokenizer.mask_token_id]
        case "tagging":
            return logits[0, 1:-1]  # [CLS] and [SEP] have no tag
        case "question_answering":
            return logits[0].T
        case _:
            return logits
