"""Shards whose author means harm: whatever a file says, it is refused by name, in little memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from teacher_cache.errors import UserError
from teacher_cache.format import pages, parquet, thrift
from teacher_cache.format.coder import Coder
from teacher_cache.format.shard import ShardReader, encode
from teacher_cache.format.spec import Identity
from tests.teacher_cache.format import coded, forgery
from tests.teacher_cache.format.forgery import HUGE, column_metadata, forge_footer, forge_page, read_in_little_memory
from tests.teacher_cache.format.samples import PLAIN

CODED = coded.coded_identity(hidden={"layers": (-1,), "code": "transform"})
FLOAT = coded.coded_identity(
    soft_labels={"top_k": 4, "temperatures": (1.0, 2.0), "code": "float32"}, hidden={"layers": (-1,), "code": "float32"}
)
BOMB = 128 * 2**20
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def coder() -> Coder:
    return coded.make_coder(CODED)


class Files:
    """A shard's files, as their author wants them."""

    def __init__(self, folder: Path, spec: Identity, coder: Coder) -> None:
        self.spec, self.coder, self._folder = spec, coder, folder
        rows = coded.make_rows(1, spec, [9, 5, 7], 0.5)
        labels, hidden = encode(rows, spec, coder, metadata={"fingerprint": spec.fingerprint})
        assert hidden is not None
        self.labels, self.hidden = labels, hidden

    def read(self) -> int:
        """How many rows a reader gets."""
        paths = self._folder / "labels", self._folder / "hidden"
        for path, data in zip(paths, (self.labels, self.hidden), strict=True):
            path.write_bytes(data)
        return len(list(ShardReader(*paths, self.spec, self.coder, layers=(-1,)).rows()))


@pytest.fixture
def files(tmp_path: Path, coder: Coder) -> Files:
    return Files(tmp_path, CODED, coder)


@pytest.fixture
def plain(tmp_path: Path) -> Files:
    return Files(tmp_path, FLOAT, PLAIN)


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def changed(name: str, change: Callable[[list[Any]], Any]) -> Change:
    """Changes the values of a column, as a list of its rows."""

    def apply(table: pa.Table) -> pa.Table:
        values = change(table[name].to_pylist())
        return replaced(table, name, pa.array(values, table.schema.field(name).type))

    return apply


def of_first(change: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda rows: [change(rows[0]), *rows[1:]]


def test_a_whole_shard_is_read_in_the_memory_that_hostile_ones_are_refused_in(files: Files, plain: Files) -> None:
    assert read_in_little_memory(files.read) == read_in_little_memory(plain.read) == 3


@pytest.mark.parametrize(
    ("name", "use_dictionary", "values"),
    [
        ("soft_labels", False, lambda: pa.array([bytes(BOMB), None, None], pa.binary())),
        ("input_ids", False, lambda: parquet.ragged([np.zeros(BOMB // 4, np.int32), np.ones(1), np.ones(1)], np.int32)),
        (
            "kept_positions",
            True,
            lambda: parquet.ragged([np.zeros(1), np.zeros(BOMB // 4, np.uint16), np.ones(1)], np.uint16),
        ),
    ],
)
def test_a_column_that_unfolds_to_much_is_refused_before(
    files: Files, name: str, use_dictionary: bool, values: Callable[[], pa.Array]
) -> None:
    files.labels = forgery.rewrite(
        files.labels, lambda table: replaced(table, name, values()), use_dictionary=use_dictionary
    )
    assert len(files.labels) < 2**20
    told = read_in_little_memory(files.read)
    assert "labels is refused" in told
    assert f"{name} claims" in told


def test_one_large_value_in_a_dictionary_is_not_unfolded_into_every_row(files: Files) -> None:
    size = 2**22
    blobs = pa.array([bytes(size)] * 128, pa.binary())
    files.labels = forgery.rewrite(
        files.labels, lambda table: replaced(pa.concat_tables([table] * 43)[:128], "soft_labels", blobs)
    )
    assert len(files.labels) < 2**16 < 128 * size
    assert "labels is refused" in read_in_little_memory(files.read)


def test_a_hidden_object_that_unfolds_to_much_is_refused_before(files: Files) -> None:
    bomb = pa.array([bytes(BOMB)], pa.large_binary())
    files.hidden = forgery.rewrite(files.hidden, lambda table: replaced(table, "hidden_-1", bomb), row_group_rows=1)
    assert "hidden is refused: hidden_-1 claims" in read_in_little_memory(files.read)


@pytest.mark.parametrize("field", [2, 3])
def test_a_page_that_claims_more_bytes_than_its_footer_is_refused(files: Files, field: int) -> None:
    """Arrow would take them before it unfolds the page."""
    files.labels = forge_page(files.labels, lambda header: header.update({field: (5, HUGE)}))
    assert "labels is refused" in read_in_little_memory(files.read)


@pytest.mark.parametrize("claimed", [-1, 129, HUGE])
def test_a_page_that_claims_other_numbers_of_values_is_refused(plain: Files, claimed: int) -> None:
    def lie(header: dict[int, Any]) -> None:
        details = 5 if 5 in header else 7
        header[details][1][1] = 5, claimed

    plain.labels = forge_page(plain.labels, lie)
    assert "labels is refused" in read_in_little_memory(plain.read)


@pytest.mark.parametrize(
    ("field", "claimed"), [(9, -1), *((field, size) for field in (5, 6, 7, 11) for size in (-1, HUGE, 2**62))]
)
def test_a_footer_with_absurd_figures_of_a_column_is_refused(files: Files, field: int, claimed: int) -> None:
    files.labels = forge_footer(
        files.labels, lambda footer: column_metadata(footer, column=2).update({field: (6, claimed)})
    )
    assert "labels is" in read_in_little_memory(files.read)


@pytest.mark.parametrize("claimed", [-1, 0, 4, 2**62])
def test_a_footer_that_claims_other_numbers_of_rows_is_refused(files: Files, claimed: int) -> None:
    def lie(footer: dict[int, Any]) -> None:
        footer[3] = 6, claimed
        footer[4][1][0][3] = 6, claimed

    files.labels = forge_footer(files.labels, lie)
    assert "labels is" in str(read_in_little_memory(files.read))


def test_a_footer_of_many_row_groups_is_refused(files: Files) -> None:
    files.labels = forge_footer(files.labels, lambda footer: footer.update({4: (9, [{}] * 5000)}))
    assert "a list of 5,000, the most are 4,096" in read_in_little_memory(files.read)


def test_a_schema_of_many_levels_is_refused(files: Files) -> None:
    deep = {1: (5, 0), 3: (5, 0), 4: (thrift.BYTES, b"x"), 5: (5, 1)}
    files.labels = forge_footer(files.labels, lambda footer: footer.update({2: (9, [deep] * 4000 + footer[2][1])}))
    assert "labels is damaged" in read_in_little_memory(files.read)


@pytest.mark.parametrize("data", [b"\x1c" * 10_000, b"\x19\xfc" + b"\xff" * 20, b"\x15", b"\x19" * 10_000, b""])
def test_a_footer_that_is_no_struct_is_refused(files: Files, data: bytes) -> None:
    files.labels = b"PAR1" + bytes(20) + data + len(data).to_bytes(4, "little") + b"PAR1"
    assert "labels is damaged" in read_in_little_memory(files.read)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop(["label_ids"]),
        lambda table: table.append_column("more", pa.array([1, 2, 3])),
        lambda table: replaced(table, "sequence_id", table["sequence_id"].cast(pa.int32())),
        lambda table: replaced(table, "input_ids", table["input_ids"].cast(pa.list_(pa.int64()))),
        lambda table: replaced(table, "input_ids", table["sequence_id"]),
        lambda table: replaced(table, "soft_labels", pa.array(["a", None, None])),
        lambda table: table.rename_columns(["input_ids", *table.column_names[1:]]),
    ],
)
def test_columns_that_are_not_the_formats_are_refused(files: Files, change: Change) -> None:
    files.labels = forgery.rewrite(files.labels, change)
    with pytest.raises(UserError, match=r"labels is refused: its columns are .* they must be .*teacher-cache verify"):
        files.read()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("input_ids", of_first(lambda ids: [*ids[:-1], coded.VOCABULARY]), "token id that the vocabulary has not"),
        ("input_ids", of_first(lambda ids: [-1, *ids[1:]]), "token id that the vocabulary has not"),
        ("input_ids", of_first(lambda ids: []), "sequence that is empty or longer than 128"),
        ("input_ids", of_first(lambda ids: [1] * 129), "sequence that is empty or longer than 128"),
        ("input_ids", of_first(lambda ids: [None, *ids[1:]]), "missing"),
        ("input_ids", of_first(lambda ids: None), "missing"),
        ("label_ids", of_first(lambda ids: [*ids, 1]), "differ in number"),
        ("label_ids", lambda rows: [[*rows[0], *rows[1]], [], rows[2]], "differ in number"),
        ("label_positions", of_first(lambda places: [*places[:-1], 9]), "beyond their sequence"),
        ("kept_positions", of_first(lambda places: [*places[:-1], 65_535]), "beyond their sequence"),
        ("kept_positions", of_first(lambda places: places[::-1]), "out of order"),
        ("kept_positions", of_first(lambda places: [places[0], *places[:-1]]), "out of order"),
        ("kept_positions", of_first(lambda places: []), "coded targets are damaged"),
        ("soft_labels", of_first(lambda data: None), "missing"),
        ("soft_labels", of_first(lambda data: b""), "coded targets are damaged"),
        ("soft_labels", of_first(lambda data: b"\xff" * 4 + data[4:]), "coded targets are damaged"),
        ("soft_labels", of_first(lambda data: data + b"ab"), "coded targets are damaged"),
        ("sequence_id", of_first(lambda place: None), "missing"),
        ("document_id", of_first(lambda place: -1), "negative"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(
    files: Files, name: str, change: Callable[[list[Any]], Any], message: str
) -> None:
    files.labels = forgery.rewrite(files.labels, changed(name, change))
    with pytest.raises(UserError, match=rf"labels is (refused|damaged): .*{message}.*; run `teacher-cache verify`"):
        files.read()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("topk_logits", of_first(lambda logits: [float("nan"), *logits[1:]]), "not finite"),
        ("rest", of_first(lambda rests: [float("-inf"), *rests[1:]]), "not finite"),
        ("topk_ids", of_first(lambda ids: [-1, *ids[1:]]), "token id"),
        ("topk_ids", of_first(lambda ids: ids[1:]), "cannot reshape"),
        ("rest", of_first(lambda rests: [*rests, 0.0]), "cannot reshape"),
    ],
)
def test_uncoded_soft_labels_that_cannot_be_are_refused(
    plain: Files, name: str, change: Callable[[list[Any]], Any], message: str
) -> None:
    plain.labels = forgery.rewrite(plain.labels, changed(name, change))
    with pytest.raises(UserError, match=rf"labels is (refused|damaged): .*{message}"):
        plain.read()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("num_positions", lambda rows: [rows[0] + 1], "disagree about the kept positions"),
        ("num_positions", lambda rows: [None], "missing"),
        ("hidden_-1", lambda rows: [None], "missing"),
        ("hidden_-1", lambda rows: [b""], "coded targets are damaged"),
        ("hidden_-1", lambda rows: [b"\xff" * 4 + rows[0][4:]], "coded targets are damaged"),
        ("hidden_-1", lambda rows: [rows[0] * 2], "coded targets are damaged"),
    ],
)
def test_hidden_states_that_do_not_fit_their_labels_are_refused(
    files: Files, name: str, change: Callable[[list[Any]], Any], message: str
) -> None:
    files.hidden = forgery.rewrite(files.hidden, changed(name, change), row_group_rows=1)
    with pytest.raises(UserError, match=rf"hidden is (refused|damaged): .*{message}.*; run `teacher-cache verify`"):
        files.read()


def test_a_block_of_too_many_sequences_is_refused(files: Files) -> None:
    many = forgery.rewrite(files.labels, lambda table: pa.concat_tables([table] * 43), row_group_rows=129)
    files.labels = many
    with pytest.raises(UserError, match=r"labels is refused: sequence_id claims 129 values .* the most are 128"):
        files.read()


def test_a_block_of_too_few_sequences_is_refused(files: Files) -> None:
    """Readers find a sequence by its place in the file."""
    files.labels = forgery.rewrite(files.labels, lambda table: table, row_group_rows=2)
    with pytest.raises(UserError, match="labels is refused: block 0 has 2 rows, it must have 3"):
        files.read()


@pytest.mark.parametrize("claimed", [-1, 2**14 + 1, 10**18, 1.5, True, "6", None, [6], 5])
def test_a_hidden_size_that_cannot_be_is_refused(plain: Files, claimed: Any) -> None:
    table = pa.parquet.read_table(pa.BufferReader(plain.hidden))
    metadata = {"fingerprint": FLOAT.fingerprint, "codebook": None, "hidden_size": claimed}
    plain.hidden = parquet.write(table, metadata=metadata, row_group_rows=1)
    with pytest.raises(UserError, match=r"hidden is (refused|damaged)"):
        plain.read()


def test_an_encoding_that_grows_is_refused(files: Files) -> None:
    names = forgery.rewrite(
        files.labels, lambda table: table, use_dictionary=False, column_encoding={"soft_labels": "DELTA_BYTE_ARRAY"}
    )
    files.labels = names
    with pytest.raises(UserError, match=r"labels is refused: a page of soft_labels has encoding 7"):
        files.read()


def test_pages_are_held_against_the_footer() -> None:
    data = parquet.write(pa.table({"x": list(range(1000))}), metadata={}, row_group_rows=1000)
    file, _ = parquet.open_file(data, name="x")
    (chunk,) = file.groups[0]
    pages.check(file.source, chunk)
    for field in ("num_values", "num_bytes"):
        less = {**vars(chunk), field: getattr(chunk, field) // 2}
        with pytest.raises(UserError, match=r"pages of x claim .* its footer"):
            pages.check(file.source, pages.Chunk(**less))
    with pytest.raises(UserError, match="hold 1,000 of 1,001 values"):
        pages.check(file.source, pages.Chunk(**{**vars(chunk), "num_values": 1001}))
