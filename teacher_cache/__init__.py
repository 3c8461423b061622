"""Ask a masked-LM teacher once, and keep what it said.

`CacheSpec` says what, `build` does it, `open_cache` reads it. Nothing heavy is loaded before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teacher_cache.config import CacheSpec
    from teacher_cache.errors import UserError
    from teacher_cache.format.cache import open_cache
    from teacher_cache.pipeline import build

__all__ = ["CacheSpec", "UserError", "build", "open_cache"]

_HOMES = {
    "CacheSpec": "teacher_cache.config",
    "UserError": "teacher_cache.errors",
    "build": "teacher_cache.pipeline",
    "open_cache": "teacher_cache.format.cache",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
