"""A plan against the build that follows it, and the command."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.bench.plan import measured_bytes
from teacher_cache.cli import main
from teacher_cache.config import CacheSpec
from teacher_cache.inspect import info
from teacher_cache.pipeline import build
from teacher_cache.plan.plan import Plan, plan
from teacher_cache.shell.settings import to_dict
from tests import caches, families

CASES: dict[str, dict[str, Any]] = {
    "default codes": {"views": 2, "unit_sequences": 100},
    "rare masking, floats, two layers": {
        "masking": {"policy": "rare", "rate": 0.3},
        "soft_labels": {"code": "float32", "top_k": 4},
        "hidden": {"code": "float16", "layers": [2, -1]},
        "views": 2,
        "unit_sequences": 64,
    },
    "no hidden states, small units, packed": {
        "hidden": {"code": "none"},
        "unit_sequences": 32,
        "corpus": {"sequence_length": 24, "packing": "full"},
    },
}


def spec_of(folder: Path, case: str) -> CacheSpec:
    changes = dict(CASES[case])
    if corpus := changes.pop("corpus", None):
        changes["corpus"] = corpus | {"paths": [str(folder / "cache.txt")]}
    return caches.make_spec(folder / "cache", num_documents=400, **changes)


@pytest.fixture(scope="module", params=CASES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, str]:
    """A plan, and the cache that was built after it."""
    spec = spec_of(tmp_path_factory.mktemp("plan"), request.param)
    planned = plan(spec, progress=False)
    assert not Path(spec.cache).exists()
    build(spec, progress=False)
    return planned, spec.cache


class TestAgainstABuild:
    def test_counts_are_exact(self, both: tuple[Plan, str]) -> None:
        planned, cache = both
        views = info(cache)["views"]
        assert planned.corpus.known == "counted"
        assert planned.num_views == len(views)
        assert planned.num_units == views[0]["num_shards"]
        assert planned.corpus.num_sequences == views[0]["num_sequences"]
        assert planned.corpus.num_tokens == views[0]["num_tokens"]
        assert planned.num_positions == sum(view["num_tokens"] for view in views)
        assert planned.num_labels == sum(view["num_labels"] for view in views)
        assert planned.num_kept == sum(view["num_kept"] for view in views)
        assert planned.num_objects == sum(1 for path in Path(cache).rglob("*") if path.is_file())

    def test_bytes_are_near(self, both: tuple[Plan, str]) -> None:
        planned, cache = both
        measured = measured_bytes(cache)
        for name, num_bytes in asdict(planned.sizes).items():
            assert num_bytes == pytest.approx(measured[name], rel=0.05), name
        assert planned.num_bytes == pytest.approx(sum(measured.values()), rel=0.02)

    def test_figures_fit_together(self, both: tuple[Plan, str]) -> None:
        planned, _ = both
        shards = planned.sizes.labels + planned.sizes.hidden
        assert planned.num_bytes == sum(asdict(planned.sizes).values())
        assert planned.bytes_per_token == pytest.approx(shards / planned.num_positions)
        assert planned.bytes_per_kept_position == pytest.approx(shards / planned.num_kept)
        assert planned.build_s == pytest.approx(
            planned.work.teacher_s + planned.work.encode_s + planned.work.codebook_s
        )
        assert planned.wall_s > planned.build_s
        ways = [epoch.way for epoch in planned.student_epochs]
        assert ways == (["replay", "bucket"] if planned.sizes.hidden else ["bucket"])


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Without a codebook, which takes longest."""
    codes: dict[str, Any] = {"soft_labels": {"code": "float32"}, "hidden": {"code": "float16"}}
    path = tmp_path / "cache.yaml"
    path.write_text(yaml.safe_dump(to_dict(caches.make_spec(tmp_path / "cache", num_documents=200, **codes))))
    return str(path)


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert "tokenising" not in captured.err, "no progress bar beside JSON"
    found: dict[str, Any] = json.loads(captured.out)
    return found


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["plan", *arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    before, error, message = str(captured.err).rpartition("error: ")
    assert error
    assert "error" not in before, "nothing but the bar of a model that was loaded"
    return message


class TestCommand:
    def test_text_tells_sizes_times_and_a_verdict(self, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plan", config]) == 0
        text = capsys.readouterr().out
        assert "(counted)" in text
        assert "none given (--prices FILE)" in text
        assert "replay: " in text
        for part in ("labels", "hidden", "sequences", "codebook", "teacher", "manifests and commits"):
            assert f"\n{part} " in text
        assert "keep.unmasked=0" in text

    def test_nothing_is_written(self, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = sorted(tmp_path.rglob("*"))
        told([config], capsys)
        assert sorted(tmp_path.rglob("*")) == before

    def test_prices_add_money(self, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        prices = {
            "currency": "EUR",
            "device_hour": 2,
            "storage_gb_month": 1,
            "puts_1000": 1,
            "gets_1000": 1,
            "egress_gb": 0,
        }
        (tmp_path / "prices.yaml").write_text(yaml.safe_dump(prices))
        arguments = ["plan", config, "--prices", str(tmp_path / "prices.yaml")]
        found = told(arguments[1:], capsys)
        price = found["build_price"]
        assert price["devices"] == pytest.approx(found["build_s"] / 3600 * 2)
        assert price["storage_month"] == pytest.approx(found["num_bytes"] / 1e9)
        assert price["puts"] == pytest.approx(found["num_objects"] / 1000)
        assert main(arguments) == 0
        assert "EUR a month" in capsys.readouterr().out

    def test_a_given_speed_stretches_every_time(self, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        found = told([config, "--teacher-tokens-per-s", "7"], capsys)
        assert found["is_speed_given"]
        assert found["tokens_per_s"] == pytest.approx(7)
        done = found["work"]
        assert done["teacher_s"] + done["encode_s"] == pytest.approx(found["num_positions"] / 7)

    def test_a_sample_stands_for_a_larger_corpus(self, config: str, capsys: pytest.CaptureFixture[str]) -> None:
        small = told([config], capsys)
        large = told([config, "--tokens", str(1000 * small["corpus"]["num_tokens"])], capsys)
        assert large["corpus"]["num_tokens"] == 1000 * small["corpus"]["num_tokens"]
        assert (large["corpus"]["known"], large["corpus"]["relative_error"]) == ("given", None)
        assert large["num_kept"] == pytest.approx(1000 * small["num_kept"], rel=1e-3)
        assert large["sizes"]["hidden"] == pytest.approx(1000 * small["sizes"]["hidden"], rel=1e-3)
        assert large["sizes"]["teacher"] == small["sizes"]["teacher"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["views=0"], "views: Input should be greater than 0"),
            (["--tokens", "0"], "--tokens is 0, it must be at least 1"),
            (["--teacher-tokens-per-s", "0"], "--teacher-tokens-per-s is 0, it must be at least 1"),
            (["--prices", "none.yaml"], "configuration file none.yaml does not exist"),
            (["corpus.paths=[none.txt]"], "none.txt does not exist"),
            (["teacher.model=none"], "teacher 'none' cannot be loaded"),
            (["corpus.sequence_length=1000"], f"the teacher has {families.MAX_LENGTH} positions"),
            (["soft_labels.top_k=1000"], f"the teacher's vocabulary has {families.VOCAB_SIZE} tokens"),
            (["hidden.layers=[9]"], "hidden.layers names 9, the teacher has layers 0 to 4"),
            (
                ["keep={masked: 0, unmasked: 1e-9}", "soft_labels.code=packed"],
                "no position of the sampled sequences is kept",
            ),
        ],
    )
    def test_what_a_build_would_refuse(
        self, arguments: list[str], message: str, config: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert message in refused([config, *arguments], capsys)
