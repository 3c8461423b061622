"""Counting a corpus: whole where it is small, by slices where it is large."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.config import CorpusConfig
from teacher_cache.errors import UserError
from teacher_cache.plan import slices
from teacher_cache.plan.slices import StoredFile, decompressed, share_of_file, spread, without_ends
from teacher_cache.plan.survey import Survey, ratio_error, survey
from tests import families

SLICE_BYTES = 1024
TOKENIZER = families.make_tokenizer()


def documents(seed: int, number: int = 200) -> list[str]:
    """Of very unlike lengths, of short and of long words."""
    draw = random.Random(seed)
    by_length = sorted(families.WORDS, key=len)
    found = []
    for _ in range(number):
        words = by_length[:20] if draw.random() < 0.5 else by_length[20:]
        found.append(" ".join(draw.choices(words, k=draw.choice([3, 10, 60]))))
    return found


def write(folder: Path, kind: str, seed: int) -> Path:
    """A corpus file of one of the kinds that are known."""
    found, path = documents(seed), folder / f"{seed:03}.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": found}), path, row_group_size=10)
        return path
    lines = [json.dumps({"text": text}) for text in found] if kind.startswith("jsonl") else ["\n\n".join(found)]
    path.write_bytes(stored(("\n".join(lines) + "\n").encode(), kind))
    return path


def stored(data: bytes, kind: str) -> bytes:
    """Compressed as the name says, in frames of 500 bytes: a slice here is smaller than a usual block."""
    compress = {"gz": gzip.compress, "zst": zstandard.compress}.get(kind.split(".")[-1], bytes)
    return b"".join(compress(data[start : start + 500]) for start in range(0, len(data), 500))


def surveyed(paths: Any, *, is_sampled: bool, **changes: Any) -> Survey:
    config = CorpusConfig(paths=tuple(map(str, paths)), sequence_length=24, **changes)
    return survey(config, TOKENIZER, **({"counted_bytes": 0} if is_sampled else {}))


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", SLICE_BYTES)
    monkeypatch.setattr(slices, "_FED_BYTES", 64)


class TestCounting:
    def test_a_small_corpus_is_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("the cat sat\n\nthe dog ran fell\n")
        found = surveyed([path], is_sampled=False)
        figures = found.figures
        assert (figures.num_documents, figures.num_sequences, figures.num_tokens) == (2, 2, 3 + 4 + 2 * 2)
        assert (figures.known, figures.relative_error) == ("counted", 0)
        assert (figures.num_files, figures.num_stored_bytes) == (1, path.stat().st_size)
        assert found.files == [StoredFile(url=str(path), format="text", num_bytes=path.stat().st_size)]

    def test_it_may_stand_for_a_larger_one(self, tmp_path: Path) -> None:
        found = surveyed([write(tmp_path, "txt", 0)], is_sampled=False)
        larger = found.standing_for(10 * found.figures.num_tokens)
        assert larger.figures.num_tokens == 10 * found.figures.num_tokens
        assert larger.figures.num_sequences == 10 * found.figures.num_sequences
        assert (larger.figures.known, larger.figures.relative_error) == ("given", None)
        assert larger.tokenise_s == pytest.approx(10 * found.tokenise_s)

    @pytest.mark.parametrize("is_sampled", [False, True])
    def test_no_text_is_refused(self, is_sampled: bool, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("\n" * 100)
        with pytest.raises(UserError, match=r"the corpus has no usable text: .* no token; check corpus\.paths"):
            surveyed([path], is_sampled=is_sampled)

    def test_what_a_build_refuses_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"none\.txt does not exist"):
            surveyed([tmp_path / "none.txt"], is_sampled=False)


class TestSampling:
    @pytest.mark.parametrize("kind", ["txt", "txt.gz", "txt.zst", "jsonl", "jsonl.zst", "parquet"])
    @pytest.mark.parametrize("packing", ["documents", "full"])
    def test_counts_lie_within_the_stated_error(self, kind: str, packing: str, tmp_path: Path) -> None:
        paths = [write(tmp_path, kind, seed) for seed in range(8)]
        whole, sampled = (surveyed(paths, is_sampled=sampled, packing=packing) for sampled in (False, True))
        true, found = whole.figures, sampled.figures
        assert sum(source.num_tokens for source in sampled.sources) < 0.7 * true.num_tokens
        assert found.relative_error is not None
        assert 0 < found.relative_error < 0.25
        assert abs(found.num_tokens / true.num_tokens - 1) <= found.relative_error
        assert found.num_sequences == pytest.approx(true.num_sequences, rel=0.15)

    def test_text_without_spaces_is_sampled(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("日本語" * 20 * SLICE_BYTES)
        true, found = (surveyed([path], is_sampled=sampled).figures for sampled in (False, True))
        assert found.num_tokens == pytest.approx(true.num_tokens, rel=0.05)

    def test_lines_of_json_may_be_longer_than_a_slice(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        text = " ".join(random.Random(0).choices(families.WORDS, k=SLICE_BYTES))
        path.write_text((json.dumps({"text": text}) + "\n") * 40)
        true, found = (surveyed([path], is_sampled=sampled).figures for sampled in (False, True))
        assert found.num_tokens == pytest.approx(true.num_tokens, rel=0.05)

    def test_the_error_is_of_95_percent(self, tmp_path: Path) -> None:
        """Of 25 corpora, 3 or fewer lie outside: more come by chance once in 30 such tests."""
        outside = 0
        for corpus in range(25):
            paths = [write(tmp_path, "txt", 10 * corpus + seed) for seed in range(4)]
            true, found = (surveyed(paths, is_sampled=sampled).figures for sampled in (False, True))
            assert found.relative_error is not None
            outside += abs(found.num_tokens / true.num_tokens - 1) > found.relative_error
        assert outside <= 3

    def test_the_beginning_of_one_file_tells_no_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(slices, "NUM_SLICES", 1)
        assert surveyed([write(tmp_path, "txt", 0)], is_sampled=True).figures.relative_error is None

    def test_an_error_names_the_file(self, tmp_path: Path) -> None:
        path = write(tmp_path, "jsonl", 0)
        with pytest.raises(UserError, match=rf"{path}, in a slice of it line 1: no field 'body', there are: text"):
            surveyed([path], is_sampled=True, text_field="body")

    @pytest.mark.parametrize("kind", ["txt.gz", "txt.zst"])
    def test_damaged_files_are_refused(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / f"a.{kind}"
        path.write_bytes(b"no such data" * 1000)
        with pytest.raises(UserError, match=rf"{path} cannot be read"):
            surveyed([path], is_sampled=True)


class TestPieces:
    def test_places_are_spread_over_stored_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(slices, "NUM_SLICES", 4)
        files = [StoredFile(url=name, format="text", num_bytes=size) for name, size in (("a", 10), ("b", 0), ("c", 70))]
        assert [(file.url, places) for file, places in spread(files)] == [("c", [0, 20, 40, 60])]

    def test_ends_are_cut_where_a_line_ends(self) -> None:
        data = b"ne 1\nline 2\nli"
        assert without_ends(data, "jsonl", is_first=False, is_last=False) == b"line 2\n"
        assert without_ends(data, "jsonl", is_first=True, is_last=True) == data

    @given(text=st.text(), cut=st.tuples(st.integers(0, 50), st.integers(0, 50)))
    def test_no_character_is_cut_in_two(self, text: str, cut: tuple[int, int]) -> None:
        data = text.encode()[cut[0] :][: -cut[1] or None]
        assert without_ends(data, "text", is_first=False, is_last=False).decode() in text

    def test_words_stay_whole_where_there_are_spaces(self) -> None:
        assert without_ends(b"rst second third fou", "text", is_first=False, is_last=False) == b"second third "
        assert without_ends("日本語".encode()[1:-1], "text", is_first=False, is_last=False).decode() == "本"

    @pytest.mark.parametrize(("codec", "kind"), [("gzip", "gz"), ("zstd", "zst")])
    def test_the_beginning_of_a_compressed_file_is_read(self, codec: str, kind: str) -> None:
        """Of the last frame, cut short, as much as is understood."""
        text = "\n".join(documents(0)).encode()[:5000]
        whole = stored(text, kind)
        found, used = decompressed(whole, codec)
        assert found == text
        assert len(whole) - 64 <= used <= len(whole)
        found, used = decompressed(whole[: len(whole) // 2], codec)
        assert text.startswith(found)
        assert len(found) / len(text) == pytest.approx(used / len(whole), rel=0.15)


class TestShareOfFile:
    TEXT = "\n".join(documents(0, number=2000)).encode()

    def test_a_file_that_tells_its_text_is_taken_at_its_word(self) -> None:
        whole = zstandard.compress(self.TEXT)
        sizes = {"text_bytes": 1000, "file_bytes": len(whole)}
        share = share_of_file(whole[:500], "zstd", used=len(whole) * 1200 // len(self.TEXT), **sizes)
        assert share == pytest.approx(len(whole) * 1000 / len(self.TEXT))

    @pytest.mark.parametrize("codec", ["zstd", "gzip"])
    def test_otherwise_bytes_stand_for_themselves(self, codec: str) -> None:
        untold = zstandard.ZstdCompressor(write_content_size=False).compress(self.TEXT)
        assert share_of_file(untold[:500], codec, text_bytes=1000, used=400, file_bytes=9999) == 400

    def test_the_first_of_several_does_not_speak_for_all(self) -> None:
        several = zstandard.compress(self.TEXT) * 3
        used = len(several) * 1000 // (3 * len(self.TEXT))
        assert share_of_file(several[:500], "zstd", text_bytes=1000, used=used, file_bytes=len(several)) == used


class TestRatioError:
    def test_by_hand(self) -> None:
        """Residuals 1, -1 of means 10: s = sqrt(2), of 2 of 4 slices: sqrt(0.5 * 2 / 2) / 10 times t."""
        found = ratio_error([11, 9], [1, 1], 4)
        t = 1.959964 + (1.959964**3 + 1.959964) / 4 + (5 * 1.959964**5 + 16 * 1.959964**3 + 3 * 1.959964) / 96
        assert found == pytest.approx(t * 0.5**0.5 / 10)

    def test_what_is_read_whole_has_none(self) -> None:
        assert ratio_error([11, 9], [1, 1], 2) == 0

    def test_alike_slices_have_none(self) -> None:
        assert ratio_error([10, 20, 30], [1, 2, 3], 100) == 0
