"""Real English prose without a download, for trying things out on a fresh machine.

Usage: `python infra/quickstart/english.py OUT_DIR [--max-megabytes 4]`

The text is what every Python installation carries: the topics of the language reference and the docstrings of the
standard library and of the installed packages. Docstrings are found with `ast`; no package is imported.

`OUT_DIR` gets `english-00.txt`, `english-01.txt`, ... (training text, about 1 MB each) and `heldout.txt` (about one
document in twenty). A line is a paragraph, an empty line ends a document. The same installation gives the same text.
"""

import argparse
import ast
import hashlib
import itertools
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

FILE_BYTES = 1_000_000
MIN_DOCUMENT_WORDS = 30
MIN_PARAGRAPH_WORDS = 7

SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "_vendor", "site-packages", "dist-packages"})
"""Code about code, second copies of other packages, and packages which lie inside the standard library's folder."""

BULLET = re.compile(r"^ *(?:[-*+•]|\(?\w[.)]|\d+[.)]) +", re.MULTILINE)
DIRECTIVE = re.compile(r"^ *\.\. .*$", re.MULTILINE)
MARKUP = (
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_*"), r"\1"),  # `text <target>`_
    (re.compile(r":[a-z:]+:`[~!]?([^`]*)`"), r"\1"),  # :class:`text`
    (re.compile(r"`+([^`]*)`+_*"), r"\1"),  # ``text`` and `text`
    (re.compile(r"(?<!\w)\*{1,2}(\w[^*]*)\*{1,2}(?!\w)"), r"\1"),  # **text** and *text*
)

STRAIGHT_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
SENTENCES = re.compile(r"[A-Z\"'(].*[.!?][\"')]?")
NOT_PROSE = re.compile(r">>>|://|[={}|\\<>$@#~^_]{2}|\w\(.*=.*\)|[\[\](){}][\[\](){}]|\.\.\.|^\w+:")
PLAIN_WORD = re.compile(r"[\"'(]*[A-Za-z]+(?:['-][A-Za-z]+)*[\"').,;:!?]*")
COMMON_WORDS = frozenset(("a", "an", "and", "are", "as", "be", "by", "for", "if", "in", "is", "it", "not", "of", "or"))
COMMON_WORDS |= {"from", "on", "that", "the", "this", "to", "when", "with"}
LICENCE = re.compile(r"licen[cs]ed?\b|copyright|warrant(y|ies)|all rights reserved|redistribut", re.IGNORECASE)


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs and list items of a reST or Markdown text, one line each, without their markup.

    A change of indentation ends a paragraph: it sets off code, tables and parameter lists, which `is_prose` refuses.
    """
    text = DIRECTIVE.sub("", text.expandtabs().translate(STRAIGHT_QUOTES))
    text = BULLET.sub(lambda bullet: "\n" + " " * len(bullet[0]), text)
    for _, lines in itertools.groupby(text.splitlines(), key=indentation):
        yield without_markup(" ".join(line.strip() for line in lines))


def indentation(line: str) -> int:
    """Leading spaces of a line; -1 of an empty one."""
    return len(line) - len(line.lstrip()) if line.strip() else -1


def without_markup(paragraph: str) -> str:
    for pattern, replacement in MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph reads as English sentences: no code, no table, no licence."""
    words = paragraph.split()
    return (
        len(words) >= MIN_PARAGRAPH_WORDS
        and SENTENCES.fullmatch(paragraph) is not None
        and NOT_PROSE.search(paragraph) is None
        and LICENCE.search(paragraph) is None
        and sum(PLAIN_WORD.fullmatch(word) is not None for word in words) >= 0.8 * len(words)
        and sum(word.lower() in COMMON_WORDS for word in words) >= 0.15 * len(words)
    )


def docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module or class and of what it defines, in the source's order; functions are not entered."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            yield from docstrings(child)


def source_text(path: Path) -> str:
    """All docstrings of a source file; empty if this Python cannot parse it."""
    try:
        return "\n\n".join(docstrings(ast.parse(path.read_text(encoding="utf-8"))))
    except (SyntaxError, ValueError, OSError):
        return ""


def source_files(path: Path) -> list[Path]:
    """The Python files of a package, tests aside; a module is its own only file."""
    if path.is_file():
        return [path] if path.suffix == ".py" else []
    files = sorted(path.rglob("*.py"))
    return [file for file in files if SKIPPED_FOLDERS.isdisjoint(file.relative_to(path.parent).parts)]


def packages() -> list[Path]:
    """Installed packages and single-file modules, by name."""
    folders = {Path(entry).resolve() for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")}
    return sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir())


def round_robin(iterables: Iterable[Iterable[str]]) -> Iterator[str]:
    """The first item of each, then the second of each, ...: a fair share for all wherever the reader stops."""
    for items in itertools.zip_longest(*iterables):
        yield from (item for item in items if item is not None)


def documents(texts: Iterable[str], seen: set[str]) -> Iterator[str]:
    """The prose of each text, a paragraph a line, without paragraphs in `seen`, which grows."""
    for text in texts:
        fresh = [line for line in dict.fromkeys(paragraphs(text)) if line not in seen and is_prose(line)]
        seen.update(fresh)
        if sum(len(line.split()) for line in fresh) >= MIN_DOCUMENT_WORDS:
            yield "\n".join(fresh) + "\n"


def english() -> Iterator[str]:
    """All documents: language reference, standard library, then the packages in turns."""
    seen: set[str] = set()
    standard_library = source_files(Path(sysconfig.get_path("stdlib")))
    yield from documents((topics[name] for name in sorted(topics)), seen)
    yield from documents(map(source_text, standard_library), seen)
    yield from round_robin(documents(map(source_text, source_files(path)), seen) for path in packages())


def up_to(limit: int, texts: Iterable[str]) -> Iterator[str]:
    """The first texts which together take at most `limit` bytes."""
    size = 0
    for text in texts:
        size += len(text.encode()) + 1  # the empty line after it
        if size > limit:
            return
        yield text


def is_heldout(document: str) -> bool:
    """One document in twenty, chosen by its text alone: other documents coming or going does not move it."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) % 20 == 0


def write(folder: Path, found: Iterable[str]) -> list[Path]:
    """Writes the training files and `heldout.txt`, in place of any from before; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("english-*.txt"):
        old.unlink()
    files: dict[str, list[str]] = {"heldout.txt": []}
    train_bytes = 0
    for document in found:
        name = "heldout.txt" if is_heldout(document) else f"english-{train_bytes // FILE_BYTES:02}.txt"
        train_bytes += len(document.encode()) if name != "heldout.txt" else 0
        files.setdefault(name, []).append(document)
    for name, texts in files.items():
        (folder / name).write_text("\n".join(texts), encoding="utf-8")
    return [folder / name for name in files]


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes English prose found in this Python installation.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--max-megabytes", type=float, default=4.0, help="of all text together (default: 4)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # parsing others' sources warns of their odd escapes
    found = list(up_to(int(arguments.max_megabytes * 1e6), english()))
    paths = write(arguments.out_dir, found)
    size = sum(path.stat().st_size for path in paths)
    print(f"{len(found)} documents, {size} bytes: {' '.join(map(str, paths))}")


if __name__ == "__main__":
    main()
