"""Models that a user names: a run, a Hugging Face folder, the URL of either, or a name on the hub → loaded, checked."""

import contextlib
import inspect
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from student_train.run_folder import MODEL_PREFIX, RUN_KEY
from teacher_cache.errors import UserError
from teacher_cache.pretrained import AUTO_CLASSES, load
from teacher_cache.storage.store import KEY, Store
from teacher_cache.targets.heads import family_of, num_positions
from teacher_cache.tasks.segments import name_segments

Head = Literal["masked_lm", "classification", "regression", "tagging", "question_answering"]

MAX_FILE_BYTES = 5 * 2**30
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HEADS: dict[str, Head] = {
    "MaskedLM": "masked_lm",
    "SequenceClassification": "classification",
    "TokenClassification": "tagging",
    "QuestionAnswering": "question_answering",
}
"""By what follows `For` in the name of an architecture."""


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """`model` is in float32 and in eval mode, on the CPU; `tokenizer` fits it."""

    place: str
    """As the user named it."""
    head: Head
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    card: str
    """Its README.md; empty where there is none."""

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a classifier or a tagger, in the order of its logits."""
        names: Any = self.model.config.id2label
        return tuple(str(names[place]) for place in sorted(names))

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that it takes, special ones included."""
        return max_length(self.model.config, self.tokenizer)

    @property
    def input_names(self) -> tuple[str, ...]:
        """What the tokenizer makes and the model takes: BERT's makes segment ids, which DistilBERT does not take."""
        taken = inspect.signature(self.model.forward).parameters
        return tuple(name for name in self.tokenizer.model_input_names if name in taken)


def load_model(place: str) -> SavedModel:
    """Loads the model of a run's output, of a folder, of the URL of either, or of a name on the hub.

    No code of the model is run.

    Raises:
        UserError: nothing there, another family, no head that is known here, or a tokenizer that does not fit.
    """
    with local_path(place) as source:
        config = read(AutoConfig, "config.json", place, source)
        family_of(config.to_dict())
        head = _head(place, config)
        options = {"config": config, "dtype": torch.float32, "weights_only": True, "output_loading_info": True}
        model, report = read(AUTO_CLASSES[head], "weights", place, source, **options)
        if report["missing_keys"]:
            names = ", ".join(sorted(report["missing_keys"])[:8])
            raise UserError(f"the model of {place} is not whole: its weights lack {names}; save it again")
        tokenizer = read(AutoTokenizer, "tokenizer", place, source)
        check_tokenizer(place, tokenizer, config)
        set_up(tokenizer, config)
        return SavedModel(
            place=place,
            head=head,
            model=model.eval(),
            tokenizer=tokenizer,
            card=_card(source),
        )


def _card(source: str) -> str:
    if Path(source).is_dir():
        card = Path(source) / "README.md"
        return card.read_text() if card.is_file() else ""
    try:
        return Path(hf_hub_download(source, "README.md")).read_text()
    except EntryNotFoundError:  # also where the hub cannot be asked
        return ""


def put_model(store: Store, prefix: str, folder: Path) -> None:
    """Puts a folder's files below a prefix, config.json last: nothing takes a folder without it for a model."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path == folder / "config.json"):
        store.replace(f"{prefix}{path.relative_to(folder)}", path.read_bytes())


@contextlib.contextmanager
def local_path(place: str) -> Iterator[str]:
    """What `from_pretrained` takes for a model's place: a local folder, for a URL a temporary one; or a hub's name.

    Raises:
        UserError: there is no model.
    """
    with tempfile.TemporaryDirectory() as temporary:
        yield _source(place, Path(temporary))


def _source(place: str, temporary: Path) -> str:
    store = Store(place)
    if store.exists("config.json"):
        found = store
    elif store.exists(f"{MODEL_PREFIX}/config.json"):
        found = Store(f"{store.url}/{MODEL_PREFIX}")
    elif store.exists(RUN_KEY):
        raise UserError(f"the run at {place} has not finished: it has no model yet; let `student-train run` finish it")
    elif _HUB_NAME.fullmatch(place) and not Path(place).exists():
        return place
    else:
        raise UserError(f"{place} holds no model: there is no config.json, nor in a folder {MODEL_PREFIX}")
    return found.root if found.is_local else str(_copied(found, temporary))


def _copied(store: Store, folder: Path) -> Path:
    paths = store.attempt("listing", lambda: store.fs.ls(store.root, detail=False))
    names = (str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths)
    for name in names:
        if KEY.fullmatch(name) and "." in name:  # no folder, as of checkpoints or ONNX files
            (folder / name).write_bytes(store.read(name, max_bytes=MAX_FILE_BYTES))
    return folder


def _head(place: str, config: PreTrainedConfig) -> Head:
    architecture = (config.architectures or ["no architecture"])[0]
    if (head := _HEADS.get(architecture.rpartition("For")[2])) is None:
        raise UserError(
            f"the model of {place} is {architecture}: it has no head that is known here, which are {', '.join(_HEADS)}"
        )
    return "regression" if head == "classification" and config.num_labels == 1 else head


def read(auto_class: Any, part: str, place: str, source: str, **options: Any) -> Any:
    """What transformers loads from `source`, for the `place` that the user named; no code of the model is run.

    Raises:
        UserError: it cannot be loaded; names the `part` and the place.
    """
    expected = (
        "give a run's output, a folder with a saved model, the URL of either, or a hub name like bert-base-uncased"
    )
    return load(auto_class, source, what=f"{part} of {place}", expected=expected, **options)


def max_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens of the longest text that both take, special ones included."""
    positions = num_positions(config.to_dict())
    limits = [tokenizer.model_max_length, *([] if positions is None else [positions])]
    return int(min(limits))


def set_up(tokenizer: Any, config: PreTrainedConfig) -> None:
    """Has a tokenizer pad at the end, as predictions and metrics count positions, and make what segments there are."""
    tokenizer.padding_side = "right"
    name_segments(tokenizer, config)


def check_tokenizer(place: str, tokenizer: Any, config: PreTrainedConfig) -> None:
    """Refuses a tokenizer that is slow, not there, or of more tokens than the model's (UserError)."""
    # Without files, transformers makes up a tokenizer of special tokens alone.
    if not tokenizer.is_fast or set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"{place} has no fast tokenizer; put its tokenizer.json beside the model")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{place} has a vocabulary of {config.vocab_size}, its tokenizer one of {len(tokenizer)}; use the"
            " tokenizer that it was trained with"
        )
