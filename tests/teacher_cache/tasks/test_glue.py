"""GLUE's nine tasks, in the layout in which they are handed out."""

import logging
from pathlib import Path

import pytest

from teacher_cache.errors import UserError
from teacher_cache.tasks.task import features, score
from tests.teacher_cache.tasks import tiny_tokenizers
from tests.teacher_cache.tasks.task_files import load, perfect

NLI = "index\tsentence1\tsentence2\tlabel\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
STS_B = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
)
MNLI_TRAIN = f"{MNLI}\tsentence1\tsentence2\tlabel1\tgold_label\n"
MNLI_DEV = f"{MNLI}\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
PARSES = "0\t1\t2\tfiction\t( a )\t( b )\t(a)\t(b)"

TASKS = {
    "CoLA": (
        'gj04\t1\t\tHe said "no.\ngj04\t0\t*\tNo he said. \n',
        [{"text": 'He said "no.', "label": 1}, {"text": "No he said.", "label": 0}],
        ["matthews"],
    ),
    "SST-2": (
        "sentence\tlabel\na fine film \t1\nit 's \" awful \t0\n",
        [{"text": "a fine film", "label": 1}, {"text": "it 's \" awful", "label": 0}],
        ["accuracy"],
    ),
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
        '1\t7\t8\t"He ran.\tRan he.\r\n0\t7\t9\tHe ran.\tShe did."\r\n',
        [
            {"text": '"He ran.', "text_pair": "Ran he.", "label": 1},
            {"text": "He ran.", "text_pair": 'She did."', "label": 0},
        ],
        ["mean", "accuracy", "f1"],
    ),
    "STS-B": (
        f"{STS_B}0\tcaptions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane.\tAn air plane.\t5.000\n"
        "1\tcaptions\tMSRvid\t2012test\t0004\tnone\tnone\tA man.\tA flute.\t0.750\n",
        [
            {"text": "A plane.", "text_pair": "An air plane.", "label": 5.0},
            {"text": "A man.", "text_pair": "A flute.", "label": 0.75},
        ],
        ["mean", "pearson", "spearman"],
    ),
    "QQP": (
        f'{QQP}1\t2\t3\tWhy "?\tHow?\t0\n4\t5\t6\tWhy?\n7\t8\t9\tWho\u2028 is it?\t\t1\n',
        [
            {"text": 'Why "?', "text_pair": "How?", "label": 0},
            {"text": "Who\u2028 is it?", "text_pair": "", "label": 1},
        ],
        ["mean", "accuracy", "f1"],
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel\n0\tWhen?\tIn 1900.\tentailment\n1\tWho?\tIn 1900.\tnot_entailment\n",
        [
            {"text": "When?", "text_pair": "In 1900.", "label": 0},
            {"text": "Who?", "text_pair": "In 1900.", "label": 1},
        ],
        ["accuracy"],
    ),
    "RTE": (
        f"{NLI}0\tNo one ran.\tOne ran.\tnot_entailment\n1\tHe ran far.\tHe ran.\tentailment\n",
        [
            {"text": "No one ran.", "text_pair": "One ran.", "label": 1},
            {"text": "He ran far.", "text_pair": "He ran.", "label": 0},
        ],
        ["accuracy"],
    ),
    "WNLI": (
        f"{NLI}0\tIt fell on it.\tIt fell.\t1\n1\tIt fell on it.\tIt rose.\t0\n",
        [
            {"text": "It fell on it.", "text_pair": "It fell.", "label": 1},
            {"text": "It fell on it.", "text_pair": "It rose.", "label": 0},
        ],
        ["accuracy"],
    ),
}


@pytest.mark.parametrize("layout", TASKS)
def test_files_are_read_as_they_are_handed_out(layout: str, tmp_path: Path) -> None:
    content, examples, metrics = TASKS[layout]
    last_row = content.strip("\n").split("\n")[-1]
    task = load(tmp_path, {"train.tsv": content, "dev.tsv": f"{content}{last_row}\n"}, layout=layout)
    assert list(task.train) == examples
    assert list(task.dev) == [*examples, examples[-1]]
    assert list(task.metrics) == metrics
    assert [file.name for file in task.files] == [str(tmp_path / name) for name in ("train.tsv", "dev.tsv")]
    dev = features(task, "dev", tiny_tokenizers.make("wordpiece"))
    assert score(task, perfect(task, dev), dev) == pytest.approx(dict.fromkeys(metrics, 100.0))


def test_mnli_is_scored_matched_and_mismatched(tmp_path: Path) -> None:
    dev = "".join(f"{PARSES}\ta\tb\tx\tx\tx\tx\tx\t{label}\n" for label in ("neutral", "entailment", "contradiction"))
    files = {
        "train.tsv": f"{MNLI_TRAIN}{PARSES}\ta\tb\tx\tneutral\n",
        "dev_matched.tsv": MNLI_DEV + dev,
        "dev_mismatched.tsv": MNLI_DEV + dev[: dev.index("\n") + 1],
    }
    task = load(tmp_path, files, layout="MNLI")
    assert task.labels == ("contradiction", "entailment", "neutral")
    assert task.dev["label"][:] == [2, 1, 0, 2]
    dev_features = features(task, "dev", tiny_tokenizers.make("wordpiece"))
    predictions = perfect(task, dev_features)
    predictions[0] = [0, 1, 0]
    found = score(task, predictions, dev_features)
    assert list(found) == list(task.metrics)
    assert found == pytest.approx({"mean": 250 / 3, "accuracy_matched": 200 / 3, "accuracy_mismatched": 100})

    named = load(tmp_path, {}, layout="MNLI", train="train.tsv", dev="dev_matched.tsv")
    assert (named.metrics, named.dev.num_rows, named.dev.column_names) == (
        ("accuracy",),
        3,
        ["text", "text_pair", "label"],
    )


def test_rows_that_qqp_lacks_columns_of_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = TASKS["QQP"][0]
    with caplog.at_level(logging.WARNING):
        load(tmp_path, {"train.tsv": content, "dev.tsv": content + "7\t8\n"}, layout="QQP")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / name}: rows left out because they lack columns: {count}"
        for name, count in {"train.tsv": 1, "dev.tsv": 2}.items()
    ]


@pytest.mark.parametrize(
    ("layout", "train", "message"),
    [
        ("SST-2", "text\tlabel\na\t1\n", r"train\.tsv has no column 'sentence'; there are: text, label"),
        ("SST-2", "", r"train\.tsv has no column 'sentence'; there are: none"),
        ("SST-2", "sentence\tlabel\n", r"train\.tsv holds no examples"),
        ("SST-2", "sentence\tlabel\na\t0\nb\n", r"train\.tsv line 3 has 1 columns, and the header has 2"),
        ("SST-2", "sentence\tlabel\na\tb\t0\n", r"train\.tsv line 2 has 3 columns, and the header has 2"),
        ("SST-2", "sentence\tlabel\na\t2\n", r"train\.tsv line 2: 'label' is '2'; the task's labels are 0, 1"),
        ("SST-2", "sentence\tlabel\na\t\n", r"train\.tsv line 2: 'label' is ''; a label must be"),
        ("RTE", f"{NLI}0\ta\tb\t1\n", "'label' is '1'; the task's labels are entailment, not_entailment"),
        ("STS-B", STS_B + "0\t" * 9 + "good\n", "line 2: 'score' is 'good'; a regression's label must be a number"),
        ("STS-B", STS_B + "0\t" * 9 + "nan\n", "line 2: 'score' is 'nan'; a regression's label must be a number"),
        ("SST-2", b"sentence\tlabel\n\xff\t1\n", r"train\.tsv is not UTF-8 at byte 15"),
        ("QQP", QQP + "1\t2\t3\ta\tb\t1\t1\n", r"train\.tsv line 2 has 7 columns, and the header has 6"),
    ],
)
def test_wrong_files_are_named(layout: str, train: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^task tiny: .*{message}"):
        load(tmp_path, {"train.tsv": train, "dev.tsv": "other"}, layout=layout)


def test_missing_files_and_train_as_dev_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^task tiny: .*train\.tsv does not exist"):
        load(tmp_path, {}, layout="RTE")
    content = TASKS["RTE"][0]
    with pytest.raises(UserError, match=r"dev\.tsv holds the same bytes as .*train\.tsv"):
        load(tmp_path, {"train.tsv": content, "dev.tsv": content}, layout="RTE")
    with pytest.raises(UserError, match="carries a query"):
        load(tmp_path, {}, layout="RTE", folder="https://host/RTE?signature=x")
