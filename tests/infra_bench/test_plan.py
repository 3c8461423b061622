"""The benchmark of plans, on a tiny teacher."""

import json
from pathlib import Path

import pytest

from infra.bench import plan
from tests import caches, families


def test_it_holds_a_plan_against_its_build(tmp_path: Path) -> None:
    teacher = families.save_pretrained(tmp_path / "teacher")
    text = caches.make_corpus(tmp_path / "text.txt", num_documents=300)
    codes = ["soft_labels.code=float32", "hidden.code=float16", "views=1", "corpus.sequence_length=24"]
    found = json.loads(json.dumps(plan.measure(tmp_path, str(teacher), str(text), codes)))
    assert found.keys() == {"name", "ratios", "figures", "machine", "versions"}
    for name in ("sequences", "tokens", "masked positions", "kept positions", "objects"):
        assert found["ratios"][f"{name}, planned / measured"] == 1
    assert found["ratios"]["bytes, all, planned / measured"] == pytest.approx(1, rel=0.02)
    planned, measured = found["figures"]["seconds, all, planned and measured"]
    assert found["ratios"]["seconds, all, planned / measured"] == pytest.approx(planned / measured)


@pytest.mark.parametrize("given", [["--teacher", "x"], ["--corpus", "x"]])
def test_a_teacher_needs_its_corpus(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        plan.parse(given)
    assert "give --teacher and --corpus, or neither" in capsys.readouterr().err


def test_settings_may_stand_behind_options() -> None:
    assert plan.parse(["--quick", "views=1", "keep.unmasked=0"]).overrides == ["views=1", "keep.unmasked=0"]
