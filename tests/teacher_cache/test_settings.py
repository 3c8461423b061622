"""Configuration: YAML, overrides, and what a user is told of a mistake."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from student_train.config import StudentSpec
from teacher_cache.config import CacheSpec, ExecutionConfig
from teacher_cache.errors import UserError
from teacher_cache.shell.settings import from_overrides, load, parse, to_dict

CACHE: dict[str, Any] = {"cache": "here", "corpus": {"paths": ["a.txt"]}, "teacher": {"model": "bert"}}
STUDENT: dict[str, Any] = {"caches": ["here"], "output": "there"}


def write(folder: Path, text: str) -> Path:
    path = folder / "cache.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        "cache: here\ncorpus: {paths: [a.txt, b.txt], packing: full}\nteacher: {model: bert}\nkeep: {unmasked: 0.5}\n",
    )


def refusal(spec: type, values: dict[str, Any]) -> list[str]:
    """The lines of the message that refuses `values`."""
    with pytest.raises(UserError, match=r"^configuration is refused:\n") as raised:
        parse(spec, values)
    return str(raised.value).splitlines()[1:]


def test_a_file_becomes_a_typed_spec(config: Path) -> None:
    spec = load(CacheSpec, config)
    assert (spec.cache, spec.corpus.paths, spec.corpus.packing) == ("here", ("a.txt", "b.txt"), "full")
    assert (spec.keep.unmasked, spec.keep.masked) == (0.5, 1.0)


def test_overrides_win_over_the_file_and_keep_what_stands_beside_them(config: Path) -> None:
    overrides = ["keep.unmasked=0.2", "views=1", "corpus.paths=[c.txt]", "execution.num_workers=[1,3]"]
    spec = load(CacheSpec, config, overrides)
    assert (spec.keep.unmasked, spec.views, spec.corpus.paths) == (0.2, 1, ("c.txt",))
    assert (spec.corpus.packing, spec.execution.num_workers) == ("full", (1, 3))


def test_an_override_may_hold_an_equals_sign_or_nothing(config: Path) -> None:
    assert load(CacheSpec, config, ["cache=s3://bucket/a=b"]).cache == "s3://bucket/a=b"
    assert load(CacheSpec, config, ["teacher.revision=null"]).teacher.revision is None


@pytest.mark.parametrize("override", ["views", "--views=1", "-v", ""])
def test_a_malformed_override_is_named(config: Path, override: str) -> None:
    with pytest.raises(UserError, match=rf"override '{override}' must look like key.path=value"):
        load(CacheSpec, config, [override])


def test_an_override_of_an_unknown_key_is_refused(config: Path) -> None:
    with pytest.raises(UserError, match=r"cache.yaml is refused:\n  keep.unmaskd: unknown key; .*: masked, unmasked$"):
        load(CacheSpec, config, ["keep.unmaskd=0.2"])


def test_environment_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_BUCKET", "s3://mine")
    text = "cache: ${oc.env:A_BUCKET}/cache\ncorpus: {paths: [a.txt]}\nteacher: {model: '${oc.env:A_MODEL,bert}'}\n"
    spec = load(CacheSpec, write(tmp_path, text))
    assert (spec.cache, spec.teacher.model) == ("s3://mine/cache", "bert")


def test_a_missing_environment_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_BUCKET", raising=False)
    with pytest.raises(UserError, match=r"cache.yaml cannot be read: .*A_BUCKET"):
        load(CacheSpec, write(tmp_path, "cache: ${oc.env:A_BUCKET}\n"))


def test_a_missing_environment_variable_on_the_command_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A_NUMBER", raising=False)
    with pytest.raises(UserError, match=r"the command line cannot be read: .*A_NUMBER"):
        from_overrides(ExecutionConfig, ["num_workers=${oc.env:A_NUMBER}"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"configuration file .*/none.yaml does not exist"):
        load(CacheSpec, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- cache: here\n", r"cache.yaml must be a mapping of keys to values, not a list"),
        ("just text\n", r"cache.yaml is refused:\n(.|\n)*just text: unknown key"),
        ("5\n", r"cache.yaml cannot be read: .*int"),
        ("cache: [here\n", r"cache.yaml cannot be read: (.|\n)*line 2"),
        ("cache: here\n\tcorpus: x\n", r"cache.yaml cannot be read: (.|\n)*tab character(.|\n)*line 2"),
        ("", r"cache.yaml is refused:\n  cache: .*required"),
    ],
    ids=["list", "text", "number", "open bracket", "tab", "empty"],
)
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(CacheSpec, write(tmp_path, text))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"cache: \xe4\n"], ids=["binary", "Latin-1"])
def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cache.yaml cannot be read: 'utf-8' codec can't decode"):
        load(CacheSpec, path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load(CacheSpec, tmp_path)


def test_unknown_keys_are_named_with_the_valid_ones_of_their_place() -> None:
    lines = refusal(CacheSpec, CACHE | {"teacher": {"model": "bert", "name": "x"}, "view": 3})
    assert lines == [
        "  teacher.name: unknown key; valid keys here: model, revision, dtype",
        "  view: unknown key; valid keys here: " + ", ".join(field.name for field in dataclasses.fields(CacheSpec)),
    ]


def test_all_mistakes_stand_in_one_message() -> None:
    values = CACHE | {"views": 0, "masking": {"rate": 1.5, "seed": -1}, "keep": {"unmasked": 2}, "colour": "red"}
    del values["teacher"]
    places = {line.split(":")[0].strip() for line in refusal(CacheSpec, values)}
    assert places == {"views", "masking.rate", "masking.seed", "keep.unmasked", "colour", "teacher"}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"views": "many"}, r"views: .*integer.*\(got 'many'\)"),
        ({"views": 1.5}, r"views: .*integer.*\(got 1.5\)"),
        ({"views": None}, r"views: .*integer.*\(got None\)"),
        ({"cache": 5}, r"cache: .*string.*\(got 5\)"),
        ({"corpus": "a.txt"}, r"corpus: .*\(got 'a.txt'\)"),
        ({"corpus": {"paths": []}}, r"corpus.paths: .*at least 1.*\(got \[\]\)"),
        ({"corpus": {"paths": ["a"], "sequence_length": 2}}, r"corpus.sequence_length: .*3 \(got 2\)"),
        ({"corpus": {"paths": ["a"], "sequence_length": 65536}}, r"corpus.sequence_length: .*65535 \(got 65536\)"),
        ({"corpus": {"paths": ["a"], "packing": "tight"}}, r"corpus.packing: .*'documents' or 'full' \(got 'tight'\)"),
        ({"masking": {"rate": 0}}, r"masking.rate: .*greater than 0 \(got 0\)"),
        ({"masking": {"rate": 1}}, r"masking.rate: .*less than 1 \(got 1\)"),
        ({"masking": {"mask_share": 0.9}}, r"masking: mask_share .* must be 1, they are 1.1"),
        ({"masking": {"seed": 2**53}}, r"masking.seed: .*less than 9007199254740992"),
        ({"keep": {"unmasked": 1.1}}, r"keep.unmasked: .*less than or equal to 1 \(got 1.1\)"),
        ({"keep": {"unmasked": -0.1}}, r"keep.unmasked: .*greater than or equal to 0 \(got -0.1\)"),
        ({"keep": {"unmasked": float("nan")}}, r"keep.unmasked: .*finite"),
        ({"keep": {"masked": 0, "unmasked": 0}}, r"keep: .*nothing would be cached"),
        ({"soft_labels": {"top_k": 0}}, r"soft_labels.top_k: .*greater than 0 \(got 0\)"),
        ({"soft_labels": {"temperatures": [1, 0]}}, r"soft_labels.temperatures.1: .*greater than 0 \(got 0\)"),
        ({"soft_labels": {"temperatures": [2, 2.0]}}, r"soft_labels.temperatures: temperatures must be distinct"),
        (
            {"soft_labels": {"code": "packed", "temperatures": []}},
            "soft_labels: code: packed needs at least one of temperatures; write code: float32 for none",
        ),
        ({"soft_labels": {"code": "float16"}}, r"soft_labels.code: .*'float32' or 'packed' \(got 'float16'\)"),
        ({"hidden": {"quality": "best"}}, r"hidden.quality: .*'low', 'standard', 'high' or 'highest' \(got 'best'\)"),
        (
            {"hidden": {"code": "float16", "quality": "high"}},
            "hidden: quality belongs to code: transform, not to code: float16",
        ),
        ({"hidden": {"code": "none", "quality": "low"}}, "hidden: quality belongs to code: transform, not to .* none"),
        ({"hidden": {"layers": []}}, r"hidden.layers: layers must be distinct and at least one"),
        ({"hidden": {"layers": [1, 1]}}, r"hidden.layers: layers must be distinct"),
        ({"execution": {"num_workers": [3, 1]}}, r"execution.num_workers: num_workers must be \[min, max\]"),
        ({"execution": {"num_workers": -1}}, r"execution.num_workers.*: .*greater than or equal to 0 \(got -1\)"),
        ({"execution": {"gpus_per_worker": -1}}, r"execution.gpus_per_worker: .*greater than or equal to 0"),
    ],
)
def test_a_value_that_a_cache_cannot_have_is_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=rf"\n  {line}"):
        parse(CacheSpec, CACHE | values)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"epochs": 3, "steps": 10}, "give epochs or steps, not both"),
        ({"caches": []}, r"caches: .*at least 1"),
        ({"steps": 0}, r"steps: .*greater than 0 \(got 0\)"),
        ({"loss": {"temperature": 0}}, r"loss.temperature: .*greater than 0 \(got 0\)"),
        ({"loss": {"temperature": -1}}, r"loss.temperature: .*greater than 0 \(got -1\)"),
        (
            {"loss": {"weights": {"soft_labels": 0, "masked_lm": 0, "cosine": 0}}},
            "loss.weights: all loss weights are 0",
        ),
        ({"loss": {"weights": {"mse": 1}}}, "loss.weights.mse: unknown key; .*: soft_labels, masked_lm, cosine"),
        ({"loss": {"soft_labels": "dense"}}, r"loss.soft_labels: .*'bucket' or 'replay' \(got 'dense'\)"),
        ({"optimizer": {"lr": 0}}, r"optimizer.lr: .*greater than 0 \(got 0\)"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, r"optimizer.betas.1: .*less than 1 \(got 1.0\)"),
        ({"optimizer": {"warmup_share": 1.5}}, r"optimizer.warmup_share: .*less than 1"),
        ({"student": {"num_layers": 2, "teacher_layers": [0, 1, 2]}}, "student: teacher_layers names 3 layers, num_"),
        ({"student": {"teacher_layers": []}}, "student: teacher_layers must name at least one layer"),
        ({"student": {"width": 64}}, "student: width and num_heads other than the teacher's need"),
        ({"execution": {"num_workers": [3, 1]}}, r"execution.num_workers: num_workers must be \[min, max\]"),
    ],
)
def test_a_value_that_a_student_cannot_have_is_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=rf"\n  {line}"):
        parse(StudentSpec, STUDENT | values)


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (CacheSpec, CACHE),
        (
            CacheSpec,
            CACHE | {"execution": {"num_workers": (1, 4)}, "hidden": {"layers": [0, 3, -1], "code": "float32"}},
        ),
        (StudentSpec, STUDENT),
        (
            StudentSpec,
            STUDENT | {"student": {"teacher_layers": [0, 2]}, "optimizer": {"betas": [0.8, 0.9]}, "steps": 5},
        ),
    ],
)
def test_plain_values_give_the_same_spec_again(spec: type, values: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    parsed = parse(spec, values)
    assert parse(spec, to_dict(parsed)) == parsed
    assert load(spec, write(tmp_path, yaml.safe_dump(to_dict(parsed)))) == parsed


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse(CacheSpec, CACHE).views = 5


def test_defaults_of_a_cache_are_those_of_the_design() -> None:
    spec = parse(CacheSpec, CACHE)
    assert (spec.views, spec.keep.masked, spec.keep.unmasked) == (3, 1.0, 0.1)
    assert (spec.soft_labels.top_k, spec.soft_labels.temperatures) == (8, (1.0, 2.0, 4.0))
    assert spec.soft_labels.code == "packed"
    assert (spec.hidden.layers, spec.hidden.code, spec.hidden.quality) == ((-1,), "transform", "standard")
    masking = spec.masking
    shares = masking.rate, masking.mask_share, masking.random_share, masking.keep_share
    assert shares == (0.15, 0.8, 0.1, 0.1)
    assert masking.policy == "uniform"


def test_defaults_of_a_student_are_the_published_recipe() -> None:
    spec = parse(StudentSpec, STUDENT)
    weights = spec.loss.weights
    assert (spec.loss.temperature, spec.loss.soft_labels) == (2.0, "replay")
    assert (weights.soft_labels, weights.masked_lm, weights.cosine) == (5.0, 2.0, 1.0)
    assert to_dict(spec.optimizer) == {
        "lr": 5e-4,
        "betas": [0.9, 0.98],
        "eps": 1e-6,
        "weight_decay": 0.0,
        "warmup_share": 0.05,
        "clip_norm": 5.0,
    }
    assert (spec.batch_sequences, spec.epochs, spec.steps) == (4000, None, None)
