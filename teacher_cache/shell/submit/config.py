"""What a user says of a cluster: `ClusterConfig`, one YAML file for all jobs there."""

from typing import Annotated, Literal

from pydantic import Field, FilePath
from pydantic.dataclasses import dataclass

from teacher_cache.shell.settings import STRICT

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusterConfig:
    address: str | None = None
    """Of the job server, `http://HEAD:8265`; None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, otherwise this machine's."""
    code: Literal["shipped", "installed"] = "shipped"
    """`shipped`: both packages go with each job as they are here; `installed`: the machines have them."""
    requirements: FilePath | None = None
    """A requirements file that pip installs on each machine before the job; None: the machines have what is needed."""
    env: tuple[VariableName, ...] = ()
    """Environment variables that go with each job, by name. Ray shows their values to whoever may ask the job server,
    and writes them into logs of the machines."""
