"""The page and its server. It listens on this machine alone, and asks for nothing beyond it."""

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from student_train.demo.answers import NUM_ROUNDS, Answer, classify, fill_mask
from student_train.report.find import short_names
from student_train.saved_model import SavedModel, load_model
from teacher_cache.errors import UserError

if TYPE_CHECKING:
    from gradio import Blocks

HOST = "127.0.0.1"
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
"""It tells its makers of each launch otherwise, and keeps in the browser what was asked."""
GUESSED, CLASSIFIED = ("masked_lm",), ("classification", "regression")


def serve(places: Sequence[str], *, port: int | None) -> dict[str, Any]:
    """Shows the page until Ctrl-C; without a port it takes the first free one from 7860.

    Raises:
        UserError: gradio is not installed, a model cannot be loaded or shown, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo needs gradio; run pip install 'teacher-cache[demo]'")
    models = [load_model(place) for place in places]
    for saved in models:
        if saved.head not in GUESSED + CLASSIFIED:
            raise UserError(f"{saved.place} does {saved.head}; the demo shows masked LMs and classifiers")
    os.environ |= QUIET  # before gradio is imported
    blocks = make_page(models)
    address = _launch(blocks, port)
    print(f"the demo is at {address}; Ctrl-C ends it", file=sys.stderr, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        blocks.close(verbose=False)
    return {"address": address}


def _launch(blocks: "Blocks", port: int | None) -> str:
    from gradio import themes

    try:
        _, address, _ = blocks.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            theme=themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )
    except (OSError, OverflowError):
        raise UserError(f"--port {port} is taken or no port of this machine; name another, or leave it out") from None
    return address.rstrip("/")


def make_page(models: Sequence[SavedModel]) -> "Blocks":
    """A tab for masked LMs and one for classifiers, where there are any."""
    import gradio

    guessing = [saved for saved in models if saved.head in GUESSED]
    classifying = [saved for saved in models if saved.head in CLASSIFIED]
    with gradio.Blocks(title="Models side by side", analytics_enabled=False) as blocks:
        gradio.Markdown("# Models side by side")
        if guessing:
            with gradio.Tab("Fill the mask"):
                text = gradio.Textbox(
                    "The capital of France is [MASK].", label="Text with one [MASK]", elem_id="masked"
                )
                _add_answers("fill", guessing, [text], lambda text: fill_mask(guessing, text))
        if classifying:
            with gradio.Tab("Classify"):
                text = gradio.Textbox(label="Text", elem_id="text")
                pair = gradio.Textbox(label="Second text, of models for pairs", elem_id="pair")
                _add_answers("classify", classifying, [text, pair], lambda *texts: classify(classifying, *texts))
    return blocks


def _add_answers(name: str, models: Sequence[SavedModel], boxes: list[Any], ask: Callable[..., list[Answer]]) -> None:
    """A button, a place for messages, and a column a model."""
    import gradio

    button = gradio.Button("Ask", variant="primary", elem_id=f"{name}-ask")
    notice = gradio.Markdown(elem_id=f"{name}-notice")
    labels, latencies = [], []
    with gradio.Row():
        for place, title in enumerate(_titles(models)):
            with gradio.Column():
                answer = gradio.Label(label=title, show_heading=False, elem_id=f"{name}-answer-{place}")
                labels.append(answer)
                latencies.append(gradio.Markdown(elem_id=f"{name}-latency-{place}"))

    def respond(*texts: str) -> list[Any]:
        try:
            answers = ask(*texts)
        except UserError as error:
            return [f"**{error}**", *[None] * len(models), *[""] * len(models)]
        return ["", *map(_shown, answers), *map(_latency, answers)]

    outputs = [notice, *labels, *latencies]
    gradio.on([button.click, *(box.submit for box in boxes)], respond, boxes, outputs, api_visibility="private")


def _titles(models: Sequence[SavedModel]) -> list[str]:
    names = short_names([saved.place.rstrip("/") for saved in models]) or [saved.place for saved in models]
    return [f"{name}: {saved.num_parameters / 1e6:.1f} M parameters" for name, saved in zip(names, models, strict=True)]


def _latency(answer: Answer) -> str:
    return f"{answer.latency_ms:.1f} ms, the median of {NUM_ROUNDS} rounds"


def _shown(answer: Answer) -> dict[str, float] | str:
    return f"{answer.shares['']:.3f}" if "" in answer.shares else answer.shares
