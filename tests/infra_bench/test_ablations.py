"""The ablations: each changes one thing, and what is finished is not made again."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from infra.bench import ablations_plot, plan
from infra.bench.ablations import WHOLE, Variant, chosen, make_spec, parse, render, result, run, variants
from student_train.config import StudentSpec
from student_train.report.compare import flat
from teacher_cache.errors import UserError
from teacher_cache.format.spec import KeepConfig
from teacher_cache.shell.settings import from_overrides, to_dict
from tests import caches, families
from tests.student_train.finetune.tiny import sentences

EVERY = variants(width=384, num_heads=6)


def settings_of(variant: Variant) -> dict[str, Any]:
    """All that decides what a variant's student becomes, by dotted key."""
    given = [f"{key}={value}" for key, value in variant.student.items()]
    student = flat(to_dict(from_overrides(StudentSpec, ["caches=[cache]", "output=output", *given])))
    return student | {"unmasked": variant.unmasked, "num_views": variant.num_views}


@pytest.mark.parametrize("variant", EVERY[1:], ids=lambda variant: variant.name)
def test_each_does_one_thing_otherwise(variant):
    whole, other = settings_of(EVERY[0]), settings_of(variant)
    changed = {key.split(".")[0] for key in whole if whole[key] != other[key]}
    assert len(changed) == 1, changed


def test_the_whole_recipe_is_what_students_and_caches_have_by_default():
    assert EVERY[0].name == WHOLE
    assert not EVERY[0].student
    assert KeepConfig().unmasked == EVERY[0].unmasked
    assert len({variant.name for variant in EVERY}) == len(EVERY) == 11


def test_no_override_undoes_a_variant(tmp_path):
    variant = next(variant for variant in EVERY if variant.name == "T = 4")
    options = argparse.Namespace(steps=5, overrides=["loss.temperature=1", "seed=3", "optimizer.lr=1e-3"])
    spec = make_spec(tmp_path, variant, "cache", 2, options)
    assert (spec.loss.temperature, spec.seed, spec.steps, spec.optimizer.lr) == (4, 2, 5, 1e-3)


def test_half_the_width_keeps_the_size_of_a_head():
    narrow = next(variant for variant in EVERY if "width" in variant.name)
    assert (narrow.student["student.width"], narrow.student["student.num_heads"]) == (192, 3)


def test_some_can_be_chosen_and_the_whole_recipe_always_is():
    assert [variant.name for variant in chosen(EVERY, ["T ="])] == [WHOLE, "T = 1", "T = 4"]
    assert chosen(EVERY, ()) == list(EVERY)


def test_rows_stand_beside_the_whole_recipe_at_the_same_seed_and_the_paper(tmp_path):
    runs = [
        {"arm": arm, "seed": seed, "bytes": 30.0, "epochs": 2.0, "loss": loss + seed, "accuracy": 0.5, "SST-2": 0.9}
        for arm, loss in {WHOLE: 4.0, "without cosine": 5.0}.items()
        for seed in range(2)
    ]
    found = result(runs, {WHOLE: 0.0, "without cosine": -1.46}, parse(["--quick"]))
    assert found["ratios"] == {f"held-out loss, without cosine / {WHOLE}": 5.5 / 4.5}
    row = found["figures"]["arms"][1]
    assert (row["loss_gap"], row["loss_gap_deviation"], row["published"]) == (1.0, 0.0, -1.46)
    assert [cell for cell in render(found).splitlines()[2].split("  ") if cell][-1].strip() == "-1.46"
    ablations_plot.plot(found["figures"]["arms"], tmp_path / "with.png")
    for each in runs:
        del each["SST-2"]
    without = result(runs, {WHOLE: 0.0, "without cosine": -1.46}, parse(["--quick"]))
    assert "SST-2" not in render(without)
    ablations_plot.plot(without["figures"]["arms"], tmp_path / "without.png")
    wide, narrow = (image.imread(tmp_path / f"{name}.png").shape[1] for name in ("with", "without"))
    assert wide > narrow, "a panel more"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"--heldout": "absent.txt"}, "--heldout absent.txt does not exist"),
        ({"--sst2": "absent"}, "task SST-2: .*absent"),
        ({"batch_sequnces=3": None}, "batch_sequnces: unknown key"),
    ],
)
def test_what_would_be_found_after_hours_is_refused_first(given, message, tmp_path):
    text = caches.make_corpus(tmp_path / "text.txt", num_documents=2, seed=0)
    values = {"--teacher": "absent", "--corpus": "absent", "--heldout": str(text), "--work": str(tmp_path)} | given
    arguments = [part for key, value in values.items() for part in (key, value) if part is not None]
    with pytest.raises(UserError, match=message):
        run(parse(arguments), tmp_path)


def test_students_and_caches_are_kept(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(["--teacher", "x", "--corpus", "y", "--heldout", "z"])
    assert "give --work: a folder that keeps hours of training" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["--teacher", "x"], ["--quick", "--corpus", "x", "--heldout", "y"]])
def test_a_teacher_comes_with_its_texts(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(given)
    assert "give --teacher, --corpus and --heldout; or none of them, and --quick" in capsys.readouterr().err


def test_students_are_made_compared_and_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SEQUENCE_LENGTH", 24)
    teacher = families.save_pretrained(tmp_path / "teacher", max_position_embeddings=128)
    tokenizer = families.make_tokenizer()
    tokenizer.model_max_length = 128  # what SST-2 is cut to
    tokenizer.save_pretrained(teacher)
    texts = [caches.make_corpus(tmp_path / f"{seed}.txt", num_documents=150, seed=seed) for seed in range(2)]
    for split, num in {"train": 32, "dev": 16}.items():
        rows = [f"{' '.join(words)}\t{int(place >= 0)}" for words, place in sentences(num, seed=num)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows, ""]))
    given = ["--teacher", teacher, "--corpus", texts[0], "--heldout", texts[1], "--steps", 8, "--seeds", 1]
    given += ["--sst2", tmp_path, "--work", tmp_path]
    options = parse([*map(str, given), "batch_sequences=16", "--only", "one view", "half", "masked positions"])
    first = run(options, tmp_path)
    arms = [row["arm"] for row in first["figures"]["arms"]]
    assert arms == [WHOLE, "random, half the width", "masked positions only", "one view"]
    assert first["figures"]["epochs"] > 1, "or one view would be the same as three"
    assert all(0 <= row["SST-2"] <= 1 for row in first["figures"]["arms"])
    losses = {row["arm"]: row["loss"] for row in first["figures"]["arms"]}
    assert len(set(losses.values())) == len(losses), "each learned something else"
    assert len(list(Path(tmp_path, "caches").iterdir())) == 2
    monkeypatch.setattr("student_train.loop.Trainer.step", None)  # no step can be taken
    assert run(options, tmp_path)["figures"]["arms"] == first["figures"]["arms"]


@pytest.mark.slow
def test_a_quick_run_prints_one_object():
    command = [sys.executable, "-m", "infra.bench.ablations", "--quick", "--json"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"name", "ratios", "figures", "machine", "versions"}
    assert [row["arm"] for row in found["figures"]["arms"]] == [variant.name for variant in EVERY]
