"""Distil students from a teacher cache, with no teacher in memory.

`StudentSpec` says what, `train` does it. Nothing heavy is loaded before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student_train import order
    from student_train.config import StudentSpec
    from student_train.launch import train

__all__ = ["StudentSpec", "order", "train"]

_HOMES = {"StudentSpec": "student_train.config", "order": "student_train.order", "train": "student_train.launch"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(_HOMES[name])
    return module if name == "order" else getattr(module, name)
