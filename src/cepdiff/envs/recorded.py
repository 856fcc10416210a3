"""Gymnasium's MuJoCo environments with the physics that recorded D4RL's data."""

from __future__ import annotations

import mujoco
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv

from cepdiff.envs.capsules import compile_with_cylindrical_capsules
from cepdiff.envs.contacts import restore_collider, restore_margins


def compile_as_recorded(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """Compile with the contacts and capsules of the MuJoCo that recorded D4RL's data."""
    restore_margins(spec)
    model = compile_with_cylindrical_capsules(spec)
    restore_collider(model)
    return model


class RecordedEnv(MujocoEnv):
    """Gymnasium's base class with a `load_model` to override."""

    def load_model(self) -> mujoco.MjModel:
        """Compile the model file `fullpath`."""
        return compile_as_recorded(mujoco.MjSpec.from_file(self.fullpath))

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = self.load_model()
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)
