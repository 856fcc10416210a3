"""One line of a check, and the episodes that checks and figures are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cepdiff.data.rl.arrays import BoolArray, RawArrays
from cepdiff.data.rl.buffer import IntArray
from cepdiff.data.rl.tasks import Task, horizon_for_env, references_for_env


@dataclass(frozen=True)
class Finding:
    """One line of a check; `level` is "info" or "warning", `handling` says what this package does about it."""

    level: str
    name: str
    message: str
    handling: str = ""


class Episodes(NamedTuple):
    """N rows in E episodes: ends (N,) marks last rows; starts, lengths (E,) in rows; returns (E,) in float64 and
    undiscounted; complete (E,) where a terminal or a time limit ended the episode."""

    ends: BoolArray
    starts: IntArray
    lengths: IntArray
    returns: npt.NDArray[np.float64]
    complete: BoolArray


def episodes_of(raw: RawArrays) -> Episodes:
    """Episodes as `TransitionBuffer` cuts them: at `terminals | timeouts`, and at the last row."""
    ends = raw.terminals | raw.timeouts
    last_complete = bool(ends[-1])
    ends[-1] = True
    stops = np.flatnonzero(ends) + 1
    starts = np.concatenate(([0], stops[:-1]))
    complete = np.ones(len(stops), dtype=np.bool_)
    complete[-1] = last_complete
    return Episodes(ends, starts, stops - starts, np.add.reduceat(raw.rewards.astype(np.float64), starts), complete)


def env_id_of(raw: RawArrays, task: Task | None) -> str | None:
    """The environment that the file names, else the task's."""
    env_id = raw.metadata.get("env_id", None if task is None else task.env_id)
    return None if env_id is None else str(env_id)


def horizon_of(raw: RawArrays, task: Task | None) -> int | None:
    """The episode limit in steps: the file's own note, else the task's, else its environment's."""
    env_id = env_id_of(raw, task)
    known = task.horizon if task else None if env_id is None else horizon_for_env(env_id)
    horizon = raw.metadata.get("horizon", known)
    return None if horizon is None else int(horizon)


def references_of(raw: RawArrays, task: Task | None) -> tuple[float, float] | None:
    """The returns that score 0 and 100: the file's own note, else the task's, else its environment's."""
    low, high = raw.metadata.get("reference_min"), raw.metadata.get("reference_max")
    if low is not None and high is not None:
        return float(low), float(high)
    if task is not None:
        return task.reference_min, task.reference_max
    return references_for_env(str(raw.metadata.get("env_id")))
