"""Students: architectures, and starting weights read from a saved teacher. No teacher is ever built.

BERT's student is DistilBERT (arXiv 1910.01108, section 3): BERT without segment embeddings and pooler. The other
families' students are of their own family with fewer layers; ALBERT shares its layers, so there a student has a
shorter loop and the same parameters.

Shapes: B sequences, S positions, w the student's hidden size.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, DistilBertConfig, PreTrainedConfig, PreTrainedModel

from student_train.config import StudentConfig
from teacher_cache.errors import UserError
from teacher_cache.pretrained import load
from teacher_cache.targets.heads import family_of

DISTILBERT_EPS = 1e-12
"""DistilBERT's layer norms have no configurable epsilon."""

_BERT_NAMES = {
    "distilbert.embeddings.": "bert.embeddings.",
    "distilbert.transformer.": "bert.encoder.",
    ".attention.q_lin.": ".attention.self.query.",
    ".attention.k_lin.": ".attention.self.key.",
    ".attention.v_lin.": ".attention.self.value.",
    ".attention.out_lin.": ".attention.output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
    "vocab_transform.": "cls.predictions.transform.dense.",
    "vocab_layer_norm.": "cls.predictions.transform.LayerNorm.",
    "vocab_projector.": "cls.predictions.",
}
"""Parts of DistilBERT's tensor names and what BERT calls them."""


def build_student(teacher_folder: Path, spec: StudentConfig) -> PreTrainedModel:
    """A float32 masked-LM student with the starting weights that `spec` names.

    Of the teacher only config.json and the tensors needed are read. Random weights are drawn from torch's
    global generator: seed it first.

    Raises:
        UserError: layers, width, heads or vocabulary do not fit; an unsupported family; no such folder.
    """
    student = _starting_student(teacher_folder, spec)
    _set_dropout(student, spec.dropout)
    if spec.frozen_embeddings:
        student.base_model.embeddings.requires_grad_(False)
    return student


def _starting_student(teacher_folder: Path, spec: StudentConfig) -> PreTrainedModel:
    teacher = _read_config(teacher_folder)
    if spec.initial_folder:
        return _load_student(Path(spec.initial_folder), teacher, spec)
    if spec.initial_weights == "random":
        return _new_model(_student_config(teacher, _num_layers(teacher.num_hidden_layers, spec), spec))
    layers = _teacher_layers(teacher.num_hidden_layers, spec)
    if teacher.model_type == "bert" and teacher.layer_norm_eps != DISTILBERT_EPS:
        raise UserError(
            f"the teacher has layer_norm_eps {teacher.layer_norm_eps:g}, its DistilBERT student's is fixed at"
            f" {DISTILBERT_EPS:g}; use student.initial_weights: random, or another teacher"
        )
    student = _new_model(_student_config(teacher, len(layers), spec))
    with safe_open(teacher_folder / "model.safetensors", framework="pt") as tensors:
        _copy_weights(student, teacher.model_type, layers, tensors.get_tensor)
    return student


def encode_student(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """[B, S] token ids and mask (0 at padding) → [B, S, w] last hidden states; segment ids are zero."""
    hidden: torch.Tensor = model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return hidden


def spread_layers(num_teacher: int, num_student: int) -> tuple[int, ...]:
    """Teacher layers from which a student's layers start: evenly spread, first and last included.

    Layer i of n starts from layer i·(N-1)/(n-1) of N, rounded to the nearest: 12 → 6 gives 0, 2, 4, 7, 9, 11,
    DistilBERT's published choice. A half goes to the lower layer, 6 → 3 gives 0, 2, 5: what lower layers do, others
    build upon (`infra/bench/RESULTS.md`, starting layers). A single layer starts from the first.
    """
    gaps = num_student - 1
    return tuple((2 * i * (num_teacher - 1) + gaps - 1) // (2 * gaps) for i in range(num_student)) if gaps else (0,)


def _num_layers(num_teacher: int, spec: StudentConfig) -> int:
    return spec.num_layers or len(spec.teacher_layers or ()) or max(1, num_teacher // 2)


def _teacher_layers(num_teacher: int, spec: StudentConfig) -> tuple[int, ...]:
    num_student = _num_layers(num_teacher, spec)
    if num_student > num_teacher:
        raise UserError(
            f"student.num_layers is {num_student}, the teacher has {num_teacher} to start from; lower it, or use"
            " initial_weights: random"
        )
    layers = spec.teacher_layers or spread_layers(num_teacher, num_student)
    if max(layers) >= num_teacher:
        raise UserError(f"student.teacher_layers names {max(layers)}, the teacher has layers 0 to {num_teacher - 1}")
    return layers


def _student_config(teacher: PreTrainedConfig, num_layers: int, spec: StudentConfig) -> PreTrainedConfig:
    config = _distilbert_config(teacher) if teacher.model_type == "bert" else copy.deepcopy(teacher)
    config.num_hidden_layers = num_layers
    config.hidden_size = spec.width or config.hidden_size
    config.num_attention_heads = spec.num_heads or config.num_attention_heads
    if spec.width:
        setattr(config, "hidden_dim" if config.model_type == "distilbert" else "intermediate_size", 4 * spec.width)
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"student.width {config.hidden_size} is not divisible by {config.num_attention_heads} attention heads;"
            " choose student.num_heads among its divisors"
        )
    return config


def _distilbert_config(teacher: PreTrainedConfig) -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=teacher.vocab_size,
        max_position_embeddings=teacher.max_position_embeddings,
        dim=teacher.hidden_size,
        n_heads=teacher.num_attention_heads,
        hidden_dim=teacher.intermediate_size,
        activation=teacher.hidden_act,
        dropout=teacher.hidden_dropout_prob,
        attention_dropout=teacher.attention_probs_dropout_prob,
        initializer_range=teacher.initializer_range,
        pad_token_id=teacher.pad_token_id,
    )


def _set_dropout(student: PreTrainedModel, dropout: float) -> None:
    """While it is distilled; its config.json keeps the teacher's, which fine-tuning then starts with."""
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout


def _new_model(config: PreTrainedConfig) -> PreTrainedModel:
    # The dtype is given because the teacher's config may name its own.
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model


@torch.no_grad()
def _copy_weights(
    student: PreTrainedModel, teacher_type: str, layers: tuple[int, ...], read: Callable[[str], torch.Tensor]
) -> None:
    from_bert = teacher_type == "bert"
    # Tied parameters come once, under the name that saved files have.
    for name, parameter in student.named_parameters():
        weight = read(_teacher_name(name, layers, from_bert)).float()
        if from_bert and name.endswith("position_embeddings.weight"):
            # DistilBERT has no segments: segment 0 is at every position, and so it goes into the positions.
            weight = weight + read("bert.embeddings.token_type_embeddings.weight")[0].float()
        parameter.copy_(weight)


def _teacher_name(name: str, layers: tuple[int, ...], from_bert: bool) -> str:
    """The teacher's name for a student's tensor; ALBERT's shared layers carry no number."""
    name = re.sub(r"\.layer\.(\d+)\.", lambda match: f".layer.{layers[int(match[1])]}.", name)
    for ours, theirs in _BERT_NAMES.items() if from_bert else ():
        name = name.replace(ours, theirs)
    return name


def _load_student(folder: Path, teacher: PreTrainedConfig, spec: StudentConfig) -> PreTrainedModel:
    """Goes on from a saved student, whose architecture stays as it is."""
    config = _read_config(folder)
    if config.vocab_size != teacher.vocab_size:
        raise UserError(
            f"student.initial_weights {folder} has a vocabulary of {config.vocab_size}, the teacher one of"
            f" {teacher.vocab_size}; go on from a student of the same tokenizer"
        )
    asked = {"num_layers": "num_hidden_layers", "width": "hidden_size", "num_heads": "num_attention_heads"}
    for option, field in asked.items():
        want, have = getattr(spec, option), getattr(config, field)
        if want not in (None, have):
            raise UserError(f"student.{option} is {want}, student.initial_weights {folder} has {have}; leave it out")
    model, report = _read_folder(
        AutoModelForMaskedLM,
        folder,
        config=config,
        dtype=torch.float32,
        attn_implementation="sdpa",
        use_safetensors=True,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise UserError(f"student.initial_weights {folder} lacks {', '.join(sorted(report['missing_keys']))}")
    student: PreTrainedModel = model
    return student


def _read_config(folder: Path) -> PreTrainedConfig:
    config: PreTrainedConfig = _read_folder(AutoConfig, folder)
    family_of(config.to_dict())
    return config


def _read_folder(auto_class: Any, folder: Path, **options: Any) -> Any:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; student.initial_weights is teacher, random or a saved student")
    expected = "name a folder with a saved model's config.json and model.safetensors"
    return load(auto_class, folder, what=f"model in {folder}", expected=expected, local_files_only=True, **options)
