"""Base class of the mazes: a MuJoCo model stepped as in old Gym, a goal in the plane, and images from above."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from gymnasium.spaces import Box
from numpy.typing import NDArray

from cepdiff.envs.layouts import Layout
from cepdiff.errors import ConfigError, SimulationError

RewardType = Literal["sparse", "dense"]

# A goal counts as reached within this distance, in units of xy.
GOAL_RADIUS = 0.5
_START_NOISE = 0.1


class MujocoMaze(gym.Env[NDArray[np.float64], NDArray[np.floating]]):
    """A body in a maze with a goal. D4RL drew from NumPy's global generator; here all draws come from `np_random`.

    Raises ConfigError for an unknown reward type or render mode.

    Args:
        layout: the maze.
        model: the MuJoCo model, with a site `goal` that marks the goal in images.
        observation_size: length of the observation.
        reward_type: `sparse` or `dense`.
        render_mode: None or `rgb_array`, for images of `width` x `height` pixels.

    Attributes:
        frame_skip: physics steps per environment step.
        world_offset: world coordinates minus observed coordinates.
        model: the compiled model.
        data: its state; `data.qpos` and `data.qvel` are float64.
        layout: the maze.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}  # type: ignore[misc]
    frame_skip: ClassVar[int]
    world_offset: ClassVar[float]

    def __init__(
        self,
        layout: Layout,
        model: mujoco.MjModel,
        observation_size: int,
        reward_type: RewardType,
        render_mode: str | None,
        width: int,
        height: int,
    ) -> None:
        if reward_type not in ("sparse", "dense"):
            raise ConfigError(f"reward_type is '{reward_type}'; expected sparse or dense")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode is '{render_mode}'; expected None or rgb_array")
        self.layout = layout
        self.reward_type = reward_type
        self.render_mode = render_mode
        self.model = model
        self.model.vis.global_.offwidth, self.model.vis.global_.offheight = width, height
        self.data = mujoco.MjData(self.model)
        self.init_qpos, self.init_qvel = self.data.qpos.copy(), self.data.qvel.copy()
        self.observation_space = Box(-np.inf, np.inf, (observation_size,), np.float64)
        self.action_space = Box(-1.0, 1.0, (self.model.nu,), np.float32)
        self._goal_site = self.model.site("goal").id
        self._goal: NDArray[np.float64] | None = None
        self._renderer = MujocoRenderer(model, self.data, default_cam_config=self._camera(), width=width, height=height)

    @property
    def dt(self) -> float:
        """Simulated seconds per environment step."""
        return float(self.model.opt.timestep * self.frame_skip)

    @property
    def goal(self) -> NDArray[np.float64]:
        """Position of the goal (2,), in observed coordinates; assign to it to move the goal.

        Raises SimulationError before the first reset, if that draws the goal.
        """
        if self._goal is None:
            raise SimulationError("The goal is drawn by reset(): call it first, or assign a goal")
        return np.array(self._goal)

    @goal.setter
    def goal(self, position: NDArray[np.floating]) -> None:
        self._goal = np.array(position, dtype=np.float64).reshape(2)
        self.model.site_pos[self._goal_site, :2] = self._goal + self.world_offset

    def set_state(self, qpos: NDArray[np.floating], qvel: NDArray[np.floating]) -> None:
        """Set positions (nq,), velocities (nv,) and what depends on them; raises SimulationError for wrong shapes."""
        expected = (self.model.nq,), (self.model.nv,)
        if (np.shape(qpos), np.shape(qvel)) != expected:
            raise SimulationError(f"Expected a state of shapes {expected}; found {np.shape(qpos)}, {np.shape(qvel)}")
        self.data.qpos[:] = qpos
        self.data.qvel[:] = qvel
        # MuJoCo up to 2.x, which recorded D4RL's data, did this in mj_forward.
        mujoco.mj_normalizeQuat(self.model, self.data.qpos)
        mujoco.mj_forward(self.model, self.data)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start an episode; `seed` is that of all further draws.

        `options` are `start`, a position (2,) to which the usual start noise of ±0.1 is added, and `goal`, a position
        (2,) without noise; both in observed coordinates. Raises ConfigError for an unknown option, or a position that
        is not two finite numbers.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"start", "goal"}:
            raise ConfigError(f"Unknown options of reset(): {', '.join(map(str, unknown))}; expected start or goal")
        positions = {name: _position(name, value) for name, value in options.items()}
        mujoco.mj_resetData(self.model, self.data)
        if "goal" in positions:
            self.goal = positions["goal"]
        elif self._goal is None or self._draws_goal(seed):
            self.goal = self._draw_goal()
        self._reset_state(positions.get("start"))
        return self._observation(), self._info()

    def render(self) -> NDArray[np.uint8] | None:
        """Image (height, width, 3) of the whole maze, or None without a render mode."""
        if self.render_mode is None:
            gym.logger.warn("Nothing to draw: make the environment with render_mode='rgb_array'")
            return None
        picture: NDArray[np.uint8] = self._renderer.render(self.render_mode)
        return picture

    def close(self) -> None:
        """Free the graphics context."""
        self._renderer.close()  # type: ignore[no-untyped-call]

    @abstractmethod
    def _draws_goal(self, seed: int | None) -> bool:
        """True if this reset moves the goal."""

    @abstractmethod
    def _draw_goal(self) -> NDArray[np.float64]: ...

    @abstractmethod
    def _reset_state(self, start: NDArray[np.float64] | None) -> None: ...

    @abstractmethod
    def _observation(self) -> NDArray[np.float64]: ...

    def _checked(self, action: NDArray[np.floating]) -> NDArray[np.floating]:
        action = np.asarray(action)
        if action.shape != self.action_space.shape:
            raise SimulationError(f"Expected an action of shape {self.action_space.shape}; found {action.shape}")
        return action

    def _simulate(self, control: NDArray[np.floating]) -> None:
        """One environment step under this control (nu,), in the actuators' units."""
        self.data.ctrl[:] = control
        mujoco.mj_step(self.model, self.data, nstep=self.frame_skip)

    def _draw_location(self, letters: str) -> NDArray[np.float64]:
        """Location (2,) of a random cell with one of these letters."""
        cells = self.layout.cells(letters)
        return self.layout.xy(cells[self.np_random.integers(len(cells))])

    def _distance(self) -> float:
        return float(np.linalg.norm(self.data.qpos[:2] - self.goal))

    def _info(self) -> dict[str, Any]:
        return {"goal": self.goal, "success": self._distance() <= GOAL_RADIUS}

    def _uniform(self, size: int) -> NDArray[np.float64]:
        return self.np_random.uniform(-_START_NOISE, _START_NOISE, size)

    def _normal(self, size: int) -> NDArray[np.float64]:
        return _START_NOISE * self.np_random.standard_normal(size)

    def _camera(self) -> dict[str, Any]:
        """The whole grid from above: Maze2D like its text, AntMaze with y upward (first row at the bottom)."""
        low, high = self.layout.bounds() + self.world_offset
        # Height of the view at distance 1.
        seen = 2 * math.tan(math.radians(self.model.vis.global_.fovy) / 2)
        return {
            "distance": float(max(high - low)) * 1.1 / seen,
            "lookat": np.append((low + high) / 2, 0.0),
            "elevation": -90.0,
            "azimuth": 180.0 if self.layout.row_axis == 0 else 90.0,
        }


def _position(name: str, value: Any) -> NDArray[np.float64]:
    try:
        position = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        position = np.empty(0)
    if position.shape != (2,) or not np.isfinite(position).all():
        raise ConfigError(f"The option {name} is {value!r}; expected a position of two finite numbers")
    return position
