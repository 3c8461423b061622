"""Every benchmark can be imported: most are run by hand, and then years after what they measure was renamed."""

import importlib
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "infra" / "bench"
MODULES = sorted(
    str(path.relative_to(BENCH.parents[1]).with_suffix("")).replace("/", ".") for path in BENCH.rglob("*.py")
)


@pytest.mark.parametrize("module", MODULES)
def test_it_is_imported(module: str) -> None:
    importlib.import_module(module)
