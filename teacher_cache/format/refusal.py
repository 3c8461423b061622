"""One way to refuse an object of a cache: whatever a parser throws at its bytes becomes one message."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa
from safetensors import SafetensorError

from teacher_cache.errors import StoreError, UserError

PARSER_ERRORS = (
    pa.ArrowException,
    SafetensorError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,  # torch's, and RecursionError
)
"""What parsers throw at bytes that are not what they should be."""
MAX_REASON = 200
"""Characters of what a parser said that a message repeats: a hostile file can make them many."""


@contextlib.contextmanager
def refusing(name: str, remedy: str) -> Iterator[None]:
    """For what reads the object `name`: its errors become one that names it and says what to do.

    A missing object, and a store or disk that does not answer, pass through: they say nothing of the content.

    Raises:
        UserError: in the place of any other error.
    """
    try:
        yield
    except StoreError:
        raise
    except UserError as error:
        if name in str(error):
            raise
        raise UserError(f"{name} is refused: {error}; {remedy}") from None
    except OSError as error:
        if error.errno is not None:  # arrow's own, as for a wrong checksum, have none
            raise
        raise damaged(name, error, remedy) from None
    except PARSER_ERRORS as error:
        raise damaged(name, error, remedy) from None


def damaged(name: str, reason: object, remedy: str) -> UserError:
    """The error that an object is not what it should be."""
    said = str(reason).partition("\n")[0][:MAX_REASON] or type(reason).__name__
    return UserError(f"{name} is damaged: {said}; {remedy}")
