"""The findings of a check, and the facts they are based on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.tasks import Task, horizon_for_env, references_for_env


@dataclass(frozen=True)
class Finding:
    """One finding of a check: `level` is "info" or "warning", `handling` says how this package deals with it."""

    level: str
    name: str
    message: str
    handling: str = ""


info = partial(Finding, "info")
warning = partial(Finding, "warning")


def env_id_of(raw: RawArrays, task: Task | None) -> str | None:
    """Return the environment id of the metadata, else the task's."""
    env_id = raw.metadata.get("env_id", None if task is None else task.env_id)
    return None if env_id is None else str(env_id)


def horizon_of(raw: RawArrays, task: Task | None) -> int | None:
    """Return the episode limit in steps: of the metadata, else the task, else the environment."""
    env_id = env_id_of(raw, task)
    known = task.horizon if task else None if env_id is None else horizon_for_env(env_id)
    horizon = raw.metadata.get("horizon", known)
    return None if horizon is None else int(horizon)


def references_of(raw: RawArrays, task: Task | None) -> tuple[float, float] | None:
    """Return the returns that score 0 and 100: of the metadata, else the task, else the environment."""
    low, high = raw.metadata.get("reference_min"), raw.metadata.get("reference_max")
    if low is not None and high is not None:
        return float(low), float(high)
    if task is not None:
        return task.reference_min, task.reference_max
    return references_for_env(str(raw.metadata.get("env_id")))
