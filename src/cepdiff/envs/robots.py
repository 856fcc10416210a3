"""Models of D4RL's robot tasks, Adroit and Kitchen, out of the package gymnasium-robotics."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mujoco

from cepdiff.errors import MissingExtraError, SimulationError


def model_file(path: str) -> Path:
    """A model file of gymnasium-robotics, by its path under `envs/assets`. Its Python code is not imported.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package = importlib.util.find_spec("gymnasium_robotics")
    if package is None or package.origin is None:
        raise MissingExtraError("A robot of D4RL's Adroit and Kitchen tasks", "robotics")
    return Path(package.origin).parent / "envs" / "assets" / path


def read_model(file: str | Path) -> mujoco.MjSpec:
    """A model file, parsed and not yet compiled.

    Raises:
        SimulationError: this MuJoCo cannot read it, as MuJoCo 4 cannot read Adroit before gymnasium-robotics 1.4.2.
    """
    try:
        return mujoco.MjSpec.from_file(str(file))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise SimulationError(
            f"MuJoCo {mujoco.__version__} cannot read {file}: {reason}. "
            "Install newer models: pip install --upgrade gymnasium-robotics"
        ) from error
