"""Models are found where a user names them, and refused where they cannot be used."""

import shutil

import pytest
import torch
from transformers import AutoModel

from student_train.launch import train
from student_train.saved_model import load_model
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store
from tests import families
from tests.student_train import runs
from tests.student_train.export import heads


@pytest.fixture(scope="module")
def run(default_cache, tmp_path_factory):
    """A finished run's output."""
    output = tmp_path_factory.mktemp("run")
    train(runs.make_spec(default_cache, output, steps=1))
    return output


def same_weights(ours, theirs) -> bool:
    expected = theirs.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


def test_a_run_and_its_model_are_the_same(run):
    whole, folder = load_model(str(run)), load_model(f"{run}/model/")
    assert same_weights(whole.model, folder.model)
    assert (whole.head, whole.input_names) == ("masked_lm", ("input_ids", "attention_mask"))
    assert whole.card == (run / "model" / "README.md").read_text()
    assert not whole.model.training


@pytest.mark.s3
def test_a_run_at_a_url(run, s3):
    store = Store(f"{s3}/run")
    for path in sorted((run / "model").iterdir()):
        store.replace(f"model/{path.name}", path.read_bytes())
    assert same_weights(load_model(f"{s3}/run").model, load_model(str(run)).model)


@pytest.mark.parametrize("head", heads.HEADS)
def test_heads_are_known_by_the_configuration(head, tmp_path):
    assert heads.make(tmp_path, head).head == head


@pytest.mark.parametrize("family", families.FAMILIES)
def test_longest_texts_and_inputs(family, tmp_path):
    saved = heads.make(tmp_path, family=family)
    assert saved.max_length == families.MAX_LENGTH
    assert ("token_type_ids" in saved.input_names) == (family != "distilbert")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "holds no model: there is no config.json, nor in a folder model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "the weights of .* cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "the weights of .* cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "fast tokenizer|tokenizer of .* cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json of .* cannot be loaded"),
    ],
)
def test_folders_that_hold_no_whole_model_are_refused(spoil, message, tmp_path):
    folder = heads.save(tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError, match=message):
        load_model(str(folder))


def test_a_run_that_has_not_finished_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="has not finished: it has no model yet"):
        load_model(str(tmp_path))


def test_an_encoder_without_a_head_is_refused(tmp_path):
    AutoModel.from_config(families.make_model("bert").config).save_pretrained(tmp_path)
    families.make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is BertModel: it has no head that is known here, which are MaskedLM, Seq"):
        load_model(str(tmp_path))


def test_weights_without_the_head_are_refused(tmp_path):
    heads.save(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("DistilBertForMaskedLM", "DistilBertForTokenClassification"))
    with pytest.raises(UserError, match="is not whole: its weights lack classifier"):
        load_model(str(tmp_path))


def test_a_name_that_the_hub_does_not_give_is_refused():
    with pytest.raises(UserError, match=r"the config.json of nobody/nothing cannot be loaded; give a run's output"):
        load_model("nobody/nothing")
