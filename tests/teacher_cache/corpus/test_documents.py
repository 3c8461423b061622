"""Corpus files → documents, in pieces."""

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from teacher_cache.corpus import documents
from teacher_cache.corpus.documents import Piece, cut, pieces
from teacher_cache.corpus.files import describe
from teacher_cache.corpus.sequences import pack
from teacher_cache.errors import UserError
from teacher_cache.storage import streams
from tests.teacher_cache.corpus.texts import DOCUMENTS, flat, write

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def read(path: Path, format: str, text_field: str = "text") -> list[str]:
    """The documents, put together from their pieces."""
    found = list(pieces(str(path), format=format, text_field=text_field))
    texts = ["".join(piece.text for piece in group) for _, group in groupby(found, key=lambda piece: piece.document)]
    assert sorted({piece.document for piece in found}) == list(range(len(texts)))
    return texts


def jsonl(texts: list[str | None], field: str = "text") -> str:
    return "".join(json.dumps({"id": number, field: text}) + "\n" for number, text in enumerate(texts))


def parquet(texts: list[Any], kind: pa.DataType | None = None, field: str = "text") -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"id": range(len(texts)), field: pa.array(texts, type=kind or pa.string())})
    pq.write_table(table, sink, row_group_size=100)
    return sink.getvalue().to_pybytes()


class TestFormats:
    @pytest.mark.parametrize("extension", COMPRESSIONS)
    @pytest.mark.parametrize("chunk_bytes", [5, streams.CHUNK_BYTES])
    def test_all_give_the_same_documents(
        self, extension: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streams, "CHUNK_BYTES", chunk_bytes)
        stored = {
            "text": "\n\n".join(DOCUMENTS).encode(),
            "jsonl": jsonl([*DOCUMENTS]).encode(),
            "parquet": parquet([*DOCUMENTS]),
        }
        for format, content in stored.items():
            path = write(tmp_path / f"{format}{extension}", COMPRESSIONS[extension](content))
            assert read(path, format) == DOCUMENTS, format
        for text in DOCUMENTS:
            assert read(write(tmp_path / f"one{extension}", COMPRESSIONS[extension](text.encode())), "text_file") == [
                text
            ]

    @pytest.mark.parametrize("chunk_bytes", [4, streams.CHUNK_BYTES])
    @pytest.mark.parametrize(
        "content",
        [
            "a\nb\n\nc",
            "a\nb\n\nc\n",
            "\n\n \na\nb\n\t \n\n\nc\n\n",
            "a\r\nb\r\n\r\nc\r\n",
            "\ufeffa\nb\n\nc",
        ],
    )
    def test_text_ends_a_document_at_an_empty_line(
        self, content: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streams, "CHUNK_BYTES", chunk_bytes)
        found = read(write(tmp_path / "a.txt", content), "text")
        assert [text.replace("\r", "") for text in found] == ["a\nb", "c"]

    @pytest.mark.parametrize("format", ["text", "text_file", "jsonl"])
    @pytest.mark.parametrize("content", ["", "\n", " \r\n\t\n", "\ufeff"])
    def test_nothing_but_whitespace_is_no_document(self, format: str, content: str, tmp_path: Path) -> None:
        assert read(write(tmp_path / "a", content), format) == []

    def test_empty_rows_are_not_counted(self, tmp_path: Path) -> None:
        texts = ["a", None, " \n ", "", "b"]
        with_empty_lines = "\ufeff\n" + jsonl(texts).replace("\n", "\r\n\r\n")
        assert read(write(tmp_path / "a", with_empty_lines), "jsonl") == ["a", "b"]
        for kind in (pa.string(), pa.large_string()):
            assert read(write(tmp_path / "a", parquet(texts, kind)), "parquet") == ["a", "b"]
        assert read(write(tmp_path / "a", parquet([])), "parquet") == []

    def test_text_stands_in_the_field_named(self, tmp_path: Path) -> None:
        assert read(write(tmp_path / "a", jsonl(["x"], "body")), "jsonl", "body") == ["x"]
        assert read(write(tmp_path / "a", parquet(["x"], field="body")), "parquet", "body") == ["x"]

    def test_parquet_batches_and_row_groups_keep_the_order(self, tmp_path: Path) -> None:
        texts = [f"text {number}" for number in range(3 * documents.PARQUET_ROWS + 5)]
        assert read(write(tmp_path / "a", parquet(texts)), "parquet") == texts

    def test_several_compressed_members_are_one_file(self, tmp_path: Path) -> None:
        for extension, compress in COMPRESSIONS.items():
            path = write(tmp_path / f"a{extension}", compress(b"a\n") + compress(b"\nb"))
            assert read(path, "text") == ["a", "b"]


class TestRefusals:
    @pytest.mark.parametrize("chunk_bytes", [3, streams.CHUNK_BYTES])
    @pytest.mark.parametrize(
        ("content", "offset"),
        [(b"abcdefg\xff", 7), ("ééé".encode() + b"\xe9x", 6), (b"\xef\xbb\xbfabcd\xc3", 7), (b"\xef\xbb", 0)],
    )
    @pytest.mark.parametrize("extension", COMPRESSIONS)
    def test_bad_utf8_is_found_at_its_byte(
        self,
        content: bytes,
        offset: int,
        chunk_bytes: int,
        extension: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(streams, "CHUNK_BYTES", chunk_bytes)
        path = write(tmp_path / f"a.txt{extension}", COMPRESSIONS[extension](content))
        with pytest.raises(UserError, match=rf"a\.txt{extension} is not UTF-8 at byte {offset} "):
            read(path, "text")

    @pytest.mark.parametrize("format", ["text", "parquet"])
    @pytest.mark.parametrize("extension", [".gz", ".zst"])
    def test_a_truncated_or_foreign_compression(self, extension: str, format: str, tmp_path: Path) -> None:
        whole = COMPRESSIONS[extension](bytes(range(128)) * 9 + b"\n" + DOCUMENTS[0].encode())
        for stored in (whole[:-1], whole[: len(whole) // 2], whole[:5], b"this is not compressed"):
            with pytest.raises(UserError, match=rf"a{extension} cannot be read: \w+"):
                read(write(tmp_path / f"a{extension}", stored), format)

    def test_a_damaged_parquet(self, tmp_path: Path) -> None:
        whole = parquet([f"{number} some words" for number in range(200)])
        for stored in (b"", whole[:-9], whole[:4] + b"\0" * 2000 + whole[2004:], b"this is not parquet"):
            with pytest.raises(UserError, match=r"a\.parquet cannot be read: \w+"):
                read(write(tmp_path / "a.parquet", stored), "parquet")

    def test_a_file_that_went_away(self, tmp_path: Path) -> None:
        for format in ("text", "parquet"):
            with pytest.raises(UserError, match=r"none\.txt does not exist"):
                read(tmp_path / "none.txt", format)
        with pytest.raises(UserError, match=r"none\.txt does not exist"):
            describe(f"{tmp_path}/none.txt", "text")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"text": ', "is not JSON: .*; write one JSON object a line"),
            ("[" * 200_000, "is not JSON"),
            ("[1]", "is of type list; write one JSON object a line"),
            ('{"body": "x", "id": 1}', "no field 'text', there are: body, id; set corpus.text_field"),
            ("{}", "no field 'text', there are: none"),
            ('{"text": 3}', "field 'text' is of type int; it must be a string or null"),
            (r'{"text": "\ud800"}', "field 'text' is not Unicode text .* at character 0"),
        ],
    )
    def test_a_json_line(self, line: str, message: str, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", f'{{"text": "good"}}\n\n{line}\n')
        with pytest.raises(UserError, match=rf"a\.jsonl line 3.*{message}"):
            read(path, "jsonl")

    @pytest.mark.parametrize(
        ("stored", "message"),
        [
            (parquet(["x"], field="body"), "no column 'text', there are: id, body; set corpus.text_field"),
            (parquet([b"x"], pa.binary()), r"column 'text' is binary, .* there are: id \(int64\), text \(binary\)"),
            (parquet([1], pa.int32()), "column 'text' is int32, it must be string or large_string"),
        ],
    )
    def test_a_parquet_column(self, stored: bytes, message: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=rf"a\.parquet: {message}"):
            read(write(tmp_path / "a.parquet", stored), "parquet")

    def test_a_parquet_row_that_is_not_utf8(self, tmp_path: Path) -> None:
        binary = pa.array([b"good", b"ab\xff"])
        forged = pa.StringArray.from_buffers(2, *binary.buffers()[1:])
        pq.write_table(pa.table({"text": forged}), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=r"a\.parquet row 1 is not UTF-8 at its byte 2"):
            read(tmp_path / "a.parquet", "parquet")

    def test_unknown_names_are_programming_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="format must be"):
            read(write(tmp_path / "a", "x"), "csv")
        with pytest.raises(ValueError, match="packing must be"):
            list(pack([(0, [1])], length=1, packing="none", separator=0))


TEXTS = st.text(alphabet="abcdeé[]. \t\n\r\f\x1c\x85\u2003\u200b語", max_size=60)


class TestPieces:
    @pytest.fixture(autouse=True)
    def _small(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(documents, "PIECE_CHARACTERS", 4)
            yield

    @settings(max_examples=150, deadline=None)
    @given(fragments=st.lists(TEXTS, max_size=5))
    def test_joined_are_the_stripped_document_and_bounded(self, fragments: list[str]) -> None:
        found = list(cut(fragments))
        # Whitespace at the end is known as such only up to the limit of an uncut run.
        assert "".join(found).rstrip() == "".join(fragments).strip()
        assert all(0 < len(text) <= 4 * documents.UNCUT_PIECES for text in found)

    @pytest.mark.parametrize("kind", ["wordpiece", "byte_level"])
    @settings(max_examples=150, deadline=None)
    @given(text=TEXTS)
    def test_tokens_joined_are_those_of_the_document(
        self, text: str, kind: str, wordpiece: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase
    ) -> None:
        tokenizer = {"wordpiece": wordpiece, "byte_level": byte_level}[kind]

        def tokens(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

        assert flat(tokens(piece) for piece in cut([text])) == tokens(text.strip())

    def test_a_word_beyond_the_limit_is_cut(self) -> None:
        assert [len(text) for text in cut(["x" * 100, "x" * 50])] == [64, 64, 22]

    def test_are_cut_before_the_space_behind_the_limit(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a", "one two three\n\nfour")
        expected = [Piece(0, "one two"), Piece(0, " three"), Piece(1, "four")]
        assert list(pieces(str(path), format="text", text_field="text")) == expected
