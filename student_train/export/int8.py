"""An ONNX graph with int8 weights, and what that costs in truth.

Dynamic quantisation: weights are rounded beforehand, a scale a column; activations as they come, a scale a tensor.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from student_train.export.onnx_graph import Logits, quiet
from student_train.saved_model import SavedModel

MASK_STRIDE = 7
"""Of a masked LM's sample text each so-manieth token is masked."""
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
    """Tokens of a masked LM or a tagger, texts of a classifier, starts and ends of a model that answers questions."""
    top_1: float
    """Share of answers with the same largest logit."""
    cosine: float
    """Mean, over answers, of the cosine between both rows of logits."""


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
    """Compares answers to `SAMPLE`; a masked LM's with tokens masked."""
    inputs = [_sample_inputs(saved, text) for text in SAMPLE]
    return compare(*([row for batch in inputs for row in _rows(saved, answer(batch))] for answer in (exact, other)))


def compare(exact: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> Agreement:
    """Rows of logits, one an answer, as both give them."""
    pairs = list(zip(exact, other, strict=True))
    return Agreement(
        num_answers=len(pairs),
        top_1=float(np.mean([ours.argmax() == theirs.argmax() for ours, theirs in pairs])),
        cosine=float(np.mean([_cosine(ours, theirs) for ours, theirs in pairs])),
    )


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs)))


def _sample_inputs(saved: SavedModel, text: str) -> dict[str, np.ndarray]:
    encoded = saved.tokenizer([text], truncation=True, max_length=saved.max_length, return_tensors="np")
    inputs = {name: np.asarray(encoded[name], dtype=np.int64) for name in saved.input_names}
    if saved.head == "masked_lm":
        inputs["input_ids"][:, MASK_STRIDE:-1:MASK_STRIDE] = saved.tokenizer.mask_token_id
    return inputs


def _rows(saved: SavedModel, logits: np.ndarray) -> np.ndarray:
    """Of one text: [1, S, C] → [S, C], [1, C] as it is; starts and ends [1, S, 2] → [2, S]."""
    rows = logits[0] if logits.ndim == 3 else logits
    return rows.T if saved.head == "question_answering" else rows
