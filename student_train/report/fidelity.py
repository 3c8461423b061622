"""How true the caches are, from what `teacher-cache fidelity CACHE --json` printed."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from teacher_cache.errors import UserError
from teacher_cache.format.fidelity import Fidelity


def read_fidelity(path: str) -> Fidelity:
    """Reads the command's result.

    Raises:
        UserError: the file cannot be read, or is no such result.
    """
    try:
        return TypeAdapter(Fidelity).validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"--fidelity {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"--fidelity {path} is no result of `teacher-cache fidelity CACHE --json`: {where}: {first['msg']}"
        ) from None
