"""Documents → token sequences."""

from itertools import groupby
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from teacher_cache.corpus import documents
from teacher_cache.corpus.sequences import TokenSequence, pack, sequences
from teacher_cache.errors import UserError
from tests.teacher_cache.corpus.texts import flat, write

SEP = 3


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

    def test_real_text_in_pieces_equals_whole(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Python's own documentation, with a tokenizer trained on it."""
        trained = BertWordPieceTokenizer()
        trained.train_from_iterator(topics.values(), vocab_size=1000, show_progress=False)
        special = {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **special)
        path = write(tmp_path / "a", "\n\n".join(topics.values()))
        whole = [(one.document, one.input_ids.tolist()) for one in self.read(path, tokenizer, length=128)]
        monkeypatch.setattr(documents, "PIECE_CHARACTERS", 100)
        cut_up = [(one.document, one.input_ids.tolist()) for one in self.read(path, tokenizer, length=128)]
        assert cut_up == whole
        assert whole[-1][0] > 1000
