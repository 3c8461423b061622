"""One file as chunks of bytes or of text: in any fsspec store, plain, gzip or zstandard."""

import codecs
import hashlib
import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from tempfile import TemporaryFile
from typing import IO, Any

import pyarrow as pa
from fsspec.core import url_to_fs

from teacher_cache.errors import UserError
from teacher_cache.storage import errors as storage_errors

CHUNK_BYTES = 1 << 20

_CODECS = {".gz": "gzip", ".zst": "zstd"}


def split_compression(url: str) -> tuple[str, str | None]:
    """The URL without its compression's extension, and the codec's name, None for a plain file."""
    stem, extension = posixpath.splitext(url)
    codec = _CODECS.get(extension.lower())
    return (stem, codec) if codec else (url, None)


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turns what a store or a decoder raises into one `UserError` line that names the URL and the cause."""
    try:
        with storage_errors.store_errors(url):
            yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{url} does not exist ({_one_line(error)})") from error
    except Exception as error:  # stores' clients (botocore, aiohttp, gcsfs) share no base class of errors
        raise UserError(f"{url} cannot be read: {_one_line(error)}") from error


def stored_chunks(url: str) -> Iterator[bytes]:
    """The bytes as they are stored, compressed or not.

    Raises:
        UserError: the store refuses, or the file is not there.
    """
    with store_errors(url), open_stored(url) as file:
        yield from _chunks(file)


def size_and_sha256(url: str) -> tuple[int, str]:
    """The number of stored bytes, and the 64 hexadecimal digits of their digest.

    Raises:
        UserError: as `stored_chunks`.
    """
    digest, num_bytes = hashlib.sha256(), 0
    for chunk in stored_chunks(url):
        digest.update(chunk)
        num_bytes += len(chunk)
    return num_bytes, digest.hexdigest()


def decompressed_chunks(url: str) -> Iterator[bytes]:
    """The bytes after decompression by the URL's extension.

    Raises:
        UserError: as `stored_chunks`, or the compressed data is damaged or ends too early.
    """
    with store_errors(url), open_stored(url) as file:
        # Arrow's decoder, because zstandard's and fsspec's take a truncated file for a complete one.
        codec = split_compression(url)[1]
        yield from _chunks(pa.CompressedInputStream(file, codec) if codec else file)


def text_chunks(url: str) -> Iterator[str]:
    """The decompressed text, read as UTF-8, without a byte order mark at its start.

    Raises:
        UserError: as `decompressed_chunks`, or a byte is not UTF-8: its offset in the decompressed file is named.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    for chunk in chain(decompressed_chunks(url), (b"",)):
        starts = read == 0
        read += len(chunk)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            # What the decoder refused is this chunk, behind the bytes it kept of the chunk before.
            offset = read - len(error.object) + error.start
            raise UserError(f"{url} is not UTF-8 at byte {offset} ({error.reason}); convert it to UTF-8") from None
        yield text.removeprefix("\ufeff") if starts else text


@contextmanager
def open_seekable(url: str) -> Iterator[IO[bytes]]:
    """The decompressed file for random access; a compressed one is first written to a temporary file."""
    if split_compression(url)[1] is None:
        with open_stored(url) as file:
            yield file
        return
    with TemporaryFile() as file:
        file.writelines(decompressed_chunks(url))
        file.seek(0)
        yield file


def open_stored(url: str) -> Any:
    """The stored bytes as a binary file; errors are those of the store."""
    filesystem, path = url_to_fs(url)
    return filesystem.open(path, "rb")


def _chunks(file: Any) -> Iterator[bytes]:
    return iter(partial(file.read, CHUNK_BYTES), b"")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def json_object(line: str, place: str) -> dict[str, Any]:
    """A line of JSON Lines.

    Raises:
        UserError: it is no JSON object; names `place`.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON: {error}; write one JSON object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"{place} is of type {type(row).__name__}; write one JSON object a line")
    return row
