"""How the observations of a family of MuJoCo environments are made of the simulator's state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Observed velocities this near the bound of the clip may have been beyond it.
_CLIP_MARGIN = 1e-5


@dataclass(frozen=True)
class Family:
    """Observations that are `qpos` without its first `hidden_positions` entries, then `qvel`, then `further` values.

    `velocity_clip` bounds the observed velocities. Where `has_velocities` is False the velocities are not observed.
    `reward_of_state` says that D4RL's files of this family may hold r(s_i) in row i, not r(s_i, a_i): Maze2D's rewards
    were computed afterwards from the observations (D4RL, `scripts/generation/relabel_maze2d_rewards.py`). With
    `has_goal` the reward depends on the environment's attribute `goal`, of which a file may note its own. `remark` is
    for the reader of a comparison.
    """

    hidden_positions: int = 0
    velocity_clip: float | None = None
    further: str = "further"
    has_velocities: bool = True
    reward_of_state: bool = False
    has_goal: bool = False
    remark: str = ""


# The beginning of an environment's name, in small letters -> its family. Facts of Gymnasium's and D4RL's sources.
FAMILIES = {
    "halfcheetah": Family(hidden_positions=1),
    "hopper": Family(hidden_positions=1, velocity_clip=10.0),
    "walker2d": Family(hidden_positions=1, velocity_clip=10.0),
    "antmaze": Family(has_goal=True),
    "ant-": Family(hidden_positions=2, further="contact forces"),
    "swimmer": Family(hidden_positions=2),
    "humanoid": Family(hidden_positions=2, further="inertias and forces"),
    "invertedpendulum": Family(),
    "maze2d": Family(reward_of_state=True, has_goal=True),
    "kitchen": Family(
        further="goal", has_velocities=False, remark="observations carry noise of about 0.01, which no replay repeats"
    ),
}


def family_of(env_id: str) -> Family | None:
    """The family of `Hopper-v4`, `cepdiff/antmaze-umaze-v2`, ...; None where unknown."""
    name = env_id.rpartition("/")[2].lower()
    return next((family for stem, family in FAMILIES.items() if name.startswith(stem)), None)


def observation_groups(family: Family | None, size: int, nq: int, nv: int) -> dict[str, slice]:
    """The parts of an observation of `size` numbers by name; nq and nv are the sizes of `qpos` and `qvel`.

    One group of all where the family is unknown or does not fit the sizes.
    """
    if family is None:
        return {"observation": slice(0, size)}
    positions = nq - _hidden(family, size, nq, nv)
    ends = {
        "positions": positions,
        "velocities": positions + (nv if family.has_velocities else 0),
        family.further: size,
    }
    groups, start = {}, 0
    for name, end in ends.items():
        if end > size:
            return {"observation": slice(0, size)}
        if end > start:
            groups[name] = slice(start, end)
        start = end
    return groups


def state_from_observation(
    family: Family | None, observations: NDArray[np.float32], nq: int, nv: int
) -> tuple[Floats, Floats, NDArray[np.bool_], int] | None:
    """(qpos (N, nq), qvel (N, nv), exact (N,), number of hidden positions) of observations (N, S); None where they do
    not determine the state.

    Hidden positions are where the robot stands on an endless plane; they are set to 0, which changes neither the next
    observation nor a reward that pays for the distance of one step. Rows with a velocity at the clip are not exact.
    """
    if family is None or not family.has_velocities:
        return None
    size = observations.shape[1]
    hidden = _hidden(family, size, nq, nv)
    end = nq - hidden + nv
    if end > size:
        return None
    values = observations[:, :end].astype(np.float64)
    qpos = np.concatenate([np.zeros((len(values), hidden)), values[:, : nq - hidden]], axis=1)
    qvel = values[:, nq - hidden :]
    exact = np.ones(len(values), np.bool_)
    if family.velocity_clip is not None:
        exact = np.abs(qvel).max(axis=1) < family.velocity_clip - _CLIP_MARGIN
    return qpos, qvel, exact, hidden


def _hidden(family: Family, size: int, nq: int, nv: int) -> int:
    """Gymnasium's `exclude_current_positions_from_observation=False` shows all positions."""
    shown = family.has_velocities and size == nq + nv
    return 0 if shown else family.hidden_positions
