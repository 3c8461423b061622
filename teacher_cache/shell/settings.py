"""Configuration: one YAML file, dotted overrides, and the same typed objects in Python.

OmegaConf reads YAML and `key.path=value` overrides (and `${oc.env:NAME}`), pydantic checks the result. Both
refuse early: nothing here touches hardware or a store. Both are imported where they are used: a command's help needs
neither, and a cache is read without OmegaConf.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from teacher_cache.errors import UserError
from teacher_cache.storage.urls import redacted

if TYPE_CHECKING:
    from pydantic import ConfigDict, ValidationError

Spec = TypeVar("Spec")

STRICT: "ConfigDict" = {"extra": "forbid", "str_strip_whitespace": True, "allow_inf_nan": False}
"""For every configuration dataclass: unknown keys are errors."""


def load(spec_type: type[Spec], path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Reads a YAML file, applies `key.path=value` overrides and validates.

    Raises:
        UserError: the file is missing or no mapping, an override is malformed, or a value is refused.
    """
    return parse(spec_type, resolved(as_written(path, overrides), source=str(path)), source=str(path))


def as_written(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a YAML file with overrides, `${…}` as it stands there; read once, as it may be a pipe.

    Raises:
        UserError: the file is missing or no mapping, or an override is malformed.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        written = OmegaConf.load(path)
        if not isinstance(written, DictConfig):
            raise UserError(f"configuration {path} must be a mapping of keys to values, not a list")
        values: Any = OmegaConf.to_container(_overridden(written, overrides), resolve=False)
    except FileNotFoundError:
        raise UserError(f"configuration file {path} does not exist") from None
    except (OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"configuration {path} cannot be read: {error}") from None
    return dict(values)


def resolved(values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """What was written, with what each `${…}` stands for.

    Raises:
        UserError: one stands for nothing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found: Any = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration {source} cannot be read: {error}") from None
    return dict(found)


def from_overrides(spec_type: type[Spec], overrides: Sequence[str]) -> Spec:
    """A configuration of `key.path=value` overrides alone.

    Raises:
        UserError: an override is malformed, or a value is refused.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values: Any = OmegaConf.to_container(_overridden(OmegaConf.create({}), overrides), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the command line cannot be read: {error}") from None
    return parse(spec_type, values, source="command line")


def parse(spec_type: type[Spec], values: Mapping[Any, Any], *, source: str = "configuration") -> Spec:
    """Builds a configuration dataclass from plain values.

    Raises:
        UserError: every refused key in one message, unknown ones with the valid keys of their place.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(spec_type).validate_python(values)
    except ValidationError as error:
        raise UserError(f"{source} is refused:\n{explain(error, spec_type)}") from None


def to_dict(spec: Any) -> dict[str, Any]:
    """The plain values of a configuration dataclass, as `parse` takes them (JSON types only)."""
    from pydantic import TypeAdapter

    values: dict[str, Any] = TypeAdapter(type(spec)).dump_python(spec, mode="json")
    return values


def explain(error: "ValidationError", spec_type: type) -> str:
    """One line a refused key: where, what was given, what is wanted."""
    return "\n".join(_line(item, spec_type) for item in error.errors())


def _line(item: Any, spec_type: type) -> str:
    # pydantic also puts the members of unions into the location.
    where = ".".join(str(part) for part in item["loc"] if not str(part).startswith(("constrained-", "tuple[")))
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"  {where}: unknown key; valid keys here: {', '.join(_fields_at(spec_type, item['loc'][:-1]))}"
    message = item["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
    given = "" if item["type"] in ("missing", "missing_argument") else redacted(f" (got {item['input']!r})")
    return f"  {where}: {message}{given}" if where else f"  {message}"


def _fields_at(spec_type: Any, location: Sequence[Any]) -> list[str]:
    """Field names of the dataclass that lies at `location` below `spec_type`."""
    for part in location:
        if dataclasses.is_dataclass(spec_type):
            spec_type = typing.get_type_hints(spec_type).get(str(part), spec_type)
        members = typing.get_args(spec_type) or (spec_type,)  # of a union, or of a mapping
        spec_type = next((member for member in members if dataclasses.is_dataclass(member)), spec_type)
    if not dataclasses.is_dataclass(spec_type):
        return []
    return [field.name for field in dataclasses.fields(spec_type)]


def _overridden(written: Any, overrides: Sequence[str]) -> Any:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise UserError(f"override {override!r} must look like key.path=value, for example teacher.dtype=float32")
        try:
            written = OmegaConf.merge(written, OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:
            raise UserError(f"override {override!r} cannot be applied: {' '.join(str(error).split())}") from None
    return written
