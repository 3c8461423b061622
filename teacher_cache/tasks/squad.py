"""SQuAD's JSON, versions 1.1 and 2: questions, and where their answers stand in a paragraph."""

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from teacher_cache.errors import UserError
from teacher_cache.tasks.files import read_text

if TYPE_CHECKING:
    from datasets import Features


@dataclass(frozen=True)
class _Answer:
    text: str
    answer_start: int
    """Characters into the context."""


@dataclass(frozen=True)
class _Question:
    id: str
    question: str
    answers: tuple[_Answer, ...]
    is_impossible: bool = False
    """Of version 2: the paragraph does not answer it."""


@dataclass(frozen=True)
class _Paragraph:
    context: str
    qas: tuple[_Question, ...]


@dataclass(frozen=True)
class _Article:
    paragraphs: tuple[_Paragraph, ...]


@dataclass(frozen=True)
class _File:
    data: tuple[_Article, ...]


def read_squad(url: str) -> dict[str, list[Any]]:
    """The columns of a task's examples, questions without whitespace around them.

    Raises:
        UserError: the file cannot be read or is not of this layout; it holds no question; a question that is not marked
            as impossible has no answer, or the other way round; or an answer does not stand where it is said to.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "question", "context", "answers", "answer_starts")}
    for article in _parse(url).data:
        for paragraph in article.paragraphs:
            for question in paragraph.qas:
                _check(f"{url}, question {question.id}", question, paragraph.context)
                columns["id"].append(question.id)
                columns["question"].append(question.question.strip())
                columns["context"].append(paragraph.context)
                columns["answers"].append([answer.text for answer in question.answers])
                columns["answer_starts"].append([answer.answer_start for answer in question.answers])
    if not columns["id"]:
        raise UserError(f"{url} holds no questions")
    return columns


def types() -> "Features":
    """Of the columns: a file with no answer at all does not tell them."""
    from datasets import Features, List, Value

    text = Value("string")
    return Features(
        {"id": text, "question": text, "context": text, "answers": List(text), "answer_starts": List(Value("int64"))}
    )


def _parse(url: str) -> _File:
    try:
        return TypeAdapter(_File).validate_json(read_text(url))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{url} is not in SQuAD's layout: {place}: {first['msg']}; wanted are data, paragraphs, context and qas, "
            "of each id, question and answers, and of these text and answer_start"
        ) from None


def _check(place: str, question: _Question, context: str) -> None:
    if question.is_impossible and question.answers:
        raise UserError(f"{place}: it is marked as impossible, and has an answer; take one of the two away")
    if not question.is_impossible and not question.answers:
        raise UserError(f"{place}: it has no answer; give one, or mark it by is_impossible: true")
    for answer in question.answers:
        start, stop = answer.answer_start, answer.answer_start + len(answer.text)
        if not answer.text.strip():
            raise UserError(f"{place}: an answer is empty; mark questions without one by is_impossible: true")
        if start < 0 or stop > len(context):
            raise UserError(
                f"{place}: the answer {answer.text!r} from character {start} to {stop} stands outside its context of "
                f"{len(context)} characters; mend answer_start"
            )
        if context[start:stop] != answer.text:
            raise UserError(
                f"{place}: at character {start} of the context stands {context[start:stop]!r}, and not the answer "
                f"{answer.text!r}; mend answer_start, which counts Unicode characters"
            )
