"""Which files a corpus has, in folders and in buckets."""

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
import zstandard
from moto.server import ThreadedMotoServer

from teacher_cache.corpus.documents import pieces
from teacher_cache.corpus.files import CorpusFile, describe, resolve
from teacher_cache.errors import UserError
from tests.teacher_cache.corpus.texts import DOCUMENTS, write


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

    def test_a_file_may_be_called_like_a_glob(self, tmp_path: Path) -> None:
        for name in ("w[1].txt", "w1.txt"):
            write(tmp_path / name, "x")
        assert resolve([f"{tmp_path}/w[1].txt"], "auto") == [(f"{tmp_path}/w[1].txt", "text")]

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
            (["{}/c*"], r"c::d\.log would be read as a chained URL; rename it without ::"),
            (["nostore://a.txt"], r"nostore://a\.txt: Protocol not known"),
        ],
    )
    def test_refuses(self, paths: list[str], message: str, tmp_path: Path) -> None:
        for name in ("a.txt", "b.log", "c::d.log"):
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
