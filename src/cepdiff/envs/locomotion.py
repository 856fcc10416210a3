"""Gym's HalfCheetah-v2, Hopper-v2, Walker2d-v2 and Ant-v2 as D4RL recorded them, on current MuJoCo.

Gymnasium's -v4 has the same model files and rewards, but current MuJoCo computes other capsule masses (up to 8% of a
body's mass and a fifth of its inertia, see `cepdiff.envs.capsules`) and makes contacts at other distances (Hopper and
Ant, see `cepdiff.envs.contacts`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.ant_v4 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv
from gymnasium.envs.mujoco.walker2d_v4 import Walker2dEnv
from numpy.typing import NDArray

from cepdiff.envs.recorded import RecordedEnv


class RecordedHalfCheetah(RecordedEnv, HalfCheetahEnv):
    """HalfCheetah-v2: 17 observations, 6 actions."""


class RecordedHopper(RecordedEnv, HopperEnv):
    """Hopper-v2: 11 observations, 3 actions."""


class RecordedWalker2d(RecordedEnv, Walker2dEnv):
    """Walker2d-v2: 17 observations, 6 actions."""


class RecordedAnt(RecordedEnv, AntEnv):
    """Ant-v2: 111 observations, 8 actions. The last 84 observations are contact forces, which MuJoCo 2.0 no longer
    computed for `mujoco_py`: they are 0 in D4RL's files, and do not affect the reward."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(use_contact_forces=True, **kwargs)  # type: ignore[no-untyped-call]

    @property
    def contact_forces(self) -> NDArray[np.float64]:
        """Zeros (14, 6)."""
        return np.zeros_like(self.data.cfrc_ext)
