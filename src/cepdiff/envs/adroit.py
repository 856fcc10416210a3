"""D4RL's Adroit: a 24-joint hand with four tasks. All numbers are from D4RL 1.1, `hand_manipulation_suite/`.

The models come from gymnasium-robotics and equal D4RL's; observation, reward, start and end are D4RL's. Site and body
positions lag one substep behind, in observations and in rewards, as MuJoCo leaves them after a step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from cepdiff.envs.recorded import RecordedEnv, compile_as_recorded
from cepdiff.envs.robots import model_file, read_model
from cepdiff.errors import SimulationError

FloatArray = NDArray[np.float64]

# First and last actuator of a group, and its stiffness in D4RL, which replaces the file's, in Nm/rad.
_STIFFNESS = (("A_WRJ1", "A_WRJ0", 10.0), ("A_FFJ3", "A_THJ0", 1.0))


def pen_reward(distance: float, similarity: float, height: float) -> float:
    """Reward from the pen's `distance` to its target (m), cosine `similarity` of directions and `height` (m)."""
    near = distance < 0.075
    bonus = 10.0 * (near and similarity > 0.9) + 50.0 * (near and similarity > 0.95)
    return similarity - distance + bonus - 5.0 * pen_dropped(height)


def pen_dropped(height: float) -> bool:
    """True if the pen's centre is below 0.075 m, which ends the episode."""
    return height < 0.075


def door_reward(reach: float, hinge: float, qvel: FloatArray) -> float:
    """Reward from the palm-handle distance `reach` (m), the `hinge` angle (rad) and all joint velocities (30,)."""
    bonus = 2.0 * (hinge > 0.2) + 8.0 * (hinge > 1.0) + 10.0 * (hinge > 1.35)
    return -0.1 * reach - 0.1 * (hinge - 1.57) ** 2 - 1e-5 * float(np.sum(qvel**2)) + bonus


def hammer_reward(reach: float, aim: float, depth: float, qvel: FloatArray, lifted: bool) -> float:
    """Reward from the palm-hammer distance `reach`, head-nail distance `aim` and remaining nail `depth` (all m), all
    joint velocities (33,), and whether hammer and head are `lifted` above 0.04 m."""
    bonus = 2.0 * lifted + 25.0 * (depth < 0.02) + 75.0 * (depth < 0.01)
    return -0.1 * reach - aim - 10.0 * depth - 1e-2 * float(np.linalg.norm(qvel)) + bonus


def relocate_reward(reach: float, carry: float, distance: float, height: float) -> float:
    """Reward from the palm-ball (`reach`), palm-target (`carry`) and ball-target (`distance`) distances and the ball's
    `height` (all m)."""
    bonus = 10.0 * (distance < 0.1) + 20.0 * (distance < 0.05)
    return -0.1 * reach + (height > 0.04) * (1.0 - 0.5 * carry - 0.5 * distance) + bonus


def tilted(about_x: float, about_y: float) -> FloatArray:
    """Quaternion (4,), w first, of a rotation about y followed by one about the fixed x axis (rad)."""
    (cos_x, sin_x), (cos_y, sin_y) = ((np.cos(angle / 2), np.sin(angle / 2)) for angle in (about_x, about_y))
    return np.array([cos_x * cos_y, sin_x * cos_y, cos_x * sin_y, sin_x * sin_y])


def euler_angles(quaternion: FloatArray) -> FloatArray:
    """Euler angles (3,) in rad of the rotation R_x R_y R_z."""
    flat = np.zeros(9)
    mujoco.mju_quat2Mat(flat, quaternion)
    r = flat.reshape(3, 3)
    return np.array(
        [np.arctan2(-r[1, 2], r[2, 2]), np.arctan2(r[0, 2], np.hypot(r[2, 2], r[1, 2])), np.arctan2(-r[0, 1], r[0, 0])]
    )


class Adroit(RecordedEnv):
    """Base class of the four tasks: 100 steps per second, actions in [-1, 1] scaled to each actuator's angle range.

    `info["goal_achieved"]` is True if the task's goal holds after the step; D4RL counts an episode as a success if it
    held for more than 25 steps (pen: 20).

    `state_keys` name the arrays that define a state, as in D4RL's files (`infos/...`). `**rendering` are arguments of
    Gymnasium's `MujocoEnv`: `render_mode`, `width`, `height` and so on. Raises MissingExtraError if gymnasium-robotics
    is not installed.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 100,
    }
    task: ClassVar[str]
    observation_size: ClassVar[int]
    state_keys: ClassVar[tuple[str, ...]]
    camera: ClassVar[dict[str, float]]

    def __init__(self, **rendering: Any) -> None:
        super().__init__(
            str(model_file(f"adroit_hand/adroit_{self.task}.xml")),
            frame_skip=5,
            observation_space=Box(-np.inf, np.inf, (self.observation_size,), np.float64),
            default_camera_config=self.camera,
            **rendering,
        )
        self.action_space = Box(-1.0, 1.0, (self.model.nu,), np.float32)
        low, high = self.model.actuator_ctrlrange.T
        self._middle, self._half_range = (low + high) / 2, (high - low) / 2

    def step(  # type: ignore[override]
        self, action: NDArray[np.floating]
    ) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """One step of 0.01 s; actions outside [-1, 1] are clipped."""
        if np.shape(action) != (self.model.nu,):
            raise SimulationError(f"Expected an action of shape {(self.model.nu,)}; found {np.shape(action)}")
        clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        control = self._middle + clipped * self._half_range
        self.do_simulation(control, self.frame_skip)
        reward, reached = self._judge()
        if self.render_mode == "human":
            self.render()  # type: ignore[no-untyped-call]
        return self._observe(), float(reward), self._failed(), False, {"goal_achieved": bool(reached)}

    def reset_model(self) -> FloatArray:
        """Put the hand at rest and draw a scene from D4RL's ranges."""
        self._draw_scene()
        self.set_state(self.init_qpos, self.init_qvel)  # type: ignore[no-untyped-call]
        return self._observe()

    def get_env_state(self) -> dict[str, FloatArray]:
        """Positions, velocities and the scene, one array per entry of `state_keys`."""
        return {"qpos": self.data.qpos.copy(), "qvel": self.data.qvel.copy(), **self._scene()}

    def set_env_state(self, state: Mapping[str, FloatArray]) -> None:
        """Inverse of `get_env_state`, e.g. for a row of a D4RL file; raises SimulationError if a key is missing."""
        if missing := [key for key in self.state_keys if key not in state]:
            expected = ", ".join(self.state_keys)
            raise SimulationError(f"A state of {self.task} needs {expected}; missing: {', '.join(missing)}")
        values = {key: np.asarray(state[key], dtype=np.float64) for key in self.state_keys}
        self._set_scene(values)
        self.set_state(values["qpos"], values["qvel"])  # type: ignore[no-untyped-call]

    @abstractmethod
    def _draw_scene(self) -> None: ...

    @abstractmethod
    def _scene(self) -> dict[str, FloatArray]: ...

    @abstractmethod
    def _set_scene(self, state: Mapping[str, FloatArray]) -> None: ...

    @abstractmethod
    def _observe(self) -> FloatArray: ...

    @abstractmethod
    def _judge(self) -> tuple[float, bool]:
        """Return the reward, and whether the goal is reached."""

    def _failed(self) -> bool:
        return False

    def _site(self, name: str) -> FloatArray:
        position: FloatArray = self.data.site(name).xpos
        return position

    def _body(self, name: str) -> FloatArray:
        position: FloatArray = self.data.body(name).xpos
        return position

    def _between(self, one: FloatArray, other: FloatArray) -> float:
        return float(np.linalg.norm(one - other))

    def load_model(self) -> mujoco.MjModel:
        return adroit_model(self.fullpath)


class Pen(Adroit):
    """Turn a pen in the hand to a given direction: 45 observations, 24 actions. Dropping it ends the episode."""

    task, observation_size = "pen", 45
    state_keys = ("qpos", "qvel", "desired_orien")
    camera: ClassVar[dict[str, float]] = {"distance": 1.0, "azimuth": -45.0}

    def _draw_scene(self) -> None:
        about_x, about_y = self.np_random.uniform(-1.0, 1.0, 2)
        self.model.body("target").quat = tilted(about_x, about_y)

    def _scene(self) -> dict[str, FloatArray]:
        return {"desired_orien": self.model.body("target").quat.copy()}

    def _set_scene(self, state: Mapping[str, FloatArray]) -> None:
        self.model.body("target").quat = state["desired_orien"]

    def _directions(self) -> tuple[FloatArray, FloatArray]:
        """Directions of the pen and its target, bottom to top, in units of the distance between these sites."""
        return self._direction("object"), self._direction("target")

    def _direction(self, which: str) -> FloatArray:
        top, bottom = f"{which}_top", f"{which}_bottom"
        length = np.linalg.norm(self.model.site(top).pos - self.model.site(bottom).pos)
        direction: FloatArray = (self._site(top) - self._site(bottom)) / length
        return direction

    def _observe(self) -> FloatArray:
        pen, target = self._directions()
        position, place = self._body("Object"), self._site("eps_ball")
        moving = [self.data.qpos[:-6], position, self.data.qvel[-6:]]
        return np.concatenate([*moving, pen, target, position - place, pen - target])

    def _judge(self) -> tuple[float, bool]:
        position = self._body("Object")
        distance = self._between(position, self._site("eps_ball"))
        similarity = float(np.dot(*self._directions()))
        return pen_reward(distance, similarity, position[2]), distance < 0.075 and similarity > 0.95

    def _failed(self) -> bool:
        return bool(pen_dropped(self._body("Object")[2]))


class Door(Adroit):
    """Undo a latch and open a door: 39 observations, 28 actions."""

    task, observation_size = "door", 39
    state_keys = ("qpos", "qvel", "door_body_pos")
    camera: ClassVar[dict[str, float]] = {"distance": 1.5, "azimuth": 90.0}

    def _draw_scene(self) -> None:
        self.model.body("frame").pos = self.np_random.uniform([-0.3, 0.25, 0.252], [-0.2, 0.35, 0.35])

    def _scene(self) -> dict[str, FloatArray]:
        return {"door_body_pos": self.model.body("frame").pos.copy()}

    def _set_scene(self, state: Mapping[str, FloatArray]) -> None:
        self.model.body("frame").pos = state["door_body_pos"]

    def _hinge(self) -> float:
        return float(self.data.joint("door_hinge").qpos[0])

    def _observe(self) -> FloatArray:
        qpos, hinge = self.data.qpos, self._hinge()
        palm, handle = self._site("S_grasp"), self._site("S_handle")
        is_open = 1.0 if hinge > 1.0 else -1.0
        # The arm's first joint, the slide, is not observed.
        return np.concatenate([qpos[1:-2], [qpos[-1], hinge], palm, handle, palm - handle, [is_open]])

    def _judge(self) -> tuple[float, bool]:
        reach = self._between(self._site("S_grasp"), self._site("S_handle"))
        return door_reward(reach, self._hinge(), self.data.qvel), self._hinge() >= 1.35


class Hammer(Adroit):
    """Take a hammer and drive a nail into a board: 46 observations, 26 actions."""

    task, observation_size = "hammer", 46
    state_keys = ("qpos", "qvel", "board_pos")
    camera: ClassVar[dict[str, float]] = {"distance": 2.0, "azimuth": 45.0}

    def _draw_scene(self) -> None:
        self.model.body("nail_board").pos[2] = self.np_random.uniform(0.1, 0.25)

    def _scene(self) -> dict[str, FloatArray]:
        return {"board_pos": self.model.body("nail_board").pos.copy()}

    def _set_scene(self, state: Mapping[str, FloatArray]) -> None:
        self.model.body("nail_board").pos = state["board_pos"]

    def _observe(self) -> FloatArray:
        velocity = np.clip(self.data.qvel[-6:], -1.0, 1.0)
        angles = euler_angles(self.data.body("Object").xquat)
        impact = np.clip(self.data.sensor("S_nail").data, -1.0, 1.0)
        places = [self._site("S_grasp"), self._body("Object"), angles, self._site("S_target")]
        return np.concatenate([self.data.qpos[:-6], velocity, *places, impact])

    def _judge(self) -> tuple[float, bool]:
        hammer, head, nail = self._body("Object"), self._site("tool"), self._site("S_target")
        reach, aim = self._between(self._site("S_grasp"), hammer), self._between(head, nail)
        depth = self._between(nail, self._site("nail_goal"))
        lifted = bool(hammer[2] > 0.04 and head[2] > 0.04)
        return hammer_reward(reach, aim, depth, self.data.qvel, lifted), depth < 0.01


class Relocate(Adroit):
    """Carry a ball to a target in the air: 39 observations, 30 actions.

    A state's `obj_pos` is the ball's world position, as in D4RL's files. (D4RL's own `set_env_state` reads it as the
    ball's start position, which is the same until the ball moves.)
    """

    task, observation_size = "relocate", 39
    state_keys = ("qpos", "qvel", "obj_pos", "target_pos")
    camera: ClassVar[dict[str, float]] = {"distance": 1.5, "azimuth": 90.0}

    def _draw_scene(self) -> None:
        self.model.body("Object").pos[:2] = self.np_random.uniform([-0.15, -0.15], [0.15, 0.3])
        self.model.site("target").pos = self.np_random.uniform([-0.2, -0.2, 0.15], [0.2, 0.2, 0.35])

    def _scene(self) -> dict[str, FloatArray]:
        start, moved = self.model.body("Object").pos, self.data.qpos[-6:-3]
        return {"obj_pos": start + moved, "target_pos": self.model.site("target").pos.copy()}

    def _set_scene(self, state: Mapping[str, FloatArray]) -> None:
        # The ball's first three joints move it along the world's axes.
        self.model.body("Object").pos = state["obj_pos"] - state["qpos"][-6:-3]
        self.model.site("target").pos = state["target_pos"]

    def _observe(self) -> FloatArray:
        ball, palm, target = self._body("Object"), self._site("S_grasp"), self._site("target")
        return np.concatenate([self.data.qpos[:-6], palm - ball, palm - target, ball - target])

    def _judge(self) -> tuple[float, bool]:
        ball, palm, target = self._body("Object"), self._site("S_grasp"), self._site("target")
        reach, carry, distance = self._between(palm, ball), self._between(palm, target), self._between(ball, target)
        return relocate_reward(reach, carry, distance, ball[2]), distance < 0.1


def adroit_model(file: str) -> mujoco.MjModel:
    """Compile a model file with D4RL's softer position controllers: wrist 10 Nm/rad, fingers 1 Nm/rad."""
    model = compile_as_recorded(read_model(file))
    for first, last, stiffness in _STIFFNESS:
        group = slice(model.actuator(first).id, model.actuator(last).id + 1)
        model.actuator_gainprm[group, :3] = (stiffness, 0.0, 0.0)
        model.actuator_biasprm[group, :3] = (0.0, -stiffness, 0.0)
    return model
