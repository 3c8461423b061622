"""The finished student: a Hugging Face folder with tokenizer and model card."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoTokenizer, PreTrainedModel

from student_train.config import StudentSpec
from student_train.run_folder import MODEL_PREFIX, StepReport
from student_train.saved_model import put_model
from teacher_cache.format.cache import Cache
from teacher_cache.shell.settings import to_dict
from teacher_cache.storage.store import Store


def export(
    model: PreTrainedModel,
    store: Store,
    *,
    spec: StudentSpec,
    caches: list[Cache],
    views: Sequence[int],
    last: StepReport | None,
    also: Callable[[Path], None],
) -> None:
    """Puts the student under `model/` of the run's output, as `AutoModelForMaskedLM.from_pretrained` takes it, and
    hands the folder to `also`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(caches[0].teacher.folder)
        if model.config.model_type == "distilbert":  # it takes no segment ids, a BERT tokenizer makes them
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(model, spec=spec, caches=caches, views=views, last=last))
        put_model(store, f"{MODEL_PREFIX}/", folder)
        also(folder)


def model_card(
    model: PreTrainedModel,
    *,
    spec: StudentSpec,
    caches: list[Cache],
    views: Sequence[int],
    last: StepReport | None,
) -> str:
    """A model card that names what the student learned from, how, and how far it came."""
    data = ModelCardData(library_name="transformers", pipeline_tag="fill-mask", tags=["distillation", "teacher-cache"])
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    sources = "\n".join(_source(cache, views) for cache in caches)
    recipe = to_dict(spec)
    config = model.config
    figures = (
        f"Last step: {last.step} of {last.num_steps}; "
        + ", ".join(f"{name} {value:.4f}" for name, value in last.losses.items())
        if last
        else "No step was taken"
    )
    content = f"""---
{data.to_yaml()}
---

# {config.model_type} student, {config.num_hidden_layers} layers, {num_parameters / 1e6:.1f} M parameters

{_origin(spec)}

## Teacher caches

{sources}

## Recipe

| setting | value |
|---|---|
{_table(recipe["student"], "student")}
{_table(recipe["loss"], "loss")}
{_table(recipe["optimizer"], "optimizer")}
| sequences a step | {spec.batch_sequences} |
| epochs, steps | {spec.epochs}, {spec.steps} |
| dtype, seed | {spec.dtype}, {spec.seed} |

## Training

{figures}. These are training losses, unweighted but for the total; they say nothing of tasks.
"""
    return str(ModelCard(content))


def _origin(spec: StudentSpec) -> str:
    weights = spec.loss.weights
    if weights.soft_labels == weights.cosine == 0:
        return "Trained as a masked LM on the inputs of a teacher's cache, untaught: no word of the teacher was used."
    return (
        "Distilled from a cache of its teacher's answers, without the teacher in memory, by the triple loss of\n"
        "DistilBERT (Sanh et al. 2019, arXiv 1910.01108)."
    )


def _source(cache: Cache, views: Sequence[int]) -> str:
    manifests = ", ".join(f"view {view} `{cache.manifest(view).sha256}`" for view in views)
    teacher = cache.notes.get("teacher", {}).get("model", "unknown")
    return f"- `{cache.fingerprint}` of teacher `{teacher}`; manifests: {manifests or 'none read'}"


def _table(values: dict[str, object], prefix: str) -> str:
    return "\n".join(f"| {prefix}.{name} | {value} |" for name, value in values.items())
