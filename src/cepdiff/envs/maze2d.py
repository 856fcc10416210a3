"""D4RL's Maze2D: push a ball through a maze. All numbers are from D4RL 1.1, `pointmaze/maze_model.py`."""

from __future__ import annotations

from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from cepdiff.envs.contacts import restore_margins
from cepdiff.envs.layouts import MAZE2D_LAYOUTS, Layout, find_layout
from cepdiff.envs.mujoco_env import MujocoMaze, RewardType

_MAX_SPEED = 5.0


class Maze2D(MujocoMaze, EzPickle):
    """Push a ball to the goal and keep it there: observes (x, y, vx, vy), forces in [-1, 1]^2, 100 steps per second.

    The sparse reward is 1 within 0.5 of the goal and 0 elsewhere, the dense one exp(-distance), both after the step.
    Episodes never terminate. They start in any free cell, ±0.1, with a velocity of 0.1 times a normal draw. Raises
    ConfigError for an unknown maze, reward type or render mode.

    Args:
        layout: name of one of D4RL's mazes, or a layout.
        reward_type: `sparse` or `dense`.
        reset_target: draw the goal at each reset from all free cells, ±0.1, as D4RL does to collect data; otherwise it
            stays in the goal cell (or the first free one).
        render_mode: None or `rgb_array`, for images of `width` x `height` pixels.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 100}  # type: ignore[misc]
    frame_skip = 1
    world_offset = 1.2

    def __init__(
        self,
        layout: str | Layout = "umaze",
        reward_type: RewardType = "sparse",
        reset_target: bool = False,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
    ) -> None:
        EzPickle.__init__(self, layout, reward_type, reset_target, render_mode, width, height)
        layout = find_layout(layout, MAZE2D_LAYOUTS)
        super().__init__(layout, maze2d_model(layout), 4, reward_type, render_mode, width, height)
        self.reset_target = reset_target
        self.goal = layout.xy((layout.cells("G") or layout.cells(".S"))[0])

    def step(self, action: NDArray[np.floating]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Limit the speed to 5, then simulate: an observed speed can be a little higher."""
        action = np.clip(self._checked(action), -1.0, 1.0)
        self.set_state(self.data.qpos, np.clip(self.data.qvel, -_MAX_SPEED, _MAX_SPEED))
        self._simulate(action)
        info = self._info()
        reward = float(info["success"]) if self.reward_type == "sparse" else float(np.exp(-self._distance()))
        return self._observation(), reward, False, False, info

    def _draws_goal(self, seed: int | None) -> bool:
        return self.reset_target

    def _draw_goal(self) -> NDArray[np.float64]:
        return self._draw_location(".GS") + self._uniform(2)

    def _reset_state(self, start: NDArray[np.float64] | None) -> None:
        location = self._draw_location(".GS") if start is None else start
        self.set_state(location + self._uniform(2), self.init_qvel + self._normal(2))

    def _observation(self) -> NDArray[np.float64]:
        return np.concatenate([self.data.qpos, self.data.qvel])


def maze2d_model(layout: Layout) -> mujoco.MjModel:
    """Compile the model with the contacts of the MuJoCo that recorded D4RL's data."""
    spec = mujoco.MjSpec.from_string(maze2d_xml(layout))
    restore_margins(spec)
    model = spec.compile()
    # Contact softness scales with the inverse mass, averaged over three axes in the recordings and, from MuJoCo 3.0
    # on, over the two that the ball can move along.
    model.body("ball").invweight0[0] = 2.0 / (3.0 * model.body("ball").mass[0])
    return model


def maze2d_xml(layout: Layout) -> str:
    """XML of the model: a ball on two slides in a horizontal plane without gravity, a box per wall, two motors."""
    walls = "".join(
        f'<geom type="box" pos="{row + 1.0} {column + 1.0} 0" size="0.5 0.5 0.2" material="wall"/>'
        for row, column in layout.cells("#")
    )
    return f"""
    <mujoco model="maze2d">
      <compiler angle="radian"/>
      <option timestep="0.01" integrator="Euler" iterations="20" gravity="0 0 0"/>
      <visual><headlight ambient="0.4 0.4 0.4" diffuse="0.6 0.6 0.6" specular="0 0 0"/><map znear="0.01"/></visual>
      <asset>
        <material name="floor" rgba="0.9 0.9 0.92 1"/>
        <material name="wall" rgba="0.35 0.4 0.5 1"/>
      </asset>
      <default>
        <joint type="slide" limited="false" damping="1"/>
        <geom contype="2" conaffinity="1" condim="1" friction="0.5 0.1 0.1" margin="0.002" density="1000"/>
        <motor gear="100" ctrllimited="true" ctrlrange="-1 1"/>
      </default>
      <worldbody>
        <geom name="floor" type="plane" pos="0 0 -0.1" size="40 40 0.25" contype="1" conaffinity="0" material="floor"/>
        <site name="goal" pos="0 0 0.01" size="0.2" rgba="0.85 0.3 0.25 0.8"/>
        <body name="ball" pos="{Maze2D.world_offset} {Maze2D.world_offset} 0">
          <geom name="ball" type="sphere" size="0.1" contype="1" rgba="0.15 0.45 0.3 1"/>
          <joint name="x" axis="1 0 0"/>
          <joint name="y" axis="0 1 0"/>
        </body>
        {walls}
      </worldbody>
      <actuator><motor joint="x"/><motor joint="y"/></actuator>
    </mujoco>"""
