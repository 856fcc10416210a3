"""Gym's HalfCheetah-v2, Hopper-v2, Walker2d-v2 and Ant-v2 as D4RL recorded them, over today's MuJoCo.

Gymnasium's -v4 has the same model files and rewards, but today's MuJoCo gives capsules other masses (up to 8% of a
body's mass and a fifth of its inertia, see `cepdiff.envs.capsules`) and makes contacts at other distances (Hopper and
Ant, see `cepdiff.envs.contacts`).
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco.ant_v4 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v4 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
from gymnasium.envs.mujoco.walker2d_v4 import Walker2dEnv
from numpy.typing import NDArray

from cepdiff.envs.capsules import compile_with_cylindrical_capsules
from cepdiff.envs.contacts import restore_collider, restore_margins


class _Recorded(MujocoEnv):
    """Loads the model file with the capsules and the contacts of the recorded physics."""

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        spec = mujoco.MjSpec.from_file(self.fullpath)
        restore_margins(spec)
        model = compile_with_cylindrical_capsules(spec)
        restore_collider(model)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)


class RecordedHalfCheetah(_Recorded, HalfCheetahEnv):
    """HalfCheetah-v2: 17 observations, 6 actions."""


class RecordedHopper(_Recorded, HopperEnv):
    """Hopper-v2: 11 observations, 3 actions."""


class RecordedWalker2d(_Recorded, Walker2dEnv):
    """Walker2d-v2: 17 observations, 6 actions."""


class RecordedAnt(_Recorded, AntEnv):
    """Ant-v2: 111 observations, 8 actions. The last 84 observations are contact forces, which MuJoCo 2.0 no longer
    computed for `mujoco_py`: they are 0 in D4RL's files, and cost nothing in the reward."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(use_contact_forces=True, **kwargs)  # type: ignore[no-untyped-call]

    @property
    def contact_forces(self) -> NDArray[np.float64]:
        """Zeros (14, 6)."""
        return np.zeros_like(self.data.cfrc_ext)
