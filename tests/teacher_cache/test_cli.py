"""Both command lines: exit statuses, results as text and JSON, one message for a mistake."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import student_train.cli
import teacher_cache.cli
from teacher_cache import open_cache
from teacher_cache.format import attempts
from teacher_cache.storage.store import Store
from teacher_cache.verify import verify
from tests import families

MAINS = {"teacher-cache": teacher_cache.cli.main, "student-train": student_train.cli.main}


def write_config(folder: Path, **changes: Any) -> str:
    """A cache's YAML file with its teacher and corpus beside it; each keyword replaces a value."""
    rng = random.Random(0)
    documents = [" ".join(rng.choices(families.WORDS, k=rng.randint(4, 20))) for _ in range(30)]
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    values = {
        "cache": str(folder / "cache"),
        "corpus": {"paths": [str(folder / "*.txt")], "sequence_length": 24},
        "teacher": {"model": str(families.save_pretrained(folder / "teacher"))},
        "views": 1,
        "unit_sequences": 10,
        "execution": {"num_workers": 0},
    }
    path = folder / "cache.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return str(path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("built")
    assert teacher_cache.cli.main(["build", write_config(folder), "--json"]) == 0
    return str(folder / "cache")


@pytest.fixture
def config(tmp_path: Path) -> str:
    return write_config(tmp_path)


def lines_of_error(captured: Any) -> list[str]:
    """Of the one message on standard error; nothing on standard output."""
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err
    return str(captured.err).removeprefix("error: ").splitlines()


class TestBuild:
    def test_it_prints_what_it_did(self, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert teacher_cache.cli.main(["build", config]) == 0
        printed = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()}
        cache = open_cache(str(tmp_path / "cache"))
        assert printed["cache"] == cache.url
        assert printed["fingerprint"] == cache.fingerprint
        assert printed["num sequences"] == "30"
        assert printed["num units built"] == "3"

    def test_json_is_all_of_standard_output(self, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert teacher_cache.cli.main(["build", config, "--json"]) == 0
        captured = capsys.readouterr()
        result = json.loads(captured.out)
        assert (result["num_sequences"], result["num_views"], result["num_units_built"]) == (30, 1, 3)
        assert "view 0" not in captured.err, "no progress bar beside JSON"

    def test_overrides_may_stand_behind_options(self, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert teacher_cache.cli.main(["build", config, "views=2", "--json", "keep.unmasked=1"]) == 0
        assert json.loads(capsys.readouterr().out)["num_views"] == 2

    @pytest.mark.parametrize("words", [["build", "c.yaml", "--fast"], ["info", "url", "views=2"]])
    def test_what_no_command_takes_is_refused(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            teacher_cache.cli.main(words)
        assert f"unrecognized arguments: {words[-1]}" in capsys.readouterr().err

    def test_overrides_go_before_the_file(self, config: str, tmp_path: Path) -> None:
        overrides = ["keep.unmasked=1", "soft_labels.temperatures=[3]", f"cache={tmp_path}/other", "views=2"]
        assert teacher_cache.cli.main(["build", config, *overrides]) == 0
        cache = open_cache(f"{tmp_path}/other")
        assert (cache.num_views, cache.spec.keep.unmasked, cache.spec.soft_labels.temperatures) == (2, 1.0, (3.0,))
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("keep.unmaskd=1", "  keep.unmaskd: unknown key; valid keys here: masked, unmasked"),
            ("veiws=1", "  veiws: unknown key; valid keys here: cache, objective, corpus, teacher, masking, views, "),
            ("views=0", "  views: Input should be greater than 0 (got 0)"),
            ("masking.policy=foo", "  masking.policy: Input should be 'uniform', 'rare' or 'strided' (got 'foo')"),
            ("masking.mask_share=0.5", "must be 1, they are 0.7"),
            ("keep={masked: 0, unmasked: 0}", "nothing would be cached; raise one of them"),
            ("execution.num_workers=[3, 2]", "num_workers must be [min, max] with min <= max"),
            ("hidden.layers=[]", "write code: none for no hidden states"),
        ],
    )
    def test_a_refused_value_is_named_and_nothing_written(
        self, override: str, message: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert teacher_cache.cli.main(["build", config, override]) == 2
        first, *refused = lines_of_error(capsys.readouterr())
        assert first == f"{config} is refused:"
        assert message in refused[0]
        assert not (tmp_path / "cache").exists()

    def test_all_refused_values_come_in_one_message(self, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert teacher_cache.cli.main(["build", config, "views=0", "corpus.packing=loose", "x=1"]) == 2
        refused = lines_of_error(capsys.readouterr())[1:]
        assert [line.split(":")[0].strip() for line in sorted(refused)] == ["corpus.packing", "views", "x"]

    def test_a_bad_file_of_the_corpus(self, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "corpus.txt").write_bytes(b"\xff")
        assert teacher_cache.cli.main(["build", config, "--json"]) == 2
        assert f"{tmp_path}/corpus.txt is not UTF-8 at byte 0" in lines_of_error(capsys.readouterr())[0]


class TestMistakesOfBoth:
    @pytest.mark.parametrize(("program", "verb"), [("teacher-cache", "build"), ("student-train", "run")])
    @pytest.mark.parametrize(
        ("content", "overrides", "message"),
        [
            (None, [], "configuration file {} does not exist"),
            ("- a\n- b\n", [], "configuration {} must be a mapping of keys to values"),
            ("a: [1\n", [], "configuration {} cannot be read: "),
            ("a: ${oc.env:NOT_SET_ANYWHERE}\n", [], "configuration {} cannot be read: "),
            ("{}\n", ["views"], "override 'views' must look like key.path=value"),
            ("a: [1]\n", ["a.0=2"], "override 'a.0=2' cannot be applied: "),
            ("{}\n", ["a=[1"], "override 'a=[1' cannot be applied: "),
            ("{}\n", [], "{} is refused:"),
        ],
    )
    def test_an_unusable_configuration(
        self,
        program: str,
        verb: str,
        content: str | None,
        overrides: list[str],
        message: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = tmp_path / "config.yaml"
        if content is not None:
            path.write_text(content)
        assert MAINS[program]([verb, str(path), *overrides]) == 2
        assert lines_of_error(capsys.readouterr())[0].startswith(message.format(path))

    @pytest.mark.parametrize("program", MAINS)
    @pytest.mark.parametrize("arguments", [[], ["fly"], ["--fly"]])
    def test_an_unknown_command_shows_the_usage(
        self, program: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as status:
            MAINS[program](arguments)
        assert status.value.code == 2
        assert f"usage: {program}" in capsys.readouterr().err


class TestStudent:
    def test_a_run_ends_with_its_result_as_json(
        self, built: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "student.yaml"
        path.write_text(yaml.safe_dump({"caches": [built], "output": str(tmp_path / "run"), "steps": 1}))
        arguments = ["run", str(path), "batch_sequences=10", "execution.num_workers=0", "--json"]
        assert student_train.cli.main(arguments) == 0
        assert isinstance(json.loads(capsys.readouterr().out), dict)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("loss.temprature=2", "  loss.temprature: unknown key; valid keys here: temperature, weights, soft_labels"),
            ("epochs=3", "  give epochs or steps, not both"),
        ],
    )
    def test_a_refused_value_is_named(
        self, override: str, message: str, built: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "student.yaml"
        path.write_text(yaml.safe_dump({"caches": [built], "output": str(tmp_path / "run"), "steps": 1}))
        assert student_train.cli.main(["run", str(path), override]) == 2
        assert message in lines_of_error(capsys.readouterr())[1]
        assert not (tmp_path / "run").exists()

    def test_a_cache_that_is_none(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "student.yaml"
        path.write_text(yaml.safe_dump({"caches": [f"{tmp_path}/none"], "output": str(tmp_path / "run"), "steps": 1}))
        assert student_train.cli.main(["run", str(path), "execution.num_workers=0"]) == 2
        assert lines_of_error(capsys.readouterr())[0].startswith(f"{tmp_path}/none is no teacher cache")


class TestLooking:
    @pytest.mark.parametrize("command", ["info", "verify", "show"])
    def test_json_parses_and_text_is_not_json(
        self, command: str, built: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert teacher_cache.cli.main([command, built, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
        assert teacher_cache.cli.main([command, built]) == 0
        with pytest.raises(json.JSONDecodeError):
            json.loads(capsys.readouterr().out)

    def test_info_counts_files_and_names_the_first(
        self, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(4):
            shutil.copy(tmp_path / "corpus.txt", tmp_path / f"more-{number}.txt")
        assert teacher_cache.cli.main(["build", config, "--json"]) == 0
        names = [f"{tmp_path}/{name}" for name in ("corpus.txt", *(f"more-{number}.txt" for number in range(4)))]
        capsys.readouterr()
        assert teacher_cache.cli.main(["info", f"{tmp_path}/cache"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("corpus ")]
        assert line.split("  ")[-1].strip() == f"5 files: {', '.join(names[:3])}, …"
        assert teacher_cache.cli.main(["info", f"{tmp_path}/cache", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["notes"]["corpus"] == names

    def test_show_takes_view_start_and_rows(self, built: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert teacher_cache.cli.main(["show", built, "--view", "0", "--start", "9", "--rows", "2", "--json"]) == 0
        assert [row["sequence_id"] for row in json.loads(capsys.readouterr().out)] == [9, 10]

    @pytest.mark.parametrize("option", ["--view", "--start", "--rows"])
    def test_negative_numbers_are_refused(self, option: str, built: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as status:
            teacher_cache.cli.main(["show", built, f"{option}=-1"])
        assert status.value.code == 2
        assert f"argument {option}: invalid natural_number value: '-1'" in capsys.readouterr().err

    def test_verify_may_ask_the_teacher(self, built: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert teacher_cache.cli.main(["verify", built, "--teacher", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["ok"]
        assert 0 < result["teacher"]["logit"] < 0.032, "the packed code rounds to a sixteenth"

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_verify_of_a_damaged_cache_ends_with_1_and_names_it(
        self, options: list[str], built: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cache = shutil.copytree(built, tmp_path / "cache")
        labels = next(cache.glob("shards/00000/*.labels.parquet"))
        labels.write_bytes(labels.read_bytes() + b"!")
        assert teacher_cache.cli.main(["verify", str(cache), *options]) == 1
        assert f"{labels} is damaged" in capsys.readouterr().out

    @pytest.mark.parametrize("command", ["info", "verify", "show"])
    def test_what_is_no_cache_is_refused(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert teacher_cache.cli.main([command, str(tmp_path)]) == 2
        message = f"{tmp_path} is no teacher cache: it has no spec.json"
        assert lines_of_error(capsys.readouterr()) == [message]


class TestProcesses:
    @pytest.mark.parametrize(("module", "verb"), [("teacher_cache.cli", "build"), ("student_train.cli", "run")])
    def test_a_missing_configuration_ends_with_2(self, module: str, verb: str, tmp_path: Path) -> None:
        command = [sys.executable, "-m", module, verb, f"{tmp_path}/none.yaml"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert (done.stdout, done.stderr) == ("", f"error: configuration file {tmp_path}/none.yaml does not exist\n")

    @pytest.mark.parametrize(
        ("interrupt", "workers"),
        [
            (signal.SIGINT, 0),
            (signal.SIGTERM, 0),
            pytest.param(signal.SIGTERM, 1, marks=pytest.mark.ray),
        ],
    )
    def test_an_interrupt_ends_quickly_and_the_same_command_goes_on(
        self, interrupt: signal.Signals, workers: int, tmp_path: Path
    ) -> None:
        config = write_config(tmp_path, unit_sequences=1, views=2, execution={"num_workers": workers})  # 60 units
        arguments = ["build", config, "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "teacher_cache.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("cache/commits/00000/*.json")):
            assert process.poll() is None, process.stderr
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(interrupt)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out) == (130, "")
        message = r"interrupted: \d+ of 30 units of view 0 are committed; run the same command again to go on\n$"
        assert re.search(message, err), err
        assert not attempts.marks(Store(f"{tmp_path}/cache"), 0), "what was under way is no failed attempt"
        committed = {path: path.read_bytes() for path in tmp_path.glob("cache/commits/*/*.json")}
        assert 0 < len(committed) < 60
        assert open_cache(f"{tmp_path}/cache").num_views < 2
        assert teacher_cache.cli.main(arguments) == 0
        assert open_cache(f"{tmp_path}/cache").num_views == 2
        assert {path: path.read_bytes() for path in committed} == committed, "no unit is done twice"

    @pytest.mark.parametrize("num_builders", [2, 4])
    def test_builders_at_once_make_one_cache(self, num_builders: int, tmp_path: Path) -> None:
        config = write_config(tmp_path, unit_sequences=1, views=2)
        command = [sys.executable, "-m", "teacher_cache.cli", "build", config, "--json"]
        builders = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(num_builders)
        ]
        ended = [builder.communicate() for builder in builders]
        assert [builder.returncode for builder in builders] == [0] * num_builders, ended
        waiting = r"(units of view [01] may be under way at another builder: waiting for up to \d+ s\n)*"
        assert all(re.fullmatch(waiting, err) for _, err in ended), f"libraries are quiet: {ended}"
        assert len({json.loads(out)["num_bytes"] for out, _ in ended}) == 1
        cache = open_cache(f"{tmp_path}/cache")
        assert [[shard.unit for shard in cache.manifest(view).shards] for view in (0, 1)] == [list(range(30))] * 2
        assert verify(cache).ok
        assert not list(tmp_path.glob("cache/attempts/*/*.json"))


def test_views_are_added_on_the_command_line(built: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = shutil.copytree(built, tmp_path / "cache")
    assert teacher_cache.cli.main(["extend", str(cache), "--views", "2", "num_workers=0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_views"] == 2
    assert open_cache(str(cache)).num_views == 2


def test_damage_is_mended_on_the_command_line(built: str, tmp_path: Path) -> None:
    cache = shutil.copytree(built, tmp_path / "cache")
    next(cache.glob("shards/00000/*.labels.parquet")).unlink()
    assert teacher_cache.cli.main(["verify", str(cache)]) == 1
    assert teacher_cache.cli.main(["verify", str(cache), "--repair", "num_workers=0"]) == 0
    assert teacher_cache.cli.main(["verify", str(cache)]) == 0


def test_an_execution_that_is_none_is_refused(built: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert teacher_cache.cli.main(["extend", built, "--views", "2", "workers=0"]) == 2
    (first, second) = lines_of_error(capsys.readouterr())
    assert first == "command line is refused:"
    assert second.startswith("  workers: unknown key; valid keys here: num_workers, ")
