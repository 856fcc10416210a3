"""D4RL's AntMaze: a four-legged ant walks through a maze. All numbers are from D4RL 1.1, `locomotion/`."""

from __future__ import annotations

from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from cepdiff.envs.capsules import compile_with_cylindrical_capsules
from cepdiff.envs.contacts import restore_margins
from cepdiff.envs.layouts import ANTMAZE_LAYOUTS, Layout, find_layout
from cepdiff.envs.mujoco_env import GOAL_RADIUS, MujocoMaze, RewardType

# Half the walls' height, in metres.
_WALL_HALF_HEIGHT = 1.0

# Per leg: signs of its direction in (x, y), axis and range (degrees) of its ankle.
_LEGS = (
    ("front_left", (1, 1), "-1 1 0", "30 70"),
    ("front_right", (-1, 1), "1 1 0", "-70 -30"),
    ("back_left", (-1, -1), "-1 1 0", "-70 -30"),
    ("back_right", (1, -1), "1 1 0", "30 70"),
)
# Order of the actions: the legs in this order, hip before ankle.
_ACTION_ORDER = ("back_right", "front_left", "front_right", "back_left")


class AntMaze(MujocoMaze, EzPickle):
    """Walk an ant to the goal: 29 observations (15 positions, 14 velocities), 8 torques in [-1, 1], 0.1 s per step.

    Observations are MuJoCo's qpos (x, y, z, quaternion w x y z, 8 joint angles) and qvel. An action of ±1 is a torque
    of ±30; actions outside are clipped. The sparse reward is 1 within 0.5 of the goal and 0 elsewhere, the dense one is
    minus the distance, both after the step. Raises ConfigError for an unknown maze, reward type or render mode.

    Args:
        layout: name of one of D4RL's mazes, or a layout.
        reward_type: `sparse` or `dense`.
        evaluation: if True, episodes end at the goal, as in all of D4RL's registrations. If False, they never end and
            the observation also has the offset to the goal (2,), as for the policies that made D4RL's data.
        non_zero_reset: start in any cell but the goal's instead of at the origin, 0 to 1 from its location in x and y
            (coordinates below 0 become 0, which puts the starts of `eval-umaze` into walls).
        goal_each_reset: draw a goal at each reset (v2). Otherwise (v0, v1) the goal stays: D4RL draws it when the
            environment is made; here the first reset draws it, and so does every reset with a seed.
        render_mode: None or `rgb_array`, for images of `width` x `height` pixels.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[misc]
    frame_skip = 5
    world_offset = 0.0

    def __init__(
        self,
        layout: str | Layout = "umaze",
        reward_type: RewardType = "sparse",
        evaluation: bool = True,
        non_zero_reset: bool = False,
        goal_each_reset: bool = True,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
    ) -> None:
        arguments = (layout, reward_type, evaluation, non_zero_reset, goal_each_reset, render_mode, width, height)
        EzPickle.__init__(self, *arguments)
        layout = find_layout(layout, ANTMAZE_LAYOUTS)
        observation_size = 29 if evaluation else 31
        super().__init__(layout, antmaze_model(layout), observation_size, reward_type, render_mode, width, height)
        self.evaluation = evaluation
        self.non_zero_reset = non_zero_reset
        self.goal_each_reset = goal_each_reset
        self._torque_low, self._torque_high = self.model.actuator_ctrlrange.T.astype(np.float32)

    def step(self, action: NDArray[np.floating]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Simulate 0.1 s under the torques of `action` (8,)."""
        # D4RL's arithmetic, in the action's precision.
        low, high = self._torque_low, self._torque_high
        self._simulate(np.clip(low + (self._checked(action) + 1.0) * 0.5 * (high - low), low, high))
        info = self._info()
        reward = float(info["success"]) if self.reward_type == "sparse" else -self._distance()
        return self._observation(), reward, self.evaluation and info["success"], False, info

    def _draws_goal(self, seed: int | None) -> bool:
        return self.goal_each_reset or seed is not None

    def _draw_goal(self) -> NDArray[np.float64]:
        """In a goal cell, or any free cell if there is none; coordinates below 0 become 0, as in D4RL."""
        location = self._draw_location("G" if self.layout.cells("G") else ".S")
        size = self.layout.cell_size
        noise = self.np_random.uniform(0, size / 4, 2) + self.np_random.uniform(0, size / 8, 2)
        return np.maximum(location + noise, 0)

    def _reset_state(self, start: NDArray[np.float64] | None) -> None:
        qpos = self.init_qpos + self._uniform(self.model.nq)
        if start is not None:
            qpos[:2] += start
        elif self.non_zero_reset:
            location = self._draw_location(".S")
            qpos[:2] = np.maximum(location + self.np_random.uniform(0, self.layout.cell_size / 4, 2), 0)
        self.set_state(qpos, self.init_qvel + self._normal(self.model.nv))

    def _observation(self) -> NDArray[np.float64]:
        parts = [self.data.qpos, self.data.qvel]
        if not self.evaluation:
            parts.append(self.goal - self.data.qpos[:2])
        return np.concatenate(parts)


def antmaze_model(layout: Layout) -> mujoco.MjModel:
    """Compile the model with the capsules and contacts of the MuJoCo that recorded D4RL's data."""
    spec = mujoco.MjSpec.from_string(antmaze_xml(layout))
    restore_margins(spec)
    return compile_with_cylindrical_capsules(spec)


def antmaze_xml(layout: Layout) -> str:
    """XML of the model: the ant (Schulman et al. 2015) on a floor, a box per wall, a motor per joint."""
    half = layout.cell_size / 2
    walls = "".join(
        f'<geom type="box" pos="{x} {y} {_WALL_HALF_HEIGHT}" size="{half} {half} {_WALL_HALF_HEIGHT}" '
        'conaffinity="1" material="wall"/>'
        for x, y in layout.wall_centers()
    )
    legs = "".join(_leg_xml(*leg) for leg in _LEGS)
    motors = "".join(f'<motor joint="hip_{leg}"/><motor joint="ankle_{leg}"/>' for leg in _ACTION_ORDER)
    return f"""
    <mujoco model="antmaze">
      <compiler angle="degree"/>
      <option timestep="0.02" integrator="RK4"/>
      <visual><headlight ambient="0.4 0.4 0.4" diffuse="0.2 0.2 0.2" specular="0 0 0"/></visual>
      <asset>
        <texture type="skybox" builtin="flat" width="8" height="8" rgb1="0.9 0.9 0.9"/>
        <texture name="floor" type="2d" builtin="checker" width="64" height="64"
                 rgb1="0.93 0.93 0.95" rgb2="0.87 0.88 0.9"/>
        <material name="floor" texture="floor" texrepeat="20 20"/>
        <material name="wall" rgba="0.35 0.4 0.5 1"/>
        <material name="ant" rgba="0.15 0.45 0.3 1"/>
      </asset>
      <default>
        <joint limited="true" armature="1" damping="1"/>
        <geom conaffinity="0" condim="3" friction="1 0.5 0.5" margin="0.01" solref="0.02 1" solimp="0.8 0.8 0.01"
              density="5" material="ant"/>
        <motor ctrllimited="true" ctrlrange="-30 30"/>
        <default class="leg"><geom type="capsule" size="0.08"/><joint type="hinge"/></default>
      </default>
      <worldbody>
        <light directional="true" diffuse="0.4 0.4 0.4" pos="0 0 10" dir="0.3 0.2 -1"/>
        <geom name="floor" type="plane" size="40 40 40" conaffinity="1" material="floor"/>
        <site name="goal" type="cylinder" pos="0 0 0.01" size="{GOAL_RADIUS} 0.02" rgba="0.85 0.3 0.25 0.8"/>
        <body name="torso" pos="0 0 0.75">
          <joint name="root" type="free" limited="false" margin="0.01" armature="0" damping="0"/>
          <geom name="torso" type="sphere" size="0.25"/>
          {legs}
        </body>
        {walls}
      </worldbody>
      <actuator>{motors}</actuator>
    </mujoco>"""


def _leg_xml(name: str, signs: tuple[int, int], ankle_axis: str, ankle_range: str) -> str:
    """Three capsules along a diagonal: one fixed to the torso, one beyond the hip, one beyond the ankle."""
    short, long = (f"{length * signs[0]} {length * signs[1]} 0" for length in (0.2, 0.4))
    return f"""
    <body name="{name}" childclass="leg">
      <geom fromto="0 0 0 {short}"/>
      <body name="thigh_{name}" pos="{short}">
        <joint name="hip_{name}" axis="0 0 1" range="-30 30"/>
        <geom fromto="0 0 0 {short}"/>
        <body name="shin_{name}" pos="{short}">
          <joint name="ankle_{name}" axis="{ankle_axis}" range="{ankle_range}"/>
          <geom fromto="0 0 0 {long}"/>
        </body>
      </body>
    </body>"""
