"""Models as they come to fine-tuning: found, checked, described, and given a task's head."""

import contextlib
import hashlib
import math
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from student_train.finetune.records import ModelRecord
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store
from teacher_cache.storage.urls import normal_url
from teacher_cache.targets.heads import FAMILIES
from teacher_cache.tasks.record import Kind, Task

AUTO_MODELS: dict[Kind, Any] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "tagging": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
}
MODEL_FILES = (".json", ".txt", ".safetensors")
MAX_FILE_BYTES = 16 * 2**30


def normal_path(path: str) -> str:
    """A model's path as every worker finds it: folders become absolute, hub names stay."""
    return normal_url(path) if "://" in path or os.path.isdir(os.path.expanduser(path)) else path


@contextlib.contextmanager
def local_path(path: str) -> Iterator[str]:
    """What transformers takes for a model: a folder, for a URL a temporary one; or a hub name."""
    if "://" not in path:
        yield path
        return
    parent, _, name = path.rpartition("/")
    store = Store(parent)
    with tempfile.TemporaryDirectory() as folder:
        for key in (key for key in store.list(name) if key.endswith(MODEL_FILES)):
            (Path(folder) / key.rpartition("/")[2]).write_bytes(store.read(key, max_bytes=MAX_FILE_BYTES))
        yield folder


def describe(name: str, path: str, *, max_lengths: Mapping[str, int]) -> ModelRecord:
    """Loads a model and its tokenizer, and checks that they can be fine-tuned.

    Args:
        max_lengths: of each task, in tokens.

    Raises:
        UserError: nothing there, weights missing, no fast tokenizer, or too few positions.
    """
    with local_path(path) as folder:
        config = _load(AutoConfig, "config.json", folder, name, path)
        tokenizer = _load(AutoTokenizer, "tokenizer", folder, name, path)
        encoder, report = _load(
            AutoModel, "weights", folder, name, path, config=config, dtype=torch.float32, output_loading_info=True
        )
    absent = set(report["missing_keys"])
    if lost := sorted(key for key in absent if not key.startswith("pooler.")):  # masked-LM models have none
        raise UserError(f"model {name!r} is no whole model: {path} lacks {', '.join(lost[:8])}")
    _check_tokenizer(name, tokenizer)
    _check_lengths(name, config, tokenizer, max_lengths)
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
        content_sha256=_sha256(tensors, tokenizer),
    )


def _load(auto_class: Any, what: str, folder: str, name: str, path: str, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the {what} of model {name!r} cannot be loaded from {path!r}; it must be a folder or URL of a saved model "
            "(of a run of `student-train run`, its OUTPUT/model) or a hub name like distilbert-base-uncased "
            f"({' '.join(str(error).split())})"
        ) from None


def _check_tokenizer(name: str, tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise UserError(
            f"model {name!r} has only a slow tokenizer ({type(tokenizer).__name__}); save a fast one (tokenizer.json) "
            "beside the model"
        )
    # Without files, transformers makes up a tokenizer of special tokens alone.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"model {name!r} has no tokenizer files; put its tokenizer.json beside the model")


def _check_lengths(
    name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, max_lengths: Mapping[str, int]
) -> None:
    limit = getattr(config, "max_position_embeddings", math.inf)
    family = FAMILIES.get(config.model_type)
    if family and family.positions_follow_pad:
        limit -= config.pad_token_id + 1
    limit = min(limit, tokenizer.model_max_length)
    for task, length in max_lengths.items():
        if length > limit:
            raise UserError(
                f"tasks.{task}.max_length is {length}, model {name!r} takes {limit} tokens; lower it to at most {limit}"
            )


def _sha256(tensors: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerFast) -> str:
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for key in sorted(tensors):
        digest.update(f"{key} {list(tensors[key].shape)} ".encode())
        digest.update(tensors[key].detach().contiguous().numpy().data)
    return digest.hexdigest()


def load_tokenizer(folder: str) -> PreTrainedTokenizerFast:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer


def load_model(folder: str, task: Task) -> PreTrainedModel:
    """A float32 model with the task's head. The head is drawn from torch's global generator, unless the model comes
    with one of the same shape."""
    model: PreTrainedModel = AUTO_MODELS[task.kind].from_pretrained(
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
