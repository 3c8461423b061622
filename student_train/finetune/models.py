"""Models as they come to fine-tuning: found, checked, described, and given a task's head."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from student_train.finetune.records import ModelRecord
from student_train.saved_model import check_tokenizer, local_path, max_length, read, set_up
from teacher_cache.errors import UserError
from teacher_cache.pretrained import AUTO_CLASSES
from teacher_cache.storage.urls import folders, normal_url
from teacher_cache.tasks.record import Task

NO_SETTINGS = frozenset({"_name_or_path", "architectures", "dtype", "transformers_version"})
"""Of a config.json, as nothing of how a model computes depends on them."""


def normal_path(path: str) -> str:
    """A model's path as every worker finds it: folders become absolute, hub names stay."""
    return normal_url(path) if "://" in path or folders(path) else path


def describe(name: str, path: str, *, max_lengths: Mapping[str, int]) -> ModelRecord:
    """Loads a model and its tokenizer, and checks that they can be fine-tuned.

    Args:
        max_lengths: of each task, in tokens.

    Raises:
        UserError: nothing there, weights missing, no fast tokenizer, or too few positions.
    """
    try:
        return _described(name, path, max_lengths)
    except UserError as error:
        raise UserError(f"model {name!r}: {error}") from None


def _described(name: str, path: str, max_lengths: Mapping[str, int]) -> ModelRecord:
    with local_path(path) as folder:
        config = read(AutoConfig, "config.json", path, folder)
        tokenizer = read(AutoTokenizer, "tokenizer", path, folder)
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        encoder, report = read(AutoModel, "weights", path, folder, **options)
    absent = set(report["missing_keys"])
    if lost := sorted(key for key in absent if not key.startswith("pooler.")):  # masked-LM models have none
        raise UserError(f"{path} holds no whole model: its weights lack {', '.join(lost[:8])}")
    check_tokenizer(path, tokenizer, config)
    _check_lengths(max_length(config, tokenizer), max_lengths)
    tensors = {key: tensor for key, tensor in encoder.named_parameters() if key not in absent}
    num_parameters = sum(tensor.numel() for tensor in tensors.values())
    return ModelRecord(
        name=name,
        path=path,
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        width=config.hidden_size,
        num_parameters=num_parameters,
        num_bytes=4 * num_parameters,
        content_sha256=_sha256(tensors, tokenizer, config),
    )


def _check_lengths(limit: int, max_lengths: Mapping[str, int]) -> None:
    for task, length in max_lengths.items():
        if length > limit:
            raise UserError(
                f"tasks.{task}.max_length is {length}, it takes {limit} tokens; lower it to at most {limit}"
            )


def _sha256(tensors: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> str:
    settings = {key: value for key, value in config.to_dict().items() if key not in NO_SETTINGS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for key in sorted(tensors):
        digest.update(f"{key} {list(tensors[key].shape)} ".encode())
        digest.update(tensors[key].detach().contiguous().numpy().data)
    return digest.hexdigest()


def load_tokenizer(folder: str) -> PreTrainedTokenizerFast:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    set_up(tokenizer, AutoConfig.from_pretrained(folder, trust_remote_code=False))
    return tokenizer


def load_model(folder: str, task: Task) -> PreTrainedModel:
    """A float32 model with the task's head. The head is drawn from torch's global generator, unless the model comes
    with one of the same shape."""
    model: PreTrainedModel = AUTO_CLASSES[task.kind].from_pretrained(
        folder,
        config=AutoConfig.from_pretrained(folder, trust_remote_code=False, **head_settings(task)),
        dtype=torch.float32,
        attn_implementation="sdpa",
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # a head of another task is replaced
    )
    return model


def head_settings(task: Task) -> dict[str, Any]:
    """What a model's config says of its task."""
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    if task.kind == "question_answering":
        return {"num_labels": 2}
    names = {
        "id2label": dict(enumerate(task.labels)),
        "label2id": {label: index for index, label in enumerate(task.labels)},
    }
    single = {"problem_type": "single_label_classification"} if task.kind == "classification" else {}
    return {"num_labels": len(task.labels)} | names | single
