"""Who reads, and in which settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import Any

from infra.bench.loading.payload import VARIANTS

PEERS, QUICK_PEERS = ("mosaic", "lit", "ray_data"), ("mosaic", "lit")
"""Modules; starting a Ray takes longer than all that is quick."""
INSTALL = "pip install litdata zstd Brotli python-snappy xxhash catalogue; pip install --no-deps mosaicml-streaming"
"""Without its dependencies: Streaming 0.13 asks for a transformers below 5 and a numpy below 2.2, and works without."""
TRANSFORM_TOLERANCE = 0.05
"""Of a row's mean cosine; the code's own mean is 0.0065 off one."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contender with its copy of the payload."""

    name: str
    module: str
    folder: str
    """Below the payload's."""
    tolerance: float = 1e-6

    @property
    def contender(self) -> Any:
        """See `contender.Contender`."""
        return import_module(f"infra.bench.loading.{self.module}")

    @property
    def is_ours(self) -> bool:
        return self.module == "ours"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How is read, and from where."""

    storage: str
    is_shuffled: bool
    num_ranks: int

    def __str__(self) -> str:
        workers = "1 worker" if self.num_ranks == 1 else f"{self.num_ranks} workers"
        return f"{self.storage}, {'shuffled' if self.is_shuffled else 'in order'}, {workers}"


SETTINGS = [
    Setting(storage=storage, is_shuffled=is_shuffled, num_ranks=num_ranks)
    for storage, is_shuffled, num_ranks in product(("disk", "S3"), (False, True), (1, 2))
]
QUICK_SETTINGS = [SETTINGS[0], SETTINGS[-1]]


def entries(peers: Sequence[str] = PEERS) -> tuple[list[Entry], list[str]]:
    """Our variants and the peers that are installed; what to say of the others."""
    found = [
        Entry(name=name, module="ours", folder=code, tolerance=TRANSFORM_TOLERANCE if code == "transform" else 1e-6)
        for code, name in VARIANTS.items()
    ]
    missing = []
    for module in peers:
        peer = Entry(name=import_module(f"infra.bench.loading.{module}").NAME, module=module, folder=module)
        if installed_version(peer) is None:
            missing.append(f"{peer.name} is left out: it is not installed ({INSTALL})")
        else:
            found.append(peer)
    return found, missing


def installed_version(entry: Entry) -> str | None:
    package = entry.contender.PACKAGE
    if package is None:
        return None
    try:
        return version(package.partition("[")[0])
    except PackageNotFoundError:
        return None
