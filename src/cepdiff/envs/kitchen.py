"""D4RL's Kitchen: a 9-joint Franka arm in a kitchen, four subtasks. All numbers are from D4RL 1.1, `kitchen/`.

The model is gymnasium-robotics'; observation, noise, control, reward and end are D4RL's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from cepdiff.envs.recorded import RecordedEnv, compile_as_recorded
from cepdiff.envs.robots import model_file, read_model
from cepdiff.errors import ConfigError, SimulationError, nearest

FloatArray = NDArray[np.float64]

_MODEL = "kitchen_franka/kitchen_assets/kitchen_env_model.xml"
_JOINTS = 9
# Subtask -> index of its first coordinate in qpos, and the goal of the coordinates from there on.
GOALS: dict[str, tuple[int, tuple[float, ...]]] = {
    "bottom burner": (11, (-0.88, -0.01)),
    "top burner": (15, (-0.92, -0.01)),
    "light switch": (17, (-0.69, -0.05)),
    "slide cabinet": (19, (0.37,)),
    "hinge cabinet": (20, (0.0, 1.45)),
    "microwave": (22, (-0.75,)),
    "kettle": (23, (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
# A subtask is complete within this Euclidean distance of its goal.
GOAL_DISTANCE = 0.3

# Start of an episode: 9 joints of the robot, 14 of the kitchen, position and quaternion of the kettle.
# fmt: off
_START = np.array([
    1.48388023e-01, -1.76848573e+00, 1.84390296e+00, -2.47685760e+00, 2.60252026e-01, 7.12533105e-01, 1.59515394e+00,
    4.79267505e-02, 3.71350919e-02,
    -2.66279850e-04, -5.18043486e-05, 3.12877220e-05, -4.51199853e-05, -3.90842156e-06, -4.22629655e-05,
    6.28065475e-05, 4.04984708e-05, 4.62730939e-04, -2.26906415e-04, -4.65501369e-04, -6.44129196e-03,
    -1.77048263e-03, 1.08009684e-03,
    -2.69397440e-01, 3.50383255e-01, 1.61944683e+00, 1.00618764e+00, 4.06395120e-03, -6.62095997e-03, -2.68278933e-04,
])
# fmt: on
# Observation noise at ratio 1, per coordinate of qpos, in rad or m.
_NOISE = np.array(9 * [0.1] + 2 * [0.005] + 6 * [0.0005] + 3 * [0.005] + 3 * [0.1] + 3 * [0.005] + 3 * [0.1] + [0.005])
# Bounds of the controller's target positions, in rad and, for the two fingers, m.
_LOWEST = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9, 0.0, 0.0])
_HIGHEST = np.array([2.9, 1.8, 2.9, 0.0, 2.9, 3.8, 2.9, 0.04, 0.04])
_CAMERA: dict[str, Any] = {"distance": 2.2, "azimuth": 70.0, "elevation": -35.0, "lookat": np.array([-0.2, 0.5, 2.0])}
# Speed of a joint under an action of 1, in rad/s or m/s.
_SPEED = 2.0


def goal_of(tasks: Sequence[str]) -> FloatArray:
    """Goal part of the observation (30,): target coordinates of these subtasks, 0 elsewhere."""
    goal = np.zeros(len(_START))
    for task in tasks:
        first, values = GOALS[task]
        goal[first : first + len(values)] = values
    return goal


def completed(tasks: Sequence[str], qpos: FloatArray) -> list[str]:
    """The subtasks whose goal is within `GOAL_DISTANCE` in qpos (30,)."""
    distances = {}
    for task in tasks:
        first, values = GOALS[task]
        distances[task] = np.linalg.norm(qpos[first : first + len(values)] - values)
    return [task for task in tasks if distances[task] < GOAL_DISTANCE]


def wanted_positions(action: NDArray[np.floating], observed: FloatArray, seconds: float) -> FloatArray:
    """Target positions of the controller (9,): the `observed` joint positions, noise included, after moving for
    `seconds` at the action's speed."""
    speed = _SPEED * np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
    return np.clip(observed + speed * seconds, _LOWEST, _HIGHEST)


class Kitchen(RecordedEnv):
    """Complete four subtasks in any order: 60 observations, 9 joint velocities in [-1, 1], 12.5 steps per second.

    The observation is qpos (9 of the robot, 21 of the objects) with uniform noise, then the goal (30), which is 0 for
    the coordinates of other subtasks. An action of ±1 is ±2 rad/s, or ±2 m/s for a finger. The reward of a step is the
    number of subtasks it completes; each counts once per episode, and the episode ends with the last one.
    `info` has `completed`, the subtasks done in this step, and `remaining`.

    Args:
        tasks: the subtasks, keys of `GOALS`.
        noise_ratio: amplitude of the observation noise relative to the robot's specification; D4RL's is 0.1 (0.01 rad
            for the arm). Control and completion use the observed positions, so the noise affects them too.
        **rendering: arguments of Gymnasium's `MujocoEnv`: `render_mode`, `width`, `height` and so on.

    Raises:
        ConfigError: no or unknown subtasks, or a negative ratio.
        MissingExtraError: gymnasium-robotics is not installed.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 12,
    }
    state_keys = ("qpos", "qvel")

    def __init__(self, tasks: Sequence[str], noise_ratio: float = 0.1, **rendering: Any) -> None:
        if unknown := [task for task in tasks if task not in GOALS]:
            hint = nearest(unknown[0], GOALS)
            raise ConfigError(f"Unknown subtask '{unknown[0]}'; known: {', '.join(GOALS)}.{hint}")
        if not tasks:
            raise ConfigError("Kitchen needs at least one subtask")
        if noise_ratio < 0:
            raise ConfigError(f"noise_ratio is {noise_ratio}; expected 0 or more")
        self.tasks = tuple(tasks)
        self.goal = goal_of(tasks)
        self._remaining = list(tasks)
        self._noise = noise_ratio * _NOISE
        self._observed = _START.copy()
        super().__init__(
            str(model_file(_MODEL)),
            frame_skip=40,
            observation_space=Box(-np.inf, np.inf, (60,), np.float64),
            default_camera_config=_CAMERA,
            **rendering,
        )
        self.action_space = Box(-1.0, 1.0, (_JOINTS,), np.float32)

    def step(  # type: ignore[override]
        self, action: NDArray[np.floating]
    ) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """One step of 0.08 s."""
        if np.shape(action) != (_JOINTS,):
            raise SimulationError(f"Expected an action of shape {(_JOINTS,)}; found {np.shape(action)}")
        control = wanted_positions(action, self._observed[:_JOINTS], self.dt)
        self.do_simulation(control, self.frame_skip)
        observation = self._observe()
        done = completed(self._remaining, self._observed)
        self._remaining = [task for task in self._remaining if task not in done]
        if self.render_mode == "human":
            self.render()  # type: ignore[no-untyped-call]
        info = {"completed": done, "remaining": list(self._remaining)}
        return observation, float(len(done)), not self._remaining, False, info

    def reset_model(self) -> FloatArray:
        """D4RL's start: one fixed state; only the noise differs between episodes."""
        self._remaining = list(self.tasks)
        self.set_state(_START, np.zeros(self.model.nv))
        return self._observe()

    def set_state(self, qpos: FloatArray, qvel: FloatArray) -> None:
        """Set positions (30,) and velocities (29,); the controller then starts from these positions."""
        super().set_state(qpos, qvel)  # type: ignore[no-untyped-call]
        # The start's quaternion does not have length 1; MuJoCo up to 2.x normalised it in mj_forward.
        mujoco.mj_normalizeQuat(self.model, self.data.qpos)
        self._observed = self.data.qpos.copy()

    def get_env_state(self) -> dict[str, FloatArray]:
        """`qpos` (30,) and `qvel` (29,): the whole state, because the goal never changes."""
        return {"qpos": self.data.qpos.copy(), "qvel": self.data.qvel.copy()}

    def set_env_state(self, state: Mapping[str, FloatArray]) -> None:
        """Inverse of `get_env_state`; all subtasks count as open. Raises SimulationError if a key is missing."""
        if missing := [key for key in self.state_keys if key not in state]:
            raise SimulationError(f"A state of Kitchen needs {', '.join(self.state_keys)}; missing: {missing}")
        self._remaining = list(self.tasks)
        self.set_state(np.asarray(state["qpos"]), np.asarray(state["qvel"]))

    def _observe(self) -> FloatArray:
        noise = self._noise * self.np_random.uniform(-1.0, 1.0, len(_START))
        self._observed = self.data.qpos + noise
        return np.concatenate([self._observed, self.goal])

    def load_model(self) -> mujoco.MjModel:
        return kitchen_model(self.fullpath)


def kitchen_model(file: str) -> mujoco.MjModel:
    """Compile the kitchen as D4RL does: nothing touches the robot's pedestal, and only some geom groups have mass."""
    spec = read_model(file)
    pedestals = [g for g in spec.geoms if g.type == mujoco.mjtGeom.mjGEOM_CYLINDER and g.size[1] == 0.9]
    if len(pedestals) != 1:
        raise SimulationError(
            f"Expected one pedestal, a cylinder of half length 0.9, in {file}; found {len(pedestals)}"
        )
    pedestals[0].contype = pedestals[0].conaffinity = 0
    lowest, highest = spec.compiler.inertiagrouprange
    for geom in spec.geoms:
        if not lowest <= geom.group <= highest:  # visual only: the compiler ignores its mass
            geom.mass = 0.0
    return compile_as_recorded(spec)
