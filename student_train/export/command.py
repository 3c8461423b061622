"""The arguments of `export` and what it prints, apart from what it works with, so that no help waits for that."""

import argparse
from dataclasses import asdict
from typing import Any

from teacher_cache.shell import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run's output, a folder with a model, a URL, or a hub name")
    parser.add_argument("output", metavar="OUTPUT", help="folder or URL that holds nothing yet")
    parser.add_argument("--onnx", action="store_true", help="also as ONNX, compared with PyTorch")
    parser.add_argument("--int8", action="store_true", help="also as ONNX with int8 weights, measured against float32")
    parser.add_argument("--task", metavar="FILE", help="YAML file of the task: says what int8 loses on it")
    parser.add_argument("--sentence-embedding", action="store_true", help="sentence-transformers loads it, too")
    parser.add_argument("--worth", metavar="DIR", help="what `student-train worth` wrote, for the model card")
    parser.add_argument(
        "--push", metavar="USER/NAME", help="push it to the Hugging Face hub; a new repository is private"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def export(options: argparse.Namespace) -> dict[str, Any]:
    from student_train.export.run import ExportOptions, export_model

    chosen = ExportOptions(
        onnx=options.onnx,
        int8=options.int8,
        sentence_embedding=options.sentence_embedding,
        task=options.task,
        worth=options.worth,
        push=options.push,
    )
    return asdict(export_model(options.model, options.output, chosen))


def agreement_text(agreement: dict[str, Any]) -> str:
    """What int8 loses, `int8.Agreement` as plain values, in a line."""
    if agreement["top_1"] is None:
        return f"differs from float32 by {agreement['difference']:.4f} in the mean of {agreement['num_answers']} texts"
    return (
        f"the same first as float32 in {agreement['top_1']:.1%} of {agreement['num_answers']} answers,"
        f" KL(float32 || int8) {agreement['divergence']:.4f} nats"
    )


def render(result: dict[str, Any]) -> str:
    """The summary as text: files with their sizes, latencies and scores."""
    figures, agreement = result["onnx"], result["int8_agreement"]
    lines = {"output": result["output"], "head": result["head"], "parameters": f"{result['num_parameters']:,}"}
    for key, num_bytes in result["num_bytes"].items():
        lines[key] = command.size(num_bytes)
    if figures:
        lines["largest difference"] = f"{figures['largest_difference']:.1e} of the largest logit"
        for name, latency in figures["latency_ms"].items():
            lines[f"{name}, latency"] = f"{latency:.2f} ms, {figures['speedup'].get(name, 1):.2f} × PyTorch's speed"
        lines["load of the machine"] = f"{figures['load_per_core']:.2f} a core, before latencies were measured"
    if agreement:
        lines["int8, sample text"] = agreement_text(agreement)
    for name, metrics in result["scores"].items():
        lines[f"{name}, dev"] = ", ".join(f"{metric} {value:.2f}" for metric, value in metrics.items())
    if result["repository"]:
        lines["repository"] = result["repository"]
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())
