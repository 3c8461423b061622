"""Any checkpoint of the BERT family as a teacher; of a masked LM: encoder over all positions, head over kept ones.

Shapes: B sequences, S positions, K kept positions, d hidden size, V vocabulary size, L encoder layers.
"""

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from teacher_cache.errors import UserError
from teacher_cache.format.spec import MASKED_LM, Objective, TaskObjective
from teacher_cache.pretrained import AUTO_CLASSES, load
from teacher_cache.storage.urls import folders
from teacher_cache.targets.heads import family_of, head_logits, head_of, num_positions
from teacher_cache.tasks.segments import name_segments

MAX_PADDED_VOCABULARY = 127
"""Rows that a model may have beyond its tokenizer's tokens: vocabularies are padded up to multiples of 128."""

_SPECIAL_TOKENS = ("cls", "sep", "mask", "pad")
_NO_CONTENT = {"_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype"}
"""Config fields that say how a model was saved, not what it computes; dtypes stand with the tensors."""


@dataclass(frozen=True)
class LoadedTeacher:
    """`model` is a model with a head in its checkpoint's own dtype, in eval mode; `tokenizer` fits it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def load_teacher(model: str, revision: str | None = None, *, objective: Objective = MASKED_LM) -> LoadedTeacher:
    """Loads a hub model or a folder, and checks that it can teach. No code of the checkpoint is run.

    Raises:
        UserError: nothing there, another family, no head for the objective or one of other outputs, or a tokenizer
            that does not fit.
    """
    config = _load(AutoConfig, "config.json", model, revision)
    family_of(config.to_dict())
    if objective != MASKED_LM:
        _check_outputs(model, config, objective)
    kind = objective if objective == MASKED_LM else objective.kind
    network, report = _load(
        AUTO_CLASSES[kind],
        "weights",
        model,
        revision,
        config=config,
        dtype="auto",
        attn_implementation="sdpa",
        weights_only=True,  # transformers' default too: a pickled checkpoint yields tensors, nothing else
        output_loading_info=True,
    )
    _check_weights(model, kind, report["missing_keys"])
    if objective == MASKED_LM:
        _check_decoder(model, network)
    tokenizer = _load(AutoTokenizer, "tokenizer", model, revision)
    _check_tokenizer(model, tokenizer, config)
    if objective != MASKED_LM:
        name_segments(tokenizer, config)
    return LoadedTeacher(network.eval(), tokenizer)


def _load(auto_class: Any, part: str, model: str, revision: str | None, **options: Any) -> Any:
    place = f"{model!r} at revision {revision!r}" if revision else f"{model!r}"
    return load(
        auto_class,
        os.path.expanduser(model) if folders(model) else model,
        what=f"{part} of teacher {place}",
        expected="teacher.model must be a folder with a saved model or a hub name like bert-base-uncased",
        revision=revision,
        **options,
    )


def _check_outputs(name: str, config: PreTrainedConfig, objective: TaskObjective) -> None:
    """Refuses a model that was fine-tuned on another task (UserError), as far as its config.json tells."""
    names = [str(label) for _, label in sorted((config.id2label or {}).items())]
    if len(names) != objective.num_outputs:
        raise UserError(
            f"teacher {name!r} has {len(names)} outputs ({', '.join(names)}), the task needs {objective.num_outputs}"
            f" ({', '.join(objective.labels) or objective.kind}); use one that was fine-tuned on this task"
        )
    ours, theirs = ([label.casefold() for label in labels] for labels in (objective.labels, names))
    if ours != theirs and sorted(ours) == sorted(theirs):
        raise UserError(
            f"teacher {name!r} has its outputs in the order {', '.join(names)}, the task's labels are"
            f" {', '.join(objective.labels)}; use one that was fine-tuned on this task as it is here"
        )


def _check_weights(name: str, kind: str, missing: set[str]) -> None:
    """transformers initialises missing weights at random, with a warning only."""
    if missing:
        names = sorted(missing)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        what, remedy = ("masked-LM", "trained for masked-language modelling")
        if kind != MASKED_LM:
            what, remedy = kind.replace("_", "-"), "fine-tuned on the task"
        raise UserError(
            f"teacher {name!r} is no whole {what} model: its checkpoint lacks {', '.join(names[:8])}{more};"
            f" use one that was {remedy}"
        )


def _check_decoder(name: str, model: PreTrainedModel) -> None:
    """transformers unties a decoder that differs from the word embedding, with a warning only."""
    head, decoder = head_of(model), model.get_output_embeddings()
    if decoder.weight is not head.decoder_weight or decoder.bias is not head.decoder_bias:
        raise UserError(
            f"teacher {name!r} has a decoder of its own, not tied to its word embedding and bias;"
            " only tied ones are supported"
        )


def _check_tokenizer(name: str, tokenizer: Any, config: PreTrainedConfig) -> None:
    if not tokenizer.is_fast:
        raise UserError(
            f"teacher {name!r} has only a slow tokenizer ({type(tokenizer).__name__}); save a fast one"
            " (tokenizer.json) beside the model"
        )
    # Without files, transformers makes up a tokenizer of special tokens alone.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"teacher {name!r} has no tokenizer files; put its tokenizer.json beside the model")
    spare = config.vocab_size - len(tokenizer)
    if not 0 <= spare <= MAX_PADDED_VOCABULARY:
        raise UserError(
            f"teacher {name!r} has a vocabulary of {config.vocab_size}, its tokenizer one of {len(tokenizer)};"
            f" the model may have 0 to {MAX_PADDED_VOCABULARY} more; use the tokenizer it was trained with"
        )
    ids = {token: getattr(tokenizer, f"{token}_token_id") for token in _SPECIAL_TOKENS}
    absent = [token for token, token_id in ids.items() if token_id is None]
    if absent:
        raise UserError(
            f"teacher {name!r} has a tokenizer without a {', '.join(absent)} token; name it in tokenizer_config.json"
        )
    if ids["pad"] != config.pad_token_id:
        raise UserError(
            f"teacher {name!r} has pad_token_id {config.pad_token_id} in config.json, its tokenizer {ids['pad']};"
            " make them equal"
        )


def check_sequence_length(
    config: PreTrainedConfig, sequence_length: int, *, key: str = "corpus.sequence_length"
) -> None:
    """Refuses sequences longer than the teacher has positions for (UserError); `key` is where a user says it."""
    limit = num_positions(config.to_dict())
    if limit is not None and sequence_length > limit:
        raise UserError(f"{key} is {sequence_length}, the teacher has {limit} positions; lower it to at most {limit}")


def check_hidden_layers(config: PreTrainedConfig, layers: Sequence[int]) -> None:
    """Refuses layers that the teacher has not (UserError); 0 is the embedding output, L or -1 the last."""
    last = config.num_hidden_layers
    for layer in layers:
        if not -last - 1 <= layer <= last:
            raise UserError(f"hidden.layers names {layer}, the teacher has layers 0 to {last}, or {-last - 1} to -1")


def check_top_k(config: PreTrainedConfig, top_k: int) -> None:
    """Refuses more logits a position than the vocabulary has (UserError)."""
    if top_k > config.vocab_size:
        raise UserError(
            f"soft_labels.top_k is {top_k}, the teacher's vocabulary has {config.vocab_size} tokens; lower it"
        )


class Teacher:
    """A loaded teacher cast to a dtype on a device, for inference; what was loaded stays as it is."""

    def __init__(self, loaded: LoadedTeacher, dtype: torch.dtype, device: torch.device | str) -> None:
        model: Any = copy.deepcopy(loaded.model)
        model.to(device=device, dtype=dtype)
        self.device = torch.device(device)
        self.dtype = dtype
        self._encoder = model.base_model
        # Of the weights as they were loaded, which readers have too; 8 bits of a bfloat16 logit would tie the top k.
        self._head = head_of(loaded.model).to(device=self.device, dtype=torch.float32)
        self._num_layers = model.config.num_hidden_layers

    @torch.inference_mode()
    def encode(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, layers: Sequence[int] = (-1,)
    ) -> dict[int, torch.Tensor]:
        """[B, S] token ids and mask (0 at padding) → hidden states [B, S, d] by layer, as `layers` names them.

        Segment ids are zero and position ids the family's own, as the model makes them by itself: padding
        must be `pad_token_id`, on the right.
        """
        is_last = {layer: layer in (-1, self._num_layers) for layer in layers}
        output = self._encoder(
            input_ids=input_ids.to(self.device),
            attention_mask=attention_mask.to(self.device),
            output_hidden_states=not all(is_last.values()),
        )
        return {
            layer: output.last_hidden_state if last else output.hidden_states[layer] for layer, last in is_last.items()
        }

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[K, d] last hidden states → [K, V] float32 logits, computed in float32 whatever the encoder's dtype."""
        return head_logits(self._head, hidden.to(self.device, torch.float32))


def save_teacher(loaded: LoadedTeacher, folder: Path) -> None:
    """Writes model.safetensors (tied tensors once), config.json and the tokenizer's files."""
    loaded.model.save_pretrained(folder, max_shard_size="100TB")  # readers look for one file
    loaded.tokenizer.save_pretrained(folder)


def teacher_sha256(folder: Path) -> str:
    """Digest of what a saved teacher computes: names, dtypes, shapes and bytes of its tensors, and its config."""
    digest = hashlib.sha256()
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name)
            digest.update(rfc8785.dumps([name, str(tensor.dtype), list(tensor.shape)]))
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    config = json.loads((folder / "config.json").read_bytes())
    digest.update(rfc8785.dumps({key: value for key, value in config.items() if key not in _NO_CONTENT}))
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Digest of how a tokenizer maps text to ids; padding and truncation, which calls leave behind, are no part."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    content = {key: value for key, value in backend.items() if key not in ("padding", "truncation")}
    special = {token: getattr(tokenizer, f"{token}_token_id") for token in (*_SPECIAL_TOKENS, "unk")}
    return hashlib.sha256(rfc8785.dumps({"tokenizer": content, "special_token_ids": special})).hexdigest()
