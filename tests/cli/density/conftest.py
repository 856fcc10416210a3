"""A finished run on a density, for each module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from density_runs import fit, write_density


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write_density(tmp_path_factory.mktemp("density"))
    sys.modules.pop("density_energies", None)


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    """A finished run, read-only; tests that change it take `run`."""
    run_dir = config.parent / "finished"
    assert fit(config, run_dir) == 0
    return run_dir
