from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from teacher_cache.errors import UserError
from teacher_cache.targets.heads import (
    FAMILIES,
    OutputHead,
    family_of,
    head_from_tensors,
    head_logits,
    head_of,
    head_tensor_names,
)
from tests import families

# The encoder's activation is not gelu, so that a head which wrongly takes or ignores it shows.
ACTIVATION = {
    "bert": {"hidden_act": "gelu_new"},
    "roberta": {"hidden_act": "relu"},
    "albert": {"hidden_act": "relu"},
    "electra": {"hidden_act": "relu"},
    "distilbert": {"activation": "relu"},
}
TENSORS = list(head_tensor_names({"model_type": "bert"}))


def read_head(folder: Path, config: dict) -> OutputHead:
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        return head_from_tensors(config, tensors.get_tensor)


def test_every_family_has_a_fixture():
    assert set(FAMILIES) == set(families.FAMILIES)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_head_on_a_subset_equals_the_models_logits(family):
    model = families.make_model(family, **ACTIVATION[family])
    input_ids, attention_mask = families.make_batch(family)
    kept = attention_mask.bool() & (torch.arange(12) % 3 == 0)
    with torch.no_grad():
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        expected = model(input_ids=input_ids, attention_mask=attention_mask).logits
        logits = head_logits(head_of(model), hidden[kept])
    assert expected.std(-1).mean() > 1
    torch.testing.assert_close(logits, expected[kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_saved_head_equals_the_live_one(family, tmp_path):
    model = families.make_model(family, **ACTIVATION[family])
    model.save_pretrained(tmp_path)
    live, saved = head_of(model), read_head(tmp_path, model.config.to_dict())
    assert (saved.activation, saved.norm_eps) == (live.activation, live.norm_eps)
    for name in TENSORS:
        torch.testing.assert_close(getattr(saved, name), getattr(live, name), rtol=0, atol=0)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_replay_from_float16_hidden_states_gives_the_teachers_rows(family):
    model = families.make_model(family)
    input_ids, attention_mask = families.make_batch(family)
    with torch.no_grad():
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        replayed = head_logits(head_of(model), hidden.half().float()).softmax(-1)
        expected = model(input_ids=input_ids, attention_mask=attention_mask).logits.softmax(-1)
    torch.testing.assert_close(replayed, expected, rtol=0, atol=1e-3)


def test_live_head_shares_the_models_parameters():
    model = families.make_model("bert")
    head = head_of(model)
    assert head.decoder_weight is model.get_input_embeddings().weight
    assert head.decoder_bias is model.get_output_embeddings().bias


def test_to_changes_every_tensor():
    head = head_of(families.make_model("albert")).to(dtype=torch.bfloat16)
    assert {getattr(head, name).dtype for name in TENSORS} == {torch.bfloat16}
    assert head_logits(head, torch.zeros(2, 3, 32, dtype=torch.bfloat16)).shape == (2, 3, families.VOCAB_SIZE)


def test_other_model_types_are_refused_with_the_supported_ones():
    with pytest.raises(UserError, match=r"'gpt2' is not supported; .* bert, roberta, albert, electra, distilbert"):
        family_of({"model_type": "gpt2"})
    with pytest.raises(UserError, match="not supported"):
        family_of({})


@pytest.mark.parametrize(
    ("field", "value"), [("tie_word_embeddings", False), ("is_decoder", True), ("num_hidden_groups", 2)]
)
def test_unusual_variants_are_refused(field, value):
    with pytest.raises(UserError, match=f"{field} = {value} is not supported"):
        family_of({"model_type": "albert", field: value})


def test_unknown_activation_is_refused():
    config = families.make_model("bert").config.to_dict() | {"hidden_act": "wavy"}
    with pytest.raises(UserError, match="activation 'wavy'"):
        head_from_tensors(config, lambda name: torch.zeros(1))


def test_the_mean_embedding_is_computed_once_and_moves_with_the_head():
    head = head_of(families.make_model("bert"))
    mean = head.mean_embedding
    torch.testing.assert_close(mean, head.decoder_weight.mean(dim=0), rtol=0, atol=0)
    assert head.mean_embedding is mean
    assert head.to(dtype=torch.float64).mean_embedding.dtype == torch.float64
