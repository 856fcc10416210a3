"""How families of MuJoCo environments build observations from the simulator's state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Observed velocities this close to the clipping bound may have been clipped.
_CLIP_MARGIN = 1e-5


@dataclass(frozen=True)
class Family:
    """Observations that are `qpos` without its first `hidden_positions` entries, then `qvel`, then `further` values.

    `velocity_clip` bounds the observed velocities; without `has_velocities` they are not observed. With
    `reward_of_state`, row i of D4RL's files may hold r(s_i) instead of r(s_i, a_i): Maze2D's rewards were computed
    afterwards from the observations (D4RL, `scripts/generation/relabel_maze2d_rewards.py`). With `has_goal`, the reward
    depends on the environment's attribute `goal`, which a file may record. `remark` is printed with a comparison.
    """

    hidden_positions: int = 0
    velocity_clip: float | None = None
    further: str = "further"
    has_velocities: bool = True
    reward_of_state: bool = False
    has_goal: bool = False
    remark: str = ""


# Lower-case prefix of an environment's name -> its family, from the sources of Gymnasium and D4RL.
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
        further="goal", has_velocities=False, remark="observations have noise of about 0.01, which differs in a replay"
    ),
}


def family_of(env_id: str) -> Family | None:
    """The family of `Hopper-v4`, `cepdiff/antmaze-umaze-v2`, ...; None if unknown."""
    name = env_id.rpartition("/")[2].lower()
    return next((family for stem, family in FAMILIES.items() if name.startswith(stem)), None)


def observation_groups(family: Family | None, size: int, nq: int, nv: int) -> dict[str, slice]:
    """Parts of an observation of `size` numbers by name; nq and nv are the sizes of `qpos` and `qvel`.

    A single group if the family is unknown or does not fit the sizes.
    """
    if family is None:
        return {"observation": slice(0, size)}
    positions = nq - _hidden(family, size, nq, nv)
    velocities = positions + (nv if family.has_velocities else 0)
    if velocities > size:
        return {"observation": slice(0, size)}
    ends = {"positions": positions, "velocities": velocities, family.further: size}
    starts = (0, positions, velocities)
    return {name: slice(start, end) for start, (name, end) in zip(starts, ends.items(), strict=True) if end > start}


def state_from_observation(
    family: Family | None, observations: NDArray[np.float32], nq: int, nv: int
) -> tuple[Floats, Floats, NDArray[np.bool_], int] | None:
    """Return qpos (N, nq), qvel (N, nv), exact (N,) and the number of hidden positions for observations (N, S).

    None if they do not determine the state. Hidden positions are the robot's place on an endless plane; they are set
    to 0, which changes neither the next observation nor a reward for the distance of one step. Rows with a velocity at
    the clip are not exact.
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
    """Number of hidden positions: 0 with Gymnasium's `exclude_current_positions_from_observation=False`."""
    shown = family.has_velocities and size == nq + nv
    return 0 if shown else family.hidden_positions
