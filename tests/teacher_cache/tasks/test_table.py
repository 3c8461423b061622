"""Tables with columns of the user's own."""

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard

from teacher_cache.errors import UserError
from teacher_cache.tasks.table import read_table
from teacher_cache.tasks.task import features, load_task, score
from tests.teacher_cache.tasks import tiny_tokenizers
from tests.teacher_cache.tasks.task_files import load, make_config, perfect

ROWS = [('say "hi", then', "1.5"), ("über\u2028uns 🎈", "-2")]
CSV = 'id,a,b\r\n7,"say ""hi"", then",1.5\r\n8,über\u2028uns 🎈,-2\r\n'
TSV = 'id\ta\tb\n7\tsay "hi", then\t1.5\n8\tüber\u2028uns 🎈\t-2\n'
JSONL = "\n".join(json.dumps({"id": 7, "a": a, "b": b}) for a, b in ROWS) + "\n\n"
CLASSES = {"layout": "table", "text": ["a"], "label": "b", "kind": "classification"}


@pytest.mark.parametrize(
    ("extension", "content"), [(".csv", CSV), (".tsv", TSV), (".jsonl", JSONL), (".ndjson", JSONL)]
)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_all_layouts_give_the_same(extension: str, content: str, compression: str, tmp_path: Path) -> None:
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression](content.encode())
    path = tmp_path / f"a{extension}{compression}"
    path.write_bytes(packed)
    table = read_table(str(path), ["b", "a"])
    assert table.columns == {"b": ["1.5", "-2"], "a": [text for text, _ in ROWS]}
    first = 1 if "json" in extension else 2
    assert table.place(1) == f"{path} line {first + 1}"


def test_a_quoted_field_may_hold_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'a,b\n"one\n\ntwo",x\n\nthree,y\n')
    table = read_table(str(tmp_path / "a.csv"), ["a", "b"])
    assert table.columns["a"] == ["one\n\ntwo", "three"]
    assert list(table.lines) == [4, 6]


def test_a_field_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"a,b\n{200_000 * 'x'},y\n")
    assert read_table(str(tmp_path / "a.csv"), ["a", "b"]).columns == {"a": [200_000 * "x"], "b": ["y"]}


class TestTasks:
    def test_labels_are_sorted_and_known_from_all_of_train(self, tmp_path: Path) -> None:
        train = "a,b\n" + "".join(f"text {row},{row % 3}\n" for row in range(9))
        files: dict[str, str | bytes] = {"train.csv": train, "dev.jsonl": '{"a": " x ", "b": 2}\n{"a": "y", "b": "0"}'}
        values = CLASSES | {"train": "train.csv", "dev": "dev.jsonl"}
        task = load(tmp_path, files, **values)
        assert (task.labels, task.metrics) == (("0", "1", "2"), ("accuracy", "macro_f1", "matthews"))
        assert list(task.dev) == [{"text": "x", "label": 2}, {"text": "y", "label": 0}]
        some = load(tmp_path, {}, **values, max_train_rows=2)
        assert (some.labels, some.train.num_rows) == (task.labels, 2)
        assert some.train[:] == load(tmp_path, {}, **values, max_train_rows=2).train[:] != task.train[:2]

    def test_regression_of_a_pair(self, tmp_path: Path) -> None:
        files: dict[str, str | bytes] = {
            "train.tsv": "a\tc\tb\nx\ty\t1e3\n",
            "dev.jsonl": '{"a": "x", "c": "y", "b": 1}\n{"a": "u", "c": "", "b": -0.5}\n',
        }
        task = load(
            tmp_path,
            files,
            layout="table",
            text=["a", "c"],
            label="b",
            kind="regression",
            train="train.tsv",
            dev="dev.jsonl",
        )
        assert (task.kind, task.labels, task.num_outputs) == ("regression", (), 1)
        assert list(task.train) == [{"text": "x", "text_pair": "y", "label": 1000.0}]
        assert task.dev["label"][:] == [1.0, -0.5]
        dev = features(task, "dev", tiny_tokenizers.make("wordpiece"))
        assert score(task, -perfect(task, dev), dev) == pytest.approx(
            dict.fromkeys(["mean", "pearson", "spearman"], -100)
        )

    @pytest.mark.s3
    def test_files_at_urls(self, s3: str) -> None:
        for name, rows in {"train.csv.gz": b"a,b\nx,0\ny,1\n", "dev.csv.gz": b"a,b\nx,0\n"}.items():
            with fsspec.open(f"{s3}/{name}", "wb") as file:
                file.write(gzip.compress(rows))
        config = make_config(**CLASSES, train=f"{s3}/train.csv.gz", dev=f"{s3}/dev.csv.gz")
        task = load_task("far", config)
        assert (task.train.num_rows, task.dev[0]) == (2, {"text": "x", "label": 0})
        assert [file.name for file in task.files] == [config.train, config.dev]
        missing = make_config(**CLASSES, train=f"{s3}/train.csv.gz", dev=f"{s3}/test.csv")
        with pytest.raises(UserError, match=r"^task far: .*test\.csv does not exist"):
            load_task("far", missing)

    @pytest.mark.parametrize(
        ("name", "train", "message"),
        [
            ("a.txt", "a,b\n", "its extension tells no layout; known are .csv, .tsv and .jsonl"),
            ("a.csv", "", "has no column 'a'; there are: none"),
            ("a.csv", "a,c\nx,y\n", "has no column 'b'; there are: a, c"),
            ("a.csv", "a,b\n", "holds no examples"),
            ("a.csv", "a,b\nx,y\nz\n", "line 3 has 1 columns, and the header has 2"),
            ("a.csv", 'a,b\n"x,y\nz,z\n', "line 3 is not CSV: unexpected end of data"),
            ("a.csv", 'a,b\n"x"y,z\n', "line 2 is not CSV"),
            ("a.csv", "a,b\nx,\n", "line 2: 'b' is ''; a label must be a text or a whole number"),
            ("a.csv", "a,b\nx,y\nz,y\n", "every 'b' is 'y', so that there is nothing to learn"),
            ("a.jsonl", '{"a": "x", "b": 1}\n[1]\n', "line 2 is of type list; write one JSON object a line"),
            ("a.jsonl", '{"a": "x"\n', "line 1 is not JSON"),
            ("a.jsonl", '{"a": "x", "c": 1}\n', "line 1 has no column 'b'; there are: a, c"),
            ("a.jsonl", '{"a": "x", "b": 0.5}\n', "line 1: 'b' is 0.5; a label must be a text or a whole number"),
            (
                "a.jsonl",
                '{"a": "\\ud800", "b": 1}\n{"a": "x", "b": 2}',
                "line 1: 'a' is not Unicode text",
            ),
            (
                "a.jsonl",
                '{"a": null, "b": 1}\n{"a": "x", "b": 2}',
                "line 1: 'a' is of type NoneType; it must be a string",
            ),
        ],
    )
    def test_wrong_files_are_named(self, name: str, train: str, message: str, tmp_path: Path) -> None:
        files: dict[str, str | bytes] = {name: train, "dev.csv": "a,b\nx,1\n"}
        with pytest.raises(UserError, match=rf"^task tiny: .*{name}.*{message}"):
            load(tmp_path, files, **CLASSES, train=name, dev="dev.csv")

    def test_labels_of_dev_are_known_to_train(self, tmp_path: Path) -> None:
        files: dict[str, str | bytes] = {"train.csv": "a,b\nx,0\ny,1\n", "dev.csv": "a,b\nx,0\ny,2\n"}
        with pytest.raises(UserError, match=r"dev\.csv line 3: 'b' is '2'; the task's labels are 0, 1"):
            load(tmp_path, files, **CLASSES, train="train.csv", dev="dev.csv")


class TestHub:
    """Of folders, which `datasets` reads as it reads the hub's."""

    def make(self, folder: Path, files: dict[str, str], **values: Any) -> Any:
        for name, content in files.items():
            (folder / name).write_text(content)
        return load_task("tiny", make_config(**(CLASSES | {"hub": str(folder)} | values)))

    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))

    @pytest.mark.parametrize("dev", ["validation", "test"])
    def test_a_folder_of_files(self, dev: str, tmp_path: Path) -> None:
        task = self.make(tmp_path, {"train.csv": 'a,b,c\n"x, y",no,1\nz,yes,2\n', f"{dev}.csv": "a,b,c\nx,yes,3\n"})
        assert list(task.train) == [{"text": "x, y", "label": 0}, {"text": "z", "label": 1}]
        assert (list(task.dev), task.labels, task.files) == ([{"text": "x", "label": 1}], ("no", "yes"), ())

    def test_labels_are_the_data_sets_names(self, tmp_path: Path) -> None:
        from datasets import ClassLabel, Dataset, Features, Value

        types = Features({"a": Value("string"), "b": ClassLabel(names=["yes", "no"])})
        for split, labels in {"train": [0, 1], "test": [1, -1]}.items():
            Dataset.from_dict({"a": ["x", "y"], "b": labels}, types).to_parquet(tmp_path / f"{split}.parquet")
        with pytest.raises(UserError, match="split test row 1: 'b' is None; a label must be"):
            self.make(tmp_path, {})
        Dataset.from_dict({"a": ["x"], "b": [0]}, types).to_parquet(tmp_path / "validation.parquet")
        task = self.make(tmp_path, {})
        assert (task.labels, task.train["label"][:], task.dev["label"][:]) == (("no", "yes"), [1, 0], [1])

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"train.csv": "a,b\nx,1\n"}, "has the splits train; needed are train and one of validation, dev, test"),
            ({"train.csv": "a,c\nx,1\n", "test.csv": "a,c\nx,1\n"}, "split train has no column 'b'; there are: a, c"),
            ({}, "cannot be loaded .*; check hub and subset, the network and HF_TOKEN; or name its files"),
        ],
    )
    def test_what_is_missing_is_named(self, files: dict[str, str], message: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"^task tiny: .*{message}"):
            self.make(tmp_path, files)

    def test_a_hub_that_cannot_be_reached(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"the data set 'nyu-mll/glue' cannot be loaded .*Offline"):
            self.make(tmp_path, {}, hub="nyu-mll/glue", subset="cola")
