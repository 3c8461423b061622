"""Models are found, checked and described before anything is trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from student_train.finetune.models import describe, normal_path
from student_train.saved_model import local_path
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store
from tests import families
from tests.student_train.finetune import tiny


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny.make_model(tmp_path_factory.mktemp("models") / "teacher")


def described(path, max_length=32):
    return describe("m", str(path), max_lengths={"x": max_length})


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_model_is_described_without_its_masked_lm_head(tmp_path, family):
    folder = tiny.make_model(tmp_path / "model", family)
    found = described(folder)
    prefix = families.make_model(family).base_model_prefix
    tensors = load_file(Path(folder) / "model.safetensors")
    sizes = [tensor.numel() for name, tensor in tensors.items() if name.startswith(f"{prefix}.")]
    assert (found.model_type, found.num_layers, found.width) == (family, 2, 32)
    assert (found.num_parameters, found.num_bytes) == (sum(sizes), 4 * sum(sizes))


def test_the_digest_tells_models_and_tokenizers_apart_but_not_places(teacher, tmp_path):
    digest = described(teacher).content_sha256
    shutil.copytree(teacher, tmp_path / "copy")
    assert described(tmp_path / "copy").content_sha256 == digest
    assert described(tiny.make_model(tmp_path / "other", seed=1)).content_sha256 != digest
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.3}))
    assert described(tmp_path / "copy").content_sha256 != digest
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"transformers_version": "6"}))
    assert described(tmp_path / "copy").content_sha256 == digest
    vocabulary = families.make_tokenizer().get_vocab()
    BertTokenizer(vocab=vocabulary, do_lower_case=False).save_pretrained(tmp_path / "copy")
    assert described(tmp_path / "copy").content_sha256 != digest


def test_a_model_may_lie_in_a_store(teacher, s3):
    store = Store(s3)
    for path in Path(teacher).iterdir():
        store.replace(f"six/model/{path.name}", path.read_bytes())
    assert described(f"{s3}/six/model").content_sha256 == described(teacher).content_sha256
    with local_path(f"{s3}/six/model") as folder:
        assert Path(folder).is_dir()
    assert not Path(folder).exists()


def test_folders_become_absolute_and_hub_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "six").mkdir()
    assert normal_path("six") == str(tmp_path / "six")
    assert normal_path("bert-base-uncased") == "bert-base-uncased"
    assert normal_path("s3://b/six/") == "s3://b/six"


@pytest.mark.parametrize("path", ["no/such/folder/here", "no-such-model"])
def test_a_model_that_is_not_there_is_named(path):
    with pytest.raises(UserError, match=f"model 'm': .*{path}"):
        described(path)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    families.make_model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model 'm': .* has no fast tokenizer"):
        described(tmp_path)


def test_missing_weights_are_refused(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if ".layer.1." not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model 'm': .* holds no whole model: its weights lack encoder\.layer\.1"):
        described(tmp_path / "copy")
    path.unlink()
    with pytest.raises(UserError, match=r"model 'm': the weights of .* cannot be loaded"):
        described(tmp_path / "copy")


@pytest.mark.parametrize(("family", "limit"), [("bert", 64), ("roberta", 64), ("distilbert", 64)])
def test_tasks_longer_than_a_model_are_refused(tmp_path, family, limit):
    folder = tiny.make_model(tmp_path / "model", family)
    described(folder, max_length=limit)
    with pytest.raises(UserError, match=rf"model 'm': tasks\.x\.max_length is 65, it takes {limit} tokens; lower it"):
        described(folder, max_length=65)
    path = tmp_path / "model" / "tokenizer_config.json"  # what the model itself takes counts too
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 512}))
    with pytest.raises(UserError, match=f"takes {limit} tokens"):
        described(folder, max_length=65)


def test_describing_needs_no_randomness(teacher):
    torch.manual_seed(1)
    first = described(teacher)
    torch.manual_seed(2)
    assert described(teacher) == first
