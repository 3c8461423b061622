"""The masked-LM output head of the BERT family as a pure function: what turns hidden states into logits.

All five families compute `decoder(norm(activation(dense(hidden))))` (BERT, arXiv 1810.04805, section 3.1, task
1; as transformers' `*ForMaskedLM` do), with the decoder tied to the word embedding, so that a head can be had
from a live model or from a few tensors of a saved one.

Shapes: d hidden size, e embedding size (d, but for ALBERT and ELECTRA), V vocabulary size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers.activations import ACT2FN

from teacher_cache.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where a family keeps its head, in tensors and in config.json. Tensor names are those of saved files."""

    encoder: str
    """Prefix of the encoder's tensors."""
    dense: str
    norm: str
    bias: str
    activation: str | None = "hidden_act"
    """Config field of the head's activation; None: gelu whatever the encoder's is."""
    norm_eps: str | None = "layer_norm_eps"
    """Config field of the layer norms' epsilon; None: fixed at 1e-12."""
    hidden_size: str = "hidden_size"
    num_layers: str = "num_hidden_layers"
    positions_follow_pad: bool = False
    """Position ids start at pad_token_id + 1, so that many places are lost."""

    @property
    def decoder(self) -> str:
        """The word embedding: saved files hold the tied decoder under its name only."""
        return f"{self.encoder}.embeddings.word_embeddings.weight"


FAMILIES: Mapping[str, Family] = {
    "bert": Family(
        encoder="bert",
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        bias="cls.predictions.bias",
    ),
    "roberta": Family(
        encoder="roberta",
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        bias="lm_head.bias",
        activation=None,
        positions_follow_pad=True,
    ),
    "albert": Family(
        encoder="albert",
        dense="predictions.dense",
        norm="predictions.LayerNorm",
        bias="predictions.bias",
    ),
    "electra": Family(
        encoder="electra",
        dense="generator_predictions.dense",
        norm="generator_predictions.LayerNorm",
        bias="generator_lm_head.bias",
        activation=None,
    ),
    "distilbert": Family(
        encoder="distilbert",
        dense="vocab_transform",
        norm="vocab_layer_norm",
        bias="vocab_projector.bias",
        activation="activation",
        norm_eps=None,
        hidden_size="dim",
        num_layers="n_layers",
    ),
}
"""By `model_type`, as read from the families' sources in transformers 5."""

_ONLY = {
    "tie_word_embeddings": True,
    "is_decoder": False,
    "position_embedding_type": "absolute",
    "num_hidden_groups": 1,
    "inner_group_num": 1,
}
"""Config fields with the one value that published masked-LM checkpoints have and that this package relies on."""


@dataclass(frozen=True)
class OutputHead:
    """A masked-LM head; its tensors are live parameters, through which gradients flow, or loaded ones.

    `dense_weight` [e, d], `dense_bias` [e], `norm_weight` [e], `norm_bias` [e], `decoder_weight` [V, e],
    `decoder_bias` [V].
    """

    dense_weight: torch.Tensor
    dense_bias: torch.Tensor
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    decoder_weight: torch.Tensor
    decoder_bias: torch.Tensor
    norm_eps: float
    activation: str

    @cached_property
    def mean_embedding(self) -> torch.Tensor:
        """`[e]`: mean row of `decoder_weight`. Of loaded tensors only: it does not follow live ones."""
        return self.decoder_weight.mean(dim=0)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "OutputHead":
        """The same head on another device or in another dtype; None leaves either as it is."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, dtype) for name, value in values.items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a model, from the values of its config.json.

    Raises:
        UserError: another model type, or a variant of a family that its published checkpoints do not have.
    """
    model_type = config.get("model_type", "")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"model type {model_type!r} is not supported; supported are {', '.join(FAMILIES)}")
    for field, value in _ONLY.items():
        if config.get(field, value) != value:
            raise UserError(f"{model_type} with {field} = {config[field]!r} is not supported; it must be {value!r}")
    return FAMILIES[model_type]


def num_positions(config: Mapping[str, Any]) -> int | None:
    """Tokens of the longest sequence that a model takes, from the values of its config.json; None: any."""
    limit = config.get("max_position_embeddings")
    family = FAMILIES.get(config.get("model_type", ""))
    if limit is None or not (family and family.positions_follow_pad):
        return limit
    return int(limit - config["pad_token_id"] - 1)


def head_tensor_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Fields of `OutputHead` → names of their tensors in a saved checkpoint.

    Raises:
        UserError: see `family_of`.
    """
    family = family_of(config)
    return {
        "dense_weight": f"{family.dense}.weight",
        "dense_bias": f"{family.dense}.bias",
        "norm_weight": f"{family.norm}.weight",
        "norm_bias": f"{family.norm}.bias",
        "decoder_weight": family.decoder,
        "decoder_bias": family.bias,
    }


def head_from_tensors(config: Mapping[str, Any], read: Callable[[str], torch.Tensor]) -> OutputHead:
    """The head of a saved checkpoint, from the values of its config.json; `read` gets a tensor by its name.

    Raises:
        UserError: see `family_of`; or an activation that transformers does not know.
    """
    family = family_of(config)
    activation = config[family.activation] if family.activation else "gelu"
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise UserError(f"activation {activation!r} of config.json is unknown to transformers")
    return OutputHead(
        **{field: read(name) for field, name in head_tensor_names(config).items()},
        norm_eps=config[family.norm_eps] if family.norm_eps else 1e-12,
        activation=activation,
    )


def check_sizes(head: OutputHead, *, hidden_size: int, vocab_size: int) -> None:
    """Whether a head's tensors fit each other and a model.

    Raises:
        UserError: one has another shape, or holds no floats.
    """
    embedding_size = head.dense_weight.shape[0] if head.dense_weight.ndim else 0
    shapes = {
        "dense_weight": (embedding_size, hidden_size),
        "dense_bias": (embedding_size,),
        "norm_weight": (embedding_size,),
        "norm_bias": (embedding_size,),
        "decoder_weight": (vocab_size, embedding_size),
        "decoder_bias": (vocab_size,),
    }
    for name, shape in shapes.items():
        tensor: torch.Tensor = getattr(head, name)
        if tensor.shape != shape or not tensor.is_floating_point():
            raise UserError(f"{name} of its head is {tuple(tensor.shape)} {tensor.dtype}; it must be floats {shape}")


def head_of(model: "PreTrainedModel") -> OutputHead:
    """The head of a live masked-LM model, sharing its parameters.

    Raises:
        UserError: see `head_from_tensors`.
    """
    return head_from_tensors(model.config.to_dict(), model.get_parameter)


def head_logits(head: OutputHead, hidden: torch.Tensor) -> torch.Tensor:
    """[..., d] last hidden states → [..., V] logits, as the model itself computes them."""
    return F.linear(head_features(head, hidden), head.decoder_weight, head.decoder_bias)


def head_features(head: OutputHead, hidden: torch.Tensor) -> torch.Tensor:
    """[..., d] last hidden states → [..., e], what the decoder sees."""
    features = ACT2FN[head.activation](F.linear(hidden, head.dense_weight, head.dense_bias))
    return F.layer_norm(features, features.shape[-1:], head.norm_weight, head.norm_bias, head.norm_eps)
