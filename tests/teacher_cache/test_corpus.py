"""Corpus files → documents → token sequences."""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from teacher_cache.corpus import documents, streams
from teacher_cache.corpus.documents import Piece, cut, pieces
from teacher_cache.corpus.files import CorpusFile, describe, resolve
from teacher_cache.corpus.sequences import TokenSequence, pack, sequences
from teacher_cache.errors import UserError

SHARED = Path(__file__).parents[3] / "shared"
DOCUMENTS = ["The first one.\nIt has two lines.", "Ein zweites, für Ümläute: 語 🎈", "third"]
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}
LETTERS = "a b c d e . ##a ##b ##c ##d ##e"
SEP = 3


def read(path: Path, format: str, text_field: str = "text") -> list[str]:
    """The documents, put together from their pieces."""
    found = list(pieces(str(path), format=format, text_field=text_field))
    texts = ["".join(piece.text for piece in group) for _, group in groupby(found, key=lambda piece: piece.document)]
    assert sorted({piece.document for piece in found}) == list(range(len(texts)))
    return texts


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(texts: list[str | None], field: str = "text") -> str:
    return "".join(json.dumps({"id": number, field: text}) + "\n" for number, text in enumerate(texts))


def parquet(texts: list[Any], kind: pa.DataType | None = None, field: str = "text") -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"id": range(len(texts)), field: pa.array(texts, type=kind or pa.string())})
    pq.write_table(table, sink, row_group_size=100)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerBase:
    words = f"[PAD] [UNK] [CLS] [SEP] [MASK] [ ] mask {LETTERS} the one ##s"
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(words.split())})


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerBase:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["a b c a bc de  de\n\nabc"] * 3, vocab_size=270, min_frequency=2, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)


class TestResolve:
    def test_keeps_the_order_given_and_sorts_within_a_glob(self, tmp_path: Path) -> None:
        for name in ("b.txt", "a.txt", "z.jsonl", "c.parquet.zst"):
            write(tmp_path / name, "x")
        (tmp_path / "folder.txt").mkdir()
        found = resolve([f"{tmp_path}/z.jsonl", f"{tmp_path}/*.txt", f"{tmp_path}/c*"], "auto")
        assert found == [
            (f"{tmp_path}/z.jsonl", "jsonl"),
            (f"{tmp_path}/a.txt", "text"),
            (f"{tmp_path}/b.txt", "text"),
            (f"{tmp_path}/c.parquet.zst", "parquet"),
        ]

    def test_makes_local_paths_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "a.TXT.GZ", "x")
        monkeypatch.chdir(tmp_path)
        expected = [(f"{tmp_path}/a.TXT.GZ", "text")]
        assert resolve(["a.TXT.GZ"], "auto") == resolve(["./*"], "auto") == expected
        assert resolve([f"file://{tmp_path}/a.TXT.GZ"], "auto") == expected

    def test_a_given_format_goes_before_the_extension(self, tmp_path: Path) -> None:
        write(tmp_path / "a.log", "x")
        assert resolve([f"{tmp_path}/a.log"], "text_file") == [(f"{tmp_path}/a.log", "text_file")]

    @pytest.mark.parametrize(
        ("paths", "message"),
        [
            (["{}/none.txt"], r"none\.txt does not exist"),
            (["{}/*.parquet"], r"\*\.parquet matches no file; check corpus\.paths"),
            (["{}/none/*.txt"], r"none/\*\.txt does not exist"),
            (["{}/"], r"is a folder; name its files with a glob, for example .*/\*\.txt"),
            (["{0}/a.txt", "{0}/*.txt"], r"name .*a\.txt more than once"),
            (["{0}/a.txt", "{0}/../{1}/a.txt"], r"name .*a\.txt more than once"),
            (["{}/b.log"], r"b\.log: .* \.txt, \.jsonl, \.ndjson, \.parquet, .* set corpus\.format"),
            (["zip://a.txt::{}/a.zip"], "chained URL"),
            (["nostore://a.txt"], r"nostore://a\.txt: Protocol not known"),
        ],
    )
    def test_refuses(self, paths: list[str], message: str, tmp_path: Path) -> None:
        for name in ("a.txt", "b.log"):
            write(tmp_path / name, "x")
        with pytest.raises(UserError, match=message):
            resolve([path.format(tmp_path, tmp_path.name) for path in paths], "auto")

    def test_a_store_without_credentials_is_one_line(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "none"))
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(UserError, match=r"^s3://bucket/\*\.txt: no credentials found; set AWS_ACCESS_KEY_ID"):
            resolve(["s3://bucket/*.txt"], "auto")

    @pytest.mark.parametrize("error", [PermissionError("Access\nDenied"), ConnectionError("Access Denied")])
    def test_what_a_glob_hides_is_told(self, error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.ls", refuse)
        message = r"^\S*\.txt: (access denied|the store cannot be reached \(Access Denied\))"
        with pytest.raises(UserError, match=message):
            resolve([f"{tmp_path}/*.txt"], "auto")


def test_describe_is_of_the_stored_bytes(tmp_path: Path) -> None:
    stored = gzip.compress(b"text " * 1000)
    path = write(tmp_path / "a.txt.gz", stored)
    expected = CorpusFile(str(path), "text", len(stored), hashlib.sha256(stored).hexdigest())
    assert describe(str(path), "text") == expected


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpus")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.mark.s3
def test_s3_files_are_found_described_and_read(bucket: Any) -> None:
    stored = zstandard.compress("\n\n".join(DOCUMENTS).encode())
    bucket.put_object(Bucket="corpus", Key="in/b.txt.zst", Body=stored)
    assert resolve(["s3://corpus/in/*"], "auto") == [("s3://corpus/in/b.txt.zst", "text")]
    bucket.put_object(Bucket="corpus", Key="in/a.txt", Body=b"new")
    assert resolve(["s3://corpus/in/*"], "auto")[0][0] == "s3://corpus/in/a.txt"
    assert describe("s3://corpus/in/b.txt.zst", "text").sha256 == hashlib.sha256(stored).hexdigest()
    found = pieces("s3://corpus/in/b.txt.zst", format="text", text_field="text")
    assert [piece.text for piece in found] == DOCUMENTS


@pytest.mark.s3
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://nobucket/*.txt", r"^s3://nobucket/\*\.txt: the bucket does not exist; create it"),
        ("s3://nobucket/a.txt", r"^s3://nobucket/a\.txt: the bucket does not exist; create it"),
        ("s3://corpus/none.txt", r"^s3://corpus/none\.txt does not exist"),
        ("s3://corpus", r"^s3://corpus is a folder"),
    ],
)
def test_s3_refuses(path: str, message: str, bucket: Any) -> None:
    with pytest.raises(UserError, match=message):
        resolve([path], "auto")


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


STREAMS = st.lists(st.tuples(st.booleans(), st.lists(st.integers(10, 20), min_size=1, max_size=9)), max_size=8)
LENGTHS = st.integers(1, 6)


def numbered(stream: list[tuple[bool, list[int]]]) -> list[tuple[int, list[int]]]:
    """Pieces of tokens with document numbers; True starts a new document."""
    document = 0
    result: list[tuple[int, list[int]]] = []
    for starts, ids in stream:
        document += starts and bool(result)
        result.append((document, ids))
    return result


class TestPack:
    @given(STREAMS, LENGTHS)
    def test_documents_never_mix(self, stream: list[tuple[bool, list[int]]], length: int) -> None:
        tokens = numbered(stream)
        runs = list(pack(tokens, length=length, packing="documents", separator=SEP))
        for document in {number for number, _ in tokens}:
            own = [run for owner, run in runs if owner == document]
            assert flat(own) == flat(ids for owner, ids in tokens if owner == document)
            assert all(len(run) == length for run in own[:-1])
            assert 0 < len(own[-1]) <= length
        assert [owner for owner, _ in runs] == sorted(owner for owner, _ in runs)

    @given(STREAMS, st.integers(2, 6))
    def test_full_is_one_stream(self, stream: list[tuple[bool, list[int]]], length: int) -> None:
        tokens = numbered(stream)
        runs = list(pack(tokens, length=length, packing="full", separator=SEP))
        joined: list[int] = []
        owners: list[int] = []
        for document, group in groupby(tokens, key=lambda piece: piece[0]):
            ids = ([SEP] if joined else []) + flat(ids for _, ids in group)
            joined += ids
            owners += [document] * len(ids)
        assert flat(run for _, run in runs) == joined
        assert all(len(run) == length for _, run in runs[:-1])
        assert [owner for owner, _ in runs] == owners[::length]

    @given(STREAMS, LENGTHS)
    def test_full_has_no_run_of_a_separator_alone(self, stream: list[tuple[bool, list[int]]], length: int) -> None:
        tokens = numbered(stream)
        runs = [run for _, run in pack(tokens, length=length, packing="full", separator=SEP)]
        assert all(set(run) != {SEP} for run in runs)
        content = [token for run in runs for token in run if token != SEP]
        assert content == flat(ids for _, ids in tokens)


class TestSequences:
    def read(
        self, path: Path, tokenizer: PreTrainedTokenizerBase, packing: str = "documents", length: int = 5
    ) -> list[TokenSequence]:
        return list(
            sequences(
                str(path),
                format="text",
                text_field="text",
                tokenizer=tokenizer,
                sequence_length=length,
                packing=packing,
            )
        )

    def ids(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        return list(tokenizer.convert_tokens_to_ids(text.split()))

    def test_documents_are_wrapped_runs(self, wordpiece: PreTrainedTokenizerBase, tmp_path: Path) -> None:
        found = self.read(write(tmp_path / "a", "a b c d\n\nab e"), wordpiece)
        expected = [(0, "[CLS] a b c [SEP]"), (0, "[CLS] d [SEP]"), (1, "[CLS] a ##b e [SEP]")]
        assert [(one.document, one.input_ids.tolist()) for one in found] == [
            (document, self.ids(wordpiece, text)) for document, text in expected
        ]
        assert all(one.input_ids.dtype == np.int32 for one in found)

    def test_full_fills_across_documents(self, wordpiece: PreTrainedTokenizerBase, tmp_path: Path) -> None:
        found = self.read(write(tmp_path / "a", "a b c\n\nd\n\ne"), wordpiece, "full")
        expected = [(0, "[CLS] a b c [SEP]"), (1, "[CLS] [SEP] d [SEP] [SEP]"), (2, "[CLS] e [SEP]")]
        assert [(one.document, one.input_ids.tolist()) for one in found] == [
            (document, self.ids(wordpiece, text)) for document, text in expected
        ]

    @pytest.mark.parametrize("packing", ["documents", "full"])
    def test_documents_without_tokens_are_not_counted(
        self, packing: str, wordpiece: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        found = self.read(write(tmp_path / "a", "\u200b\n\na b c\n\n\u200b\n\nd e\n\n\u200b"), wordpiece, packing)
        assert [one.document for one in found] == [0, 1]

    def test_text_never_becomes_a_special_token(self, wordpiece: PreTrainedTokenizerBase, tmp_path: Path) -> None:
        (found,) = self.read(write(tmp_path / "a", "[MASK]"), wordpiece)
        assert found.input_ids.tolist() == self.ids(wordpiece, "[CLS] [ mask ] [SEP]")

    def test_long_documents_and_batches_change_nothing(
        self,
        wordpiece: PreTrainedTokenizerBase,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        path = write(tmp_path / "a", "\n\n".join("a bc\nde the ones. " * number for number in range(1, 30)))
        whole = [(one.document, one.input_ids.tolist()) for one in self.read(path, wordpiece)]
        monkeypatch.setattr(documents, "PIECE_CHARACTERS", 7)
        monkeypatch.setattr("teacher_cache.corpus.sequences.BATCH_PIECES", 3)
        monkeypatch.setattr(wordpiece, "model_max_length", 5)
        assert [(one.document, one.input_ids.tolist()) for one in self.read(path, wordpiece)] == whole
        assert caplog.records == []

    def test_a_tokenizer_without_special_tokens_is_refused(
        self, byte_level: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="has no cls_token; use that of a BERT-family teacher"):
            self.read(write(tmp_path / "a", "x"), byte_level)

    @pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
    def test_real_text_in_pieces_equals_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizer = AutoTokenizer.from_pretrained(SHARED / "teacher")
        path = SHARED / "data" / "corpus" / "wikipedia-heldout.txt.zst"
        whole = [one.input_ids.tolist() for one in self.read(path, tokenizer, length=128)]
        monkeypatch.setattr(documents, "PIECE_CHARACTERS", 100)
        cut_up = self.read(path, tokenizer, length=128)
        assert [one.input_ids.tolist() for one in cut_up] == whole
        assert cut_up[-1].document == 263
