"""Adroit as D4RL recorded it: rewards by hand, the scene, and trajectories of D4RL's own files in MuJoCo 2.2.0.

`benchmarks/robot_physics.py --record` writes `golden/adroit-mujoco-2.2.0.json`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from cepdiff.envs import adroit, robots
from cepdiff.envs.registration import register_all
from cepdiff.errors import MissingExtraError, SimulationError

TASKS = {"pen": (45, 24, 100), "door": (39, 28, 200), "hammer": (46, 26, 200), "relocate": (39, 30, 200)}
GOLDEN = json.loads((Path(__file__).parent / "golden" / "adroit-mujoco-2.2.0.json").read_text())
installed = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None, reason="needs the extra 'robotics'"
)


def make(task: str, **kwargs: Any) -> gym.Env[Any, Any]:
    register_all()
    return gym.make(f"cepdiff/{task}-v0", **kwargs)


@pytest.fixture(scope="module")
def physics() -> Any:
    """The benchmark script that recorded the golden trajectories."""
    file = Path(__file__).parents[2] / "benchmarks" / "robot_physics.py"
    spec = importlib.util.spec_from_file_location("benchmark_robot_physics", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.2, 0.5, 0.25), 0.3),
        ((0.05, 0.92, 0.25), 0.87 + 10),
        ((0.05, 0.96, 0.25), 0.91 + 60),
        ((0.2, 0.96, 0.07), 0.76 - 5),
    ],
)
def test_reward_of_pen(arguments: tuple[float, float, float], expected: float) -> None:
    assert adroit.pen_reward(*arguments) == pytest.approx(expected)


@pytest.mark.parametrize(("hinge", "bonus"), [(0.2, 0), (0.3, 2), (1.1, 10), (1.4, 20)])
def test_reward_of_door(hinge: float, bonus: float) -> None:
    expected = -0.03 - 0.1 * (hinge - 1.57) ** 2 - 1e-5 * 30 * 4 + bonus
    assert adroit.door_reward(0.3, hinge, np.full(30, 2.0)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("depth", "lifted", "bonus"), [(0.02, False, 0), (0.02, True, 2), (0.015, True, 27), (0.005, True, 102)]
)
def test_reward_of_hammer(depth: float, lifted: bool, bonus: float) -> None:
    expected = -0.02 - 0.1 - 10 * depth - 0.01 * 5 + bonus
    assert adroit.hammer_reward(0.2, 0.1, depth, np.array([3.0, 4.0]), lifted) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("distance", "height", "expected"),
    [(0.3, 0.04, 0), (0.3, 0.05, 0.75), (0.08, 0.05, 10.86), (0.04, 0.05, 30.88), (0.04, 0, 30)],
)
def test_reward_of_relocate(distance: float, height: float, expected: float) -> None:
    assert adroit.relocate_reward(0.1, 0.2, distance, height) == pytest.approx(expected - 0.01)


def test_angles_of_a_rotation() -> None:
    """Angles round-trip through the quaternion; a tilt sets the first two."""
    wanted = np.array([0.4, -0.7, 1.1])
    product, turn = np.array([1.0, 0, 0, 0]), np.zeros(4)
    for axis, angle in zip(np.eye(3), wanted, strict=True):
        mujoco.mju_axisAngle2Quat(turn, axis, angle)
        mujoco.mju_mulQuat(product, product.copy(), turn)
    assert adroit.euler_angles(product) == pytest.approx(wanted)
    assert adroit.euler_angles(adroit.tilted(0.4, -0.7)) == pytest.approx([0.4, -0.7, 0.0])


@installed
@pytest.mark.parametrize("task", TASKS)
def test_interface(task: str) -> None:
    observations, actions, limit = TASKS[task]
    env = make(task)
    assert env.observation_space.shape == (observations,)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (actions,), np.float32)
    assert env.spec is not None
    assert env.spec.max_episode_steps == limit
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@installed
@pytest.mark.parametrize(
    ("task", "steps", "tolerance"), [("pen", 8, 1e-6), ("door", 2, 1e-7), ("hammer", 7, 1e-5), ("relocate", 6, 1e-5)]
)
def test_moves_as_the_recorded_physics(physics: Any, task: str, steps: int, tolerance: float) -> None:
    """Includes contacts, up to where fingers hit the table so hard that today's MuJoCo differs (see `contacts`)."""
    model = adroit.adroit_model(str(robots.model_file(f"adroit_hand/adroit_{task}.xml")))
    found = physics.trajectory(model, task)
    assert np.abs(found - GOLDEN[task])[:steps].max() < tolerance


@installed
def test_the_random_policy_of_d4rl_returns_what_d4rl_reports(physics: Any) -> None:
    """All six decimals of `REF_MIN_SCORE`: the same scenes, actions, physics, rewards and ends in 100 episodes."""
    assert round(physics.random_returns("pen").mean(), 6) == 96.262799


@installed
@pytest.mark.parametrize("task", TASKS)
def test_a_state_comes_back(task: str) -> None:
    """From a state in the middle of an episode, the same actions give the same observations and rewards."""
    env = make(task).unwrapped
    assert isinstance(env, adroit.Adroit)
    generator = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(5):
        env.step(generator.uniform(-0.3, 0.3, env.action_space.shape))
    state, action = env.get_env_state(), generator.uniform(-0.3, 0.3, env.action_space.shape)
    assert set(state) == set(env.state_keys)
    first = env.step(action)
    env.reset(seed=1)
    env.set_env_state(state)
    again = env.step(action)
    np.testing.assert_allclose(again[0], first[0], atol=1e-6)
    assert again[1] == pytest.approx(first[1], abs=1e-6)
    with pytest.raises(SimulationError, match=f"{env.state_keys[-1]}"):
        env.set_env_state({key: state[key] for key in env.state_keys[:-1]})


@installed
def test_observation_of_pen() -> None:
    """Order and signs of the 45 numbers after a reset, when the positions are those of the state."""
    env = make("pen").unwrapped
    observation, _ = env.reset(seed=3)
    assert observation[:24] == pytest.approx(env.data.qpos[:24])
    assert observation[24:27] == pytest.approx([0.0, -0.2, 0.25])  # the pen's start, which is also its target position
    assert observation[27:33] == pytest.approx(np.zeros(6))
    target = np.zeros(9)
    mujoco.mju_quat2Mat(target, env.model.body("target").quat)
    assert observation[36:39] == pytest.approx(target.reshape(3, 3)[:, 2])
    assert observation[39:42] == pytest.approx(np.zeros(3), abs=1e-12)
    assert observation[42:45] == pytest.approx(observation[33:36] - observation[36:39])


@installed
def test_observation_of_door() -> None:
    """The arm's slide is left out; latch, hinge, palm, handle, difference and the open flag come last."""
    env = make("door").unwrapped
    env.reset(seed=0)
    state = env.get_env_state()
    state["qpos"] = np.arange(30) / 100
    state["qpos"][-2:] = 1.2, 0.3
    env.set_env_state(state)
    observation = env._observe()
    assert observation[:27] == pytest.approx(np.arange(1, 28) / 100)
    assert observation[27:29] == pytest.approx([0.3, 1.2])
    assert observation[29:32] - observation[32:35] == pytest.approx(observation[35:38])
    assert observation[38] == 1.0
    env.set_env_state({**state, "door_body_pos": state["door_body_pos"] + [0, 0, 0.1]})
    assert env._observe()[32:35] - observation[32:35] == pytest.approx([0, 0, 0.1])


@installed
def test_ball_of_relocate_is_where_the_file_says() -> None:
    """Also after it moves: D4RL stores its world position."""
    env = make("relocate").unwrapped
    env.reset(seed=0)
    state = env.get_env_state()
    state["qpos"][-6:-3] = 0.05, -0.1, 0.2
    state["obj_pos"], state["target_pos"] = np.array([0.1, 0.2, 0.3]), np.array([0.0, 0.1, 0.25])
    env.set_env_state(state)
    assert env.data.body("Object").xpos == pytest.approx([0.1, 0.2, 0.3])
    assert env._observe()[-3:] == pytest.approx([0.1, 0.1, 0.05])
    assert env.get_env_state()["obj_pos"] == pytest.approx([0.1, 0.2, 0.3])


@installed
def test_dropping_the_pen_ends_the_episode() -> None:
    env = make("pen")
    env.reset(seed=0)
    unwrapped = env.unwrapped
    state = unwrapped.get_env_state()
    state["qpos"][-6] += 0.3  # the pen lies down: its own x axis points downward
    unwrapped.set_env_state(state)
    _, reward, terminated, truncated, _ = env.step(np.zeros(24))
    assert terminated
    assert not truncated
    assert reward < -3


@installed
@pytest.mark.parametrize("task", ["door", "hammer", "relocate"])
def test_only_time_ends_the_other_tasks(task: str) -> None:
    env = make(task)
    env.reset(seed=0)
    ends = [env.step(np.zeros(env.action_space.shape))[2:4] for _ in range(200)]
    assert ends[:-1] == [(False, False)] * 199
    assert ends[-1] == (False, True)


@installed
@pytest.mark.parametrize(
    ("task", "key", "low", "high"),
    [
        ("door", "door_body_pos", [-0.3, 0.25, 0.252], [-0.2, 0.35, 0.35]),
        ("hammer", "board_pos", [0.05, 0.0, 0.1], [0.05, 0.0, 0.25]),
        ("relocate", "obj_pos", [-0.15, -0.15, 0.035], [0.15, 0.3, 0.035]),
        ("relocate", "target_pos", [-0.2, -0.2, 0.15], [0.2, 0.2, 0.35]),
    ],
)
def test_scenes_fill_their_ranges(task: str, key: str, low: list[float], high: list[float]) -> None:
    env = make(task).unwrapped
    env.reset(seed=0)
    scenes = []
    for _ in range(200):
        env._draw_scene()
        scenes.append(env._scene()[key])
    width = np.subtract(high, low)
    assert (np.min(scenes, axis=0) >= np.array(low) - 1e-12).all()
    assert (np.max(scenes, axis=0) <= np.array(high) + 1e-12).all()
    assert np.ptp(scenes, axis=0) == pytest.approx(width, abs=0.1 * width.max())


@installed
def test_actions_span_the_actuators_and_are_clipped() -> None:
    env = make("door").unwrapped
    env.reset(seed=0)
    env.step(np.full(28, 7.0))
    assert env.data.ctrl == pytest.approx(env.model.actuator_ctrlrange[:, 1])
    env.step(np.zeros(28))
    assert env.data.ctrl == pytest.approx(env.model.actuator_ctrlrange.mean(axis=1))
    with pytest.raises(SimulationError, match=r"shape \(28,\); found \(24,\)"):
        env.step(np.zeros(24))


def test_without_the_package_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[robotics\]"):
        adroit.Door()


def test_files_that_mujoco_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "old.xml"
    file.write_text('<mujoco><option apiroute="200"/></mujoco>')
    with pytest.raises(SimulationError, match=r"cannot read .*old\.xml.*upgrade gymnasium-robotics"):
        robots.read_model(file)
