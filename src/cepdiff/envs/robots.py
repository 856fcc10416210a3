"""Models of D4RL's robot tasks, Adroit and Kitchen, from the package gymnasium-robotics."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mujoco

from cepdiff.errors import MissingExtraError, SimulationError, one_line


def model_file(path: str) -> Path:
    """Model file of gymnasium-robotics at `path` under `envs/assets`, without importing the package.

    Raises MissingExtraError if it is not installed.
    """
    package = importlib.util.find_spec("gymnasium_robotics")
    if package is None or package.origin is None:
        raise MissingExtraError("A robot of D4RL's Adroit and Kitchen tasks", "robotics")
    return Path(package.origin).parent / "envs" / "assets" / path


def read_model(file: str | Path) -> mujoco.MjSpec:
    """Parse a model file without compiling it.

    Raises SimulationError if MuJoCo cannot read it (MuJoCo 4 needs gymnasium-robotics 1.4.2 or later for Adroit).
    """
    try:
        return mujoco.MjSpec.from_file(str(file))
    except ValueError as error:
        raise SimulationError(
            f"MuJoCo {mujoco.__version__} cannot read {file}: {one_line(error)}. "
            "Install newer models: pip install --upgrade gymnasium-robotics"
        ) from error
