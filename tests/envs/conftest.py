"""Fixtures shared by the tests of both mazes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def physics() -> ModuleType:
    """The benchmark that compares with D4RL's own files."""
    file = Path(__file__).parents[2] / "benchmarks" / "maze_physics.py"
    spec = importlib.util.spec_from_file_location("maze_physics", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
