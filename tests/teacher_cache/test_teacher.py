import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CanineTokenizer, GPT2Config, GPT2LMHeadModel

from teacher_cache.errors import UserError
from teacher_cache.teacher import (
    Teacher,
    check_hidden_layers,
    check_sequence_length,
    check_top_k,
    load_teacher,
    save_teacher,
    teacher_sha256,
    tokenizer_sha256,
)
from tests import families


@pytest.fixture
def folder(tmp_path) -> Path:
    """A BERT teacher, to be spoiled."""
    return families.save_pretrained(tmp_path / "teacher")


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, **changes) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, path, {"format": "pt"})


def test_a_folder_below_the_users_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_teacher("~/teacher").model.config.hidden_size == load_teacher(str(folder)).model.config.hidden_size


@pytest.mark.parametrize("family", families.FAMILIES)
def test_encoder_and_head_equal_the_whole_model(family, tmp_path):
    loaded = load_teacher(str(families.save_pretrained(tmp_path, family)))
    teacher = Teacher(loaded, torch.float32, "cpu")
    input_ids, attention_mask = families.make_batch(family)
    kept = attention_mask.bool() & (torch.arange(12) % 2 == 1)
    with torch.no_grad():
        whole = loaded.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=torch.zeros_like(input_ids),
            output_hidden_states=True,
        )
    hidden = teacher.encode(input_ids, attention_mask, (0, 2, -2, 4, -1))
    assert list(hidden) == [0, 2, -2, 4, -1]
    for layer, states in hidden.items():
        torch.testing.assert_close(states, whole.hidden_states[layer], rtol=0, atol=1e-5)
    logits = teacher.logits(hidden[-1][kept])
    torch.testing.assert_close(logits, whole.logits[kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_padding_changes_nothing(family, tmp_path):
    teacher = Teacher(load_teacher(str(families.save_pretrained(tmp_path, family))), torch.float32, "cpu")
    input_ids, attention_mask = families.make_batch(family)
    alone = teacher.encode(input_ids[1:2, :7], attention_mask[1:2, :7])[-1]
    padded = teacher.encode(input_ids, attention_mask)[-1][1:2, :7]
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layers", "asked"), [((-1,), False), ((4,), False), ((-1, 4), False), ((3, -1), True)])
def test_inner_layers_are_asked_for_only_if_wanted(layers, asked, folder, monkeypatch):
    teacher = Teacher(load_teacher(str(folder)), torch.float32, "cpu")
    forward, seen = teacher._encoder.forward, []

    def spy(**inputs):
        seen.append(inputs["output_hidden_states"])
        return forward(**inputs)

    monkeypatch.setattr(teacher._encoder, "forward", spy)
    assert set(teacher.encode(*families.make_batch(), layers)) == set(layers)
    assert seen == [asked]


def test_logits_are_float32_and_the_loaded_model_keeps_its_dtype(folder):
    loaded = load_teacher(str(folder))
    teacher = Teacher(loaded, torch.bfloat16, "cpu")
    hidden = teacher.encode(*families.make_batch())[-1]
    assert hidden.dtype == torch.bfloat16
    assert teacher.logits(hidden[0]).dtype == torch.float32
    assert loaded.model.dtype == torch.float32


def test_the_head_is_the_one_that_readers_have_whatever_the_encoders_dtype(folder):
    loaded = load_teacher(str(folder))
    hidden = torch.randn(4, loaded.model.config.hidden_size)
    exact, found = (Teacher(loaded, dtype, "cpu").logits(hidden) for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(exact, found)


def test_checkpoint_dtype_is_kept(tmp_path):
    families.make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    families.make_tokenizer().save_pretrained(tmp_path)
    loaded = load_teacher(str(tmp_path))
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training


def test_missing_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config.json of teacher '.*/nowhere' cannot be loaded.*folder.*hub name"):
        load_teacher(str(tmp_path / "nowhere"))


def test_missing_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights of teacher .* cannot be loaded"):
        load_teacher(str(folder))


def test_other_families_are_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'gpt2' is not supported; supported are bert"):
        load_teacher(str(tmp_path))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_encoder_without_a_masked_lm_head_is_refused(family, tmp_path):
    families.make_model(family).base_model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no whole masked-LM model: its checkpoint lacks .*\.bias"):
        load_teacher(str(tmp_path))


def test_missing_layers_are_refused_in_one_short_line(folder):
    edit_json(folder / "config.json", num_hidden_layers=5)
    with pytest.raises(UserError, match=r"lacks bert\.encoder\.layer\.4\.[^;]* and 8 more;"):
        load_teacher(str(folder))


def test_pickled_checkpoint_is_loaded(folder):
    model = families.make_model()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    loaded = load_teacher(str(folder))
    input_ids, attention_mask = families.make_batch()
    first, second = (teacher(input_ids, attention_mask).logits for teacher in (model, loaded.model))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_is_not_run(folder, tmp_path):
    torch.save({"bias": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights of teacher"):
        load_teacher(str(folder))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("part", "shape"), [("weight", (families.VOCAB_SIZE, 32)), ("bias", (families.VOCAB_SIZE,))])
def test_untied_decoder_is_refused(part, shape, folder):
    edit_tensors(folder, **{f"cls.predictions.decoder.{part}": torch.ones(shape)})
    with pytest.raises(UserError, match="decoder of its own, not tied"):
        load_teacher(str(folder))


def test_weights_of_another_shape_are_refused(folder):
    edit_tensors(folder, **{"cls.predictions.transform.dense.bias": torch.zeros(31)})
    with pytest.raises(UserError, match="weights of teacher"):
        load_teacher(str(folder))


def test_missing_tokenizer_is_refused(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no tokenizer files; put its tokenizer\.json"):
        load_teacher(str(folder))


def test_slow_tokenizer_is_refused(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    CanineTokenizer().save_pretrained(folder)
    with pytest.raises(UserError, match=r"only a slow tokenizer \(CanineTokenizer\)"):
        load_teacher(str(folder))


@pytest.mark.parametrize("vocab_size", [families.VOCAB_SIZE - 1, families.VOCAB_SIZE + 128])
def test_tokenizer_of_another_vocabulary_is_refused(vocab_size, tmp_path):
    families.save_pretrained(tmp_path, vocab_size=vocab_size)
    with pytest.raises(UserError, match=f"vocabulary of {vocab_size}, its tokenizer one of {families.VOCAB_SIZE}"):
        load_teacher(str(tmp_path))


def test_padded_vocabulary_is_accepted(tmp_path):
    load_teacher(str(families.save_pretrained(tmp_path, vocab_size=families.VOCAB_SIZE + 127)))


def test_missing_special_token_is_refused(folder, monkeypatch):
    tokenizer = families.make_tokenizer()
    tokenizer.mask_token = None
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *args, **options: tokenizer)
    with pytest.raises(UserError, match="tokenizer without a mask token"):
        load_teacher(str(folder))


def test_differing_pad_tokens_are_refused(folder):
    edit_json(folder / "config.json", pad_token_id=3)
    with pytest.raises(UserError, match=r"pad_token_id 3 in config\.json, its tokenizer 0"):
        load_teacher(str(folder))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_longest_sequence_is_the_one_that_the_model_can_read(family):
    model = families.make_model(family)
    check_sequence_length(model.config, families.MAX_LENGTH)
    model(input_ids=torch.full((1, families.MAX_LENGTH), 7))
    with pytest.raises(UserError, match=r"sequence_length is 65, the teacher has 64 positions"):
        check_sequence_length(model.config, families.MAX_LENGTH + 1)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_hidden_layers_within_the_teacher(family):
    config = families.make_model(family).config
    check_hidden_layers(config, (-5, 0, 4, -1))
    for layer in (5, -6):
        with pytest.raises(UserError, match=rf"names {layer}, the teacher has layers 0 to 4, or -5 to -1"):
            check_hidden_layers(config, (layer,))


def test_top_k_within_the_vocabulary():
    config = families.make_model().config
    check_top_k(config, families.VOCAB_SIZE)
    with pytest.raises(UserError, match=r"top_k is 61, the teacher's vocabulary has 60"):
        check_top_k(config, families.VOCAB_SIZE + 1)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_saved_teacher_is_the_same_teacher(family, tmp_path):
    loaded = load_teacher(str(families.save_pretrained(tmp_path / "first", family)))
    save_teacher(loaded, tmp_path / "second")
    again = load_teacher(str(tmp_path / "second"))
    save_teacher(again, tmp_path / "third")
    assert teacher_sha256(tmp_path / "second") == teacher_sha256(tmp_path / "third")
    assert tokenizer_sha256(again.tokenizer) == tokenizer_sha256(loaded.tokenizer)
    input_ids, attention_mask = families.make_batch(family)
    first, second = (
        teacher.model(input_ids=input_ids, attention_mask=attention_mask).logits for teacher in (loaded, again)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_digest_changes_with_weights_and_config_but_not_with_notes(folder):
    digest = teacher_sha256(folder)
    edit_json(folder / "config.json", transformers_version="0.0", _name_or_path="elsewhere", dtype="auto")
    assert teacher_sha256(folder) == digest

    other = folder.with_name("other")
    shutil.copytree(folder, other)
    edit_json(other / "config.json", num_attention_heads=2)
    assert teacher_sha256(other) != digest

    bias = load_file(folder / "model.safetensors")["cls.predictions.bias"]
    bias[7] += 1e-3
    edit_tensors(folder, **{"cls.predictions.bias": bias})
    assert teacher_sha256(folder) != digest


def test_tokenizer_digest_ignores_state_and_sees_content():
    tokenizer = families.make_tokenizer()
    digest = tokenizer_sha256(tokenizer)
    tokenizer(["the dog", "the"], padding="max_length", truncation=True, max_length=4)
    assert tokenizer_sha256(tokenizer) == digest
    assert tokenizer_sha256(families.make_tokenizer("roberta")) != digest
    tokenizer.add_tokens(["unheard"])
    assert tokenizer_sha256(tokenizer) != digest
