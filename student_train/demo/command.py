"""The arguments of `demo`, apart from what it works with, so that no help waits for that."""

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    help_text = "masked LMs and classifiers: a run's output, a folder with a model, a URL, or a hub name"
    parser.add_argument("models", nargs="+", metavar="MODEL", help=help_text)
    parser.add_argument("--port", type=int, help="without it the first free one from 7860")


def demo(options: argparse.Namespace) -> dict[str, Any]:
    from student_train.demo.page import serve

    return serve(options.models, port=options.port)


def render(result: dict[str, Any]) -> str:
    return f"the demo at {result['address']} has ended"
