"""What things cost: one YAML file. There are no defaults: a price that nobody gave would be made up."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from teacher_cache.shell.settings import STRICT

Price = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prices:
    """All in one currency; 1 GB is 10^9 bytes."""

    currency: Annotated[str, Field(min_length=1)]
    device_hour: Price
    """Of what one worker runs on: a GPU, or its CPU cores."""
    storage_gb_month: Price
    puts_1000: Price
    """A thousand requests that write."""
    gets_1000: Price
    """A thousand requests that read."""
    egress_gb: Price
    """Of reading from the store, at the place where students train; often 0 within a region."""
