"""CoNLL files: a token and its tag a line, an empty line after a sentence; tags by IOB2 or IOB1."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from teacher_cache.errors import UserError
from teacher_cache.tasks.files import read_lines

DOCUMENT_START = "-DOCSTART-"
OUTSIDE = "O"

_TAG = re.compile(r"O|[BI]-\S+")


@dataclass(frozen=True, kw_only=True)
class Sentence:
    words: list[str]
    tags: list[str]
    """IOB2: B-type begins an entity, I-type continues it, O is outside."""
    lines: list[int]
    """Of each word, from 1."""


def read_conll(url: str) -> list[Sentence]:
    """The sentences of a file: the first column is the token, the last one the tag. Tabs separate the columns, or
    where there are none other whitespace. Tags by IOB1 become IOB2.

    Raises:
        UserError: it cannot be read; lines with different numbers of columns; no tag; no entity at all; or an I- that
            continues nothing in a file that is not IOB1 throughout.
    """
    sentences = _sentences(url)
    if not sentences:
        raise UserError(f"{url} holds no sentences")
    if all(tag == OUTSIDE for sentence in sentences for tag in sentence.tags):
        raise UserError(f"{url}: every tag is O, so that there is no entity to learn or to find")
    stray = _first_stray_inside(sentences)
    if stray is None:
        return sentences
    if all(_is_iob1(sentence.tags) for sentence in sentences):
        return [Sentence(words=each.words, tags=to_iob2(each.tags), lines=each.lines) for each in sentences]
    raise UserError(
        f"{url} line {stray}: an I- tag that continues no entity of its type; begin entities with B- everywhere "
        "(IOB2), or only where two of a type touch (IOB1)"
    )


def to_iob2(tags: Sequence[str]) -> list[str]:
    """A sentence's tags, with B- for the first word of each entity."""
    return [
        f"B-{tag[2:]}" if tag != OUTSIDE and not _continues(before, tag) else tag
        for before, tag in zip([OUTSIDE, *tags], tags, strict=False)
    ]


def entity_types(sentences: Sequence[Sentence]) -> list[str]:
    """The types of entities there are, sorted."""
    return sorted({tag[2:] for sentence in sentences for tag in sentence.tags if tag != OUTSIDE})


def _sentences(url: str) -> list[Sentence]:
    lines = read_lines(url)
    separator = "\t" if any("\t" in line.strip() for line in lines) else None
    sentences, num_columns = [Sentence(words=[], tags=[], lines=[])], None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(DOCUMENT_START):
            sentences.append(Sentence(words=[], tags=[], lines=[]))
            continue
        columns = [column.strip() for column in line.split(separator)]
        num_columns = num_columns or len(columns)
        _check_columns(f"{url} line {number}", columns, num_columns)
        sentences[-1].words.append(columns[0])
        sentences[-1].tags.append(columns[-1])
        sentences[-1].lines.append(number)
    return [sentence for sentence in sentences if sentence.words]


def _check_columns(place: str, columns: list[str], num_columns: int) -> None:
    if len(columns) < 2 or len(columns) != num_columns:
        raise UserError(
            f"{place} has {len(columns)} columns, and the first line {num_columns}; write a token, a tag and anything "
            "between them, as many columns in every line"
        )
    if not columns[0]:
        raise UserError(f"{place} has a tag, but no token before it; an empty line ends a sentence")
    if not _TAG.fullmatch(columns[-1]):
        raise UserError(f"{place}: {columns[-1]!r} is no tag of {columns[0]!r}; tags are O, B-type and I-type")


def _continues(before: str, tag: str) -> bool:
    """Whether a tag goes on with the entity of the word before."""
    return tag.startswith("I-") and before[2:] == tag[2:]


def _first_stray_inside(sentences: Sequence[Sentence]) -> int | None:
    for sentence in sentences:
        for line, tag, iob2 in zip(sentence.lines, sentence.tags, to_iob2(sentence.tags), strict=True):
            if tag != iob2:
                return line
    return None


def _is_iob1(tags: Sequence[str]) -> bool:
    """Whether B- stands only where it parts two entities of a type."""
    return all(
        not tag.startswith("B-") or before[2:] == tag[2:] for before, tag in zip([OUTSIDE, *tags], tags, strict=False)
    )
