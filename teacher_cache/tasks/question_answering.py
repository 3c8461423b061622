"""Extractive question answering: windows over the context, the tokens of an answer, and the best span.

N windows, S tokens.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from teacher_cache.errors import UserError
from teacher_cache.tasks.answers import best, exact_match, f1
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.record import Task

if TYPE_CHECKING:
    from datasets import Dataset

METRICS = ("f1", "exact_match")
MAX_ANSWER_TOKENS = 30
"""Of a predicted answer, as usual since BERT's own code."""
BATCH_QUESTIONS = 1000
NO_ANSWER = 0
"""The token, [CLS], that start and end point to where a window holds no answer (arXiv 1810.04805, section 4.3)."""
OUTSIDE = -1
"""Offset of tokens that are not of the context."""


def encode(batch: dict[str, list[Any]], tokenizer: Any, config: TaskConfig) -> dict[str, list[Any]]:
    """Windows of question and context: a long context is cut into several, `config.stride` tokens of which overlap.

    `starts` and `ends` are the characters of the context that a token stands for, OUTSIDE of other tokens.

    Raises:
        UserError: a question leaves too little room for its context.
    """
    _check_questions(batch, tokenizer, config)
    encoded = tokenizer(
        batch["question"],
        batch["context"],
        truncation="only_second",
        max_length=config.max_length,
        stride=config.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    examples = encoded.pop("overflow_to_sample_mapping")
    offsets = [_context_offsets(encoded, row) for row in range(len(examples))]
    del encoded["offset_mapping"]
    spans = []
    for example, (starts, ends) in zip(examples, offsets, strict=True):
        answers, answer_starts = batch["answers"][example], batch["answer_starts"][example]
        spans.append(
            answer_tokens(starts, ends, answer_starts[0], answer_starts[0] + len(answers[0]))
            if answers
            else (NO_ANSWER, NO_ANSWER)
        )
    return dict(encoded) | {
        "example": examples,
        "start_positions": [first for first, _ in spans],
        "end_positions": [last for _, last in spans],
        "starts": [starts for starts, _ in offsets],
        "ends": [ends for _, ends in offsets],
    }


def answer_tokens(
    starts: NDArray[np.int32], ends: NDArray[np.int32], answer_start: int, answer_end: int
) -> tuple[int, int]:
    """The first and the last token of an answer; NO_ANSWER where the window does not hold all of it.

    Args:
        starts, ends: [S] characters of the context.
        answer_start, answer_end: characters of the context, the end exclusive.
    """
    touching = np.flatnonzero((starts < answer_end) & (ends > answer_start))
    context = np.flatnonzero(ends != OUTSIDE)
    if not len(touching) or starts[context[0]] > answer_start or ends[context[-1]] < answer_end:
        return NO_ANSWER, NO_ANSWER
    return int(touching[0]), int(touching[-1])


def best_span(logits: NDArray[Any], in_context: NDArray[np.bool_]) -> tuple[float, int, int]:
    """The sum of start and end logits, the first and the last token of the best span of the context; of all spans of at
    most MAX_ANSWER_TOKENS, not only of the best starts and ends.

    Args:
        logits: [S, 2] of start and end.
        in_context: [S] tokens that may begin or end an answer.
    """
    start, end = np.where(in_context[:, None], logits, -np.inf).T
    padded = np.concatenate([end, np.full(MAX_ANSWER_TOKENS - 1, -np.inf)])
    sums = start[:, None] + sliding_window_view(padded, MAX_ANSWER_TOKENS)  # [first token, further tokens]
    first, further = divmod(int(sums.argmax()), MAX_ANSWER_TOKENS)
    return float(sums[first, further]), first, first + further


def predict(task: Task, predictions: NDArray[Any], features: "Dataset") -> list[str]:
    """The answer to each dev question: its best span over all windows. In a task with unanswerable questions it is
    empty where no window's [CLS] scores below that span.

    Args:
        predictions: [N, S, 2] logits of start and end.
    """
    contexts = task.dev["context"][:]
    answers, scores = [""] * len(contexts), np.full(len(contexts), -math.inf)
    nulls = np.full(len(contexts), math.inf)
    for row, window in enumerate(features.select_columns(["example", "starts", "ends"])):
        example, starts, ends = window["example"], window["starts"], window["ends"]
        logits = predictions[row, : len(ends)]
        nulls[example] = min(nulls[example], logits[NO_ANSWER].sum())
        span_score, first, last = best_span(logits, np.array(ends) != OUTSIDE)
        if span_score > scores[example]:
            scores[example] = span_score
            answers[example] = contexts[example][starts[first] : ends[last]]
    if any(not right for right in task.dev["answers"]):
        return ["" if null > span else text for text, null, span in zip(answers, nulls, scores, strict=True)]
    return answers


def score(task: Task, predictions: NDArray[Any], features: "Dataset") -> dict[str, float]:
    """F1 and exact match, the means over questions."""
    answers = predict(task, predictions, features)
    pairs = list(zip(answers, task.dev["answers"], strict=True))
    return {
        name: 100 * float(np.mean([best(measure, guess, right) for guess, right in pairs]))
        for name, measure in zip(METRICS, (f1, exact_match), strict=True)
    }


def check_questions(task: Task, tokenizer: Any) -> None:
    """Refuses, before any context is tokenised, what `encode` would.

    Raises:
        UserError: a question leaves too little room for its context.
    """
    for examples in (task.train, task.dev):
        for batch in examples.select_columns(["id", "question"]).iter(BATCH_QUESTIONS):
            _check_questions(batch, tokenizer, task.config)


def _check_questions(batch: dict[str, list[Any]], tokenizer: Any, config: TaskConfig) -> None:
    room = config.max_length - tokenizer.num_special_tokens_to_add(pair=True) - config.stride
    for name, ids in zip(batch["id"], tokenizer(batch["question"], add_special_tokens=False)["input_ids"], strict=True):
        if len(ids) >= room:
            raise UserError(
                f"question {name} is {len(ids)} tokens long; with max_length {config.max_length} and stride "
                f"{config.stride} it may be {room - 1} tokens at most; raise max_length, or lower stride"
            )


def _context_offsets(encoded: Any, row: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The first character of each token, and the one behind its last; OUTSIDE of tokens not of the context and of those
    without characters."""
    offsets = np.array(encoded["offset_mapping"][row], dtype=np.int32)
    in_context = np.array([sequence == 1 for sequence in encoded.sequence_ids(row)])
    in_context &= offsets[:, 1] > offsets[:, 0]
    starts, ends = np.where(in_context[:, None], offsets, OUTSIDE).T
    return starts, ends
