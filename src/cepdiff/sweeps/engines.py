"""The engine that a sweep names."""

from __future__ import annotations

from pathlib import Path

from cepdiff.sweeps.engine import Engine
from cepdiff.sweeps.local import LocalEngine
from cepdiff.sweeps.ray import RayEngine
from cepdiff.sweeps.settings import SweepSettings
from cepdiff.sweeps.slurm import SlurmEngine


def make_engine(settings: SweepSettings, jobs: Path) -> Engine:
    """The engine of a sweep; `jobs` is a folder for its own files.

    Raises:
        ConfigError: a machine or cluster that cannot be reached, or has less than a run needs.
        MissingExtraError: the library of the engine is not installed.
    """
    if settings.engine == "ray":
        return RayEngine(settings.resources, settings.ray)
    if settings.engine == "slurm":
        return SlurmEngine(settings.resources, settings.slurm, jobs)
    return LocalEngine(settings.resources, settings.local)
