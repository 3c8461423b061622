"""Named entities: tags of words as labels of their first tokens, and back to entities.

N features, S tokens, C tags.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teacher_cache.errors import UserError
from teacher_cache.tasks.config import TaskConfig
from teacher_cache.tasks.conll import OUTSIDE, Sentence, entity_types
from teacher_cache.tasks.record import Task

if TYPE_CHECKING:
    from datasets import Dataset

METRICS = ("f1", "precision", "recall")
IGNORED = -100
"""The label of tokens that no loss is taken of, as PyTorch's cross-entropy has it."""


def tag_names(sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """O, and B- and I- of each type of entity."""
    return (OUTSIDE, *(f"{part}-{kind}" for kind in entity_types(sentences) for part in "BI"))


def examples(url: str, sentences: Sequence[Sentence], labels: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of a task's examples.

    Raises:
        UserError: a tag is not one of `labels`.
    """
    places = {label: place for place, label in enumerate(labels)}
    for sentence in sentences:
        for line, tag in zip(sentence.lines, sentence.tags, strict=True):
            if tag not in places:
                raise UserError(
                    f"{url} line {line}: {tag!r} is no tag of the train file, which has {', '.join(labels)}"
                )
    tags = [[places[tag] for tag in sentence.tags] for sentence in sentences]
    return {"words": [sentence.words for sentence in sentences], "tags": tags}


def encode(batch: dict[str, list[Any]], tokenizer: Any, config: TaskConfig) -> dict[str, list[Any]]:
    """Features of some sentences. `labels` holds a word's tag at its first token, otherwise IGNORED; `words` the
    word's place there, otherwise -1.

    Words are joined by spaces, which all tokenizers then see alike; the space at the start lets byte-level ones take
    the first word as any other.
    """
    encoded = tokenizer(
        [" " + " ".join(words) for words in batch["words"]],
        truncation=True,
        max_length=config.max_length,
        return_offsets_mapping=True,
    )
    offsets = encoded.pop("offset_mapping")
    first = [first_tokens(words, [end for _, end in row]) for words, row in zip(batch["words"], offsets, strict=True)]
    labels = [
        [IGNORED if word < 0 else tags[word] for word in words]
        for words, tags in zip(first, batch["tags"], strict=True)
    ]
    return dict(encoded) | {"labels": labels, "words": first}


def first_tokens(words: Sequence[str], ends: Sequence[int]) -> list[int]:
    """Of each token the word that it is the first one of; -1 for none.

    Args:
        ends: [S] the place behind a token's last character in `words`, of which a space precedes each; 0 of special
            tokens. The space is its word's, as some tokenizers make a token of it.
    """
    begins = np.cumsum([0, *(1 + len(word) for word in words[:-1])])
    found = np.searchsorted(begins, ends) - 1  # from behind the space to the word's end
    seen = np.maximum.accumulate(np.concatenate([[-1], found[:-1]]))
    return np.where(found > seen, found, -1).tolist()


def score(task: Task, predictions: NDArray[Any], features: "Dataset") -> dict[str, float]:
    """Precision, recall and F1 of entities, type and both ends right, by strict IOB2.

    Words of which the model saw no token, behind `max_length` above all, count as predicted O.

    Args:
        predictions: [N, S, C] logits.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

    best = predictions.argmax(axis=-1)
    truth, guess = [], []
    for row, (example, words) in enumerate(zip(features["example"], features["words"], strict=True)):
        tags = task.dev[example]["tags"]
        found = [OUTSIDE] * len(tags)
        for token, word in enumerate(words):
            if word >= 0:
                found[word] = task.labels[best[row, token]]
        truth.append([task.labels[tag] for tag in tags])
        guess.append(found)
    options = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    measures = (f1_score, precision_score, recall_score)
    return {name: 100 * float(take(truth, guess, **options)) for name, take in zip(METRICS, measures, strict=True)}
