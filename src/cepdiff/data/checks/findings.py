"""The findings of a check, and the episodes and facts they are based on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cepdiff.data.rl.arrays import BoolArray, RawArrays
from cepdiff.data.rl.buffer import IntArray
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


class Episodes(NamedTuple):
    """N rows in E episodes: ends (N,) marks last rows; starts and lengths (E,) in rows; undiscounted returns (E,) in
    float64; complete (E,) is True for episodes ended by a terminal or a time limit."""

    ends: BoolArray
    starts: IntArray
    lengths: IntArray
    returns: npt.NDArray[np.float64]
    complete: BoolArray


def episodes_of(raw: RawArrays) -> Episodes:
    """Split rows into episodes as `TransitionBuffer` does: at `terminals | timeouts` and the last row."""
    ends = raw.terminals | raw.timeouts
    last_complete = bool(ends[-1])
    ends[-1] = True
    stops = np.flatnonzero(ends) + 1
    starts = np.concatenate(([0], stops[:-1]))
    complete = np.ones(len(stops), dtype=np.bool_)
    complete[-1] = last_complete
    return Episodes(ends, starts, stops - starts, np.add.reduceat(raw.rewards.astype(np.float64), starts), complete)


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
