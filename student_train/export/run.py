"""`student-train export`: one folder with all that was asked for, put in place when all of it is made and checked."""

import functools
import importlib.util
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from student_train.export import card, hub, int8, task_scores
from student_train.export.embedding import write_embedding
from student_train.export.onnx_graph import OPSET, Logits, onnx_logits, random_inputs, torch_logits, write_onnx
from student_train.finetune.config import safe_name
from student_train.finetune.models import normal_path
from student_train.latency import latencies_s, median_ms
from student_train.measuring import load_per_core, machine
from student_train.run_folder import MODEL_PREFIX
from student_train.saved_model import Head, SavedModel, load_model, put_model
from student_train.worth.records import read_worth
from student_train.worth.table import markdown
from teacher_cache.errors import UserError
from teacher_cache.storage.store import Store

if TYPE_CHECKING:
    from teacher_cache.tasks.record import Task

ONNX_KEY, INT8_KEY = "onnx/model.onnx", "onnx/model_int8.onnx"
"""Names that transformers.js and others look for."""
PYTORCH = "PyTorch"
TIMED_TOKENS, TIMED_ROUNDS = 128, 20


@dataclass(frozen=True, kw_only=True)
class OnnxFigures:
    """Of the ONNX files; latencies are of one text, by turns in one run."""

    opset: int
    largest_difference: float
    """Of a logit from PyTorch's, as `onnx_graph.TOLERANCE` counts it."""
    num_tokens: int
    """Of the text that was timed."""
    latency_ms: dict[str, float]
    """Medians, of PyTorch and of each file."""
    speedup: dict[str, float]
    """Of each file: PyTorch's latency over its own, the median of the rounds."""
    load_per_core: float
    """What the machine did besides: load average of the minute before the export, over the number of cores."""
    machine: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What was written."""

    model: str
    output: str
    head: Head
    num_parameters: int
    num_bytes: dict[str, int]
    """By file."""
    onnx: OnnxFigures | None
    int8_agreement: int8.Agreement | None
    """Of int8 with float32 on sample text; None where the task was scored."""
    scores: dict[str, dict[str, float]]
    """By file: metrics on the task's dev set, per cent."""
    repository: str | None
    """Its address on the hub."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to write beside the Hugging Face folder."""

    onnx: bool = False
    int8: bool = False
    """With it comes the float32 graph, which it is measured against."""
    sentence_embedding: bool = False
    task: str | None = None
    """YAML file of the task that the model was fine-tuned for."""
    worth: str | None = None
    """Folder or URL of what `student-train worth` wrote."""
    push: str | None = None
    """Name of a repository on the hub."""

    @property
    def graphs(self) -> bool:
        return self.onnx or self.int8


def export_model(place: str, output: str, options: ExportOptions) -> ExportSummary:
    """Writes the model at `place` to the folder or URL `output`, which must hold nothing yet.

    Raises:
        UserError: bad input, or an ONNX graph that does not answer as the model does; nothing is written then.
    """
    store, load = Store(output), load_per_core()
    worth = _check(store, place, options)
    task = task_scores.read_task(options.task) if options.task else None
    saved = load_model(place)
    if task:
        task_scores.check_task(task, saved)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        saved.model.save_pretrained(folder)
        saved.tokenizer.save_pretrained(folder)
        if options.sentence_embedding:
            write_embedding(saved, folder)
        figures, agreement, scores = _write_graphs(saved, folder, options, task, load=load)
        summary = ExportSummary(
            model=place,
            output=store.url,
            head=saved.head,
            num_parameters=saved.num_parameters,
            num_bytes={key: path.stat().st_size for key, path in _files(folder).items()},
            onnx=figures,
            int8_agreement=agreement,
            scores=scores,
            repository=None,
        )
        text = card.extended(saved, asdict(summary), worth=worth, is_embedding=options.sentence_embedding)
        (folder / "README.md").write_text(text)
        put_model(store, "", folder)
        repository = hub.push(options.push, folder, output=store.url) if options.push else None
    return replace(summary, repository=repository)


def _check(store: Store, place: str, options: ExportOptions) -> str:
    """Refuses what cannot end well, before any work; the worth table's text, empty where none is asked for."""
    if options.task and not options.int8:
        raise UserError("--task says what int8 loses on a task; add --int8, or leave it out")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if options.graphs and missing:
        raise UserError(f"ONNX needs {', '.join(missing)}; run pip install 'teacher-cache[export]'")
    if options.push:
        hub.check_push(options.push)
    _check_empty(store)
    return _worth_of(place, options.worth) if options.worth else ""


def _check_empty(store: Store) -> None:
    try:
        found = store.attempt("listing", lambda: store.fs.ls(store.root, detail=False))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        found = [store.root]
    if found:
        raise UserError(f"{store.url} is not empty; give a folder that holds nothing yet, or delete it first")


def _worth_of(place: str, url: str) -> str:
    """The tables of a worth, and which of its models is the one at `place`, or the one it was fine-tuned from."""
    worth, path = read_worth(url), normal_path(place)
    for model in worth.models:
        if model.path in (path, f"{path}/{MODEL_PREFIX}"):
            return f"This model is {model.name}.\n\n{markdown(worth)}"
        if path.startswith(f"{worth.results}/runs/{safe_name(model.name)}/"):
            return f"This model was fine-tuned from {model.name}.\n\n{markdown(worth)}"
    known = ", ".join(f"{model.name} ({model.path})" for model in worth.models)
    raise UserError(f"--worth {url} does not know {place}; export a model as its worth.yaml names it: {known}")


def _write_graphs(
    saved: SavedModel, folder: Path, options: ExportOptions, task: "Task | None", *, load: float
) -> tuple[OnnxFigures | None, int8.Agreement | None, dict[str, dict[str, float]]]:
    """Writes the ONNX files that are asked for and measures them: speed, and what int8 loses on task or sample text."""
    if not options.graphs:
        return None, None, {}
    (folder / ONNX_KEY).parent.mkdir()
    difference = write_onnx(saved, folder / ONNX_KEY)
    graphs = {ONNX_KEY: onnx_logits(folder / ONNX_KEY)}
    if options.int8:
        int8.write_int8(folder / ONNX_KEY, folder / INT8_KEY)
        graphs[INT8_KEY] = onnx_logits(folder / INT8_KEY)
    figures = _time(saved, graphs, difference, load)
    if task:
        return figures, None, task_scores.dev_scores(task, saved, graphs)
    if options.int8:
        return figures, int8.agreement(saved, *graphs.values()), {}
    return figures, None, {}


def _time(saved: SavedModel, graphs: Mapping[str, Logits], difference: float, load: float) -> OnnxFigures:
    num_tokens = min(TIMED_TOKENS, saved.max_length)
    inputs = random_inputs(saved, (1, num_tokens))
    answers = {PYTORCH: torch_logits(saved), **graphs}
    works = {name: functools.partial(answer, inputs) for name, answer in answers.items()}
    seconds = latencies_s(works, num_rounds=TIMED_ROUNDS)
    return OnnxFigures(
        opset=OPSET,
        largest_difference=difference,
        num_tokens=num_tokens,
        latency_ms={name: median_ms(values) for name, values in seconds.items()},
        speedup={
            name: statistics.median(slow / fast for slow, fast in zip(seconds[PYTORCH], seconds[name], strict=True))
            for name in graphs
        },
        load_per_core=load,
        machine=machine(),
    )


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
