"""`teacher-cache fidelity`: text, JSON, a figure, and one message for a mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from teacher_cache import UserError
from teacher_cache.cli import main
from teacher_cache.fidelity import NUM_POSITIONS, report
from tests import caches

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("command") / "cache"
    codes: Any = {"soft_labels": {"code": "float32"}, "hidden": {"code": "float16"}}
    return caches.build_cache(folder, keep={"masked": 1.0, "unmasked": 0.0}, **codes).url


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message on standard error."""
    assert main(["fidelity", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_json_is_all_of_standard_output(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fidelity", cache, "--positions", "64", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["cache"], result["num_positions"]) == (cache, 64)
    assert [row["temperature"] for row in result["temperatures"]] == [1, 2, 4]
    assert "positions" not in captured.err, "no progress bar beside JSON"


def test_text_tells_all_figures(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fidelity", cache, "--positions", "64", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(["fidelity", cache, "--positions", "64"]) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    for row in result["temperatures"]:
        errors = (row["calibration_error_rebuilt"], row["calibration_error_exact"])
        assert [f"{row['temperature']:g}", *(f"{value:.3g}" for value in (row["kl"], *errors))] in lines
        for gradient in row["gradients"]:
            error, angle = f"{gradient['error']:.3g}", f"{gradient['angle_degrees']:.3g}"
            assert [f"{row['temperature']:g}", gradient["student"], "64", error, angle] in lines
    assert ["-1", f"{result['cosines'][0]['masked']:.6f}", "none", "read", "1.000000"] in lines
    assert ["soft", "labels", f"{result['bytes_per_kept_position']['soft_labels']:,.1f}"] in lines
    assert "asking the teacher" in captured.err
    assert "comparing rows" in captured.err


def test_notes_come_last(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fidelity", cache]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("note: the cache holds ")
    assert last.endswith(f" masked positions of the {NUM_POSITIONS:,} asked for")


def test_the_figure_is_a_png(cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fidelity.png"
    assert main(["fidelity", cache, "--json", "--plot", str(path)]) == 0
    json.loads(capsys.readouterr().out)
    assert path.read_bytes().startswith(PNG)
    assert path.stat().st_size > 10_000


def test_a_comparison_of_nothing_can_be_drawn_and_told(tmp_path: Path) -> None:
    """A bucket cache with other temperatures than those that are compared."""
    result = {
        "cache": "a",
        "fingerprint": "b",
        "soft_labels": "bucket",
        "num_positions": 64,
        "num_sequences": 8,
        "temperatures": [],
        "cosines": [],
        "bytes_per_kept_position": {"hidden": 0.0, "soft_labels": 9.0, "inputs": 1.0, "overhead": 0.0, "total": 10.0},
        "notes": ["left out"],
    }
    report.plot(result, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    told = report.render(result)
    assert "gradient" not in told
    assert told.endswith("note: left out")


@pytest.mark.parametrize("positions", ["0", "3", "63"])
def test_too_few_positions(positions: str, cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = f"positions is {positions}, at least 64 are needed to measure anything: ask for more"
    assert message in refused([cache, "--positions", positions], capsys)


def test_positions_that_are_no_number(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["fidelity", cache, "--positions", "many"])
    assert status.value.code == 2
    assert "argument --positions: invalid natural_number value: 'many'" in capsys.readouterr().err


def test_what_is_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path} is no teacher cache: it has no spec.json" in refused([str(tmp_path)], capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.pdf", "is no name of a PNG file; end it with .png"), ("no/a.png", "is in a folder that does not exist; make")],
)
def test_a_figure_that_cannot_be_written_is_refused_before_any_work(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused([f"{tmp_path}/no-cache", "--plot", f"{tmp_path}/{name}"], capsys)
    assert f"--plot {tmp_path}/{name} {message}" in said


def test_a_figure_that_fails_in_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    empty = {"temperatures": [], "bytes_per_kept_position": {"hidden": 1.0, "total": 1.0}}
    with pytest.raises(UserError, match=r"--plot .*a\.png cannot be written: .*Is a directory"):
        report.plot(empty | {"cache": "a", "num_positions": 0, "soft_labels": "replay"}, str(tmp_path / "a.png"))
