"""Kitchen as D4RL recorded it: goals and rewards by hand, noise, control, and a trajectory in MuJoCo 2.2.0.

`benchmarks/robot_physics.py --record` writes `golden/kitchen-mujoco-2.2.0.json` from D4RL's own files.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from cepdiff.envs import kitchen, robots
from cepdiff.envs.registration import register_all
from cepdiff.errors import ConfigError, SimulationError

COMPLETE = ("microwave", "kettle", "light switch", "slide cabinet")
MIXED = ("microwave", "kettle", "bottom burner", "light switch")
GOLDEN = json.loads((Path(__file__).parent / "golden" / "kitchen-mujoco-2.2.0.json").read_text())
installed = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None, reason="needs the extra 'robotics'"
)


@pytest.fixture(scope="module")
def quiet() -> Any:
    """The complete task without noise; tests reset it before use."""
    return kitchen.Kitchen(COMPLETE, noise_ratio=0.0)


def state_with(env: Any, *tasks: str) -> dict[str, Any]:
    """The start state, with these subtasks done."""
    env.reset(seed=0)
    state = env.get_env_state()
    for task in tasks:
        first, values = kitchen.GOALS[task]
        state["qpos"][first : first + len(values)] = values
    return state


def test_goal_holds_the_subtasks_alone() -> None:
    goal = kitchen.goal_of(MIXED)
    assert goal.shape == (30,)
    assert goal[[11, 12, 17, 18, 22]] == pytest.approx([-0.88, -0.01, -0.69, -0.05, -0.75])
    assert goal[23:] == pytest.approx([-0.23, 0.75, 1.62, 0.99, 0, 0, -0.06])
    assert not goal[[*range(11), 13, 14, 15, 16, 19, 20, 21]].any()


def test_a_subtask_is_complete_below_a_distance() -> None:
    qpos = kitchen.goal_of(COMPLETE)
    assert kitchen.completed(COMPLETE, qpos) == list(COMPLETE)
    qpos[22] += 0.31
    qpos[23:26] += 0.17  # 0.294 away
    assert kitchen.completed(COMPLETE, qpos) == ["kettle", "light switch", "slide cabinet"]
    assert kitchen.completed(("kettle",), qpos) == ["kettle"]


def test_control_moves_from_what_is_observed_within_the_limits() -> None:
    observed = np.array([0.0, -1.75, 0.0, -0.05, 0.0, 3.75, 0.0, 0.03, 0.01])
    action = np.array([0.5, -1.0, 3.0, 1.0, 0.0, 1.0, -1.0, 1.0, -1.0])
    expected = [0.08, -1.8, 0.16, 0.0, 0.0, 3.8, -0.16, 0.04, 0.0]
    assert kitchen.wanted_positions(action, observed, 0.08) == pytest.approx(expected)


@installed
@pytest.mark.parametrize(("name", "tasks"), [("complete", COMPLETE), ("partial", COMPLETE), ("mixed", MIXED)])
def test_interface(name: str, tasks: tuple[str, ...]) -> None:
    register_all()
    env = gym.make(f"cepdiff/kitchen-{name}-v0")
    assert env.spec is not None
    assert env.spec.max_episode_steps == 280
    assert env.observation_space.shape == (60,)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (9,), np.float32)
    observation, _ = env.reset(seed=0)
    assert observation[30:] == pytest.approx(kitchen.goal_of(tasks))
    check_env(env.unwrapped, skip_render_check=True)


@installed
def test_each_subtask_counts_once_and_the_last_one_ends(quiet: Any) -> None:
    quiet.set_env_state(state_with(quiet, "microwave", "light switch"))
    _, reward, terminated, _, info = quiet.step(np.zeros(9))
    assert (reward, terminated) == (2.0, False)
    assert info == {"completed": ["microwave", "light switch"], "remaining": ["kettle", "slide cabinet"]}
    _, reward, terminated, _, _ = quiet.step(np.zeros(9))
    assert (reward, terminated) == (0.0, False)
    # Set the remaining subtasks by hand: set_state leaves the open ones as they are.
    rest = state_with(quiet, *COMPLETE)
    quiet.set_env_state(rest)
    _, reward, terminated, _, info = quiet.step(np.zeros(9))
    assert (reward, terminated, info["remaining"]) == (4.0, True, [])
    quiet.reset(seed=0)
    assert quiet.step(np.zeros(9))[1] == 0.0


@installed
def test_noise_is_uniform_of_the_specified_size(quiet: Any) -> None:
    noisy = kitchen.Kitchen(COMPLETE)
    truth, _ = quiet.reset(seed=0)
    seen = np.array([noisy.reset(seed=seed)[0] for seed in range(300)])
    spread = np.abs(seen - truth).max(axis=0)
    assert spread[:9] == pytest.approx(0.01, rel=0.05)
    assert spread[[9, 10, 17, 18, 19, 23, 24, 25, 29]] == pytest.approx(0.0005, rel=0.05)
    assert spread[11:17] == pytest.approx(0.00005, rel=0.05)
    assert spread[[20, 21, 22, 26, 27, 28]] == pytest.approx(0.01, rel=0.05)
    assert not spread[30:].any()


@installed
def test_control_starts_from_the_observation() -> None:
    """Noise of ratio 1 moves the arm by up to 0.1 rad, even with a zero action."""
    env = kitchen.Kitchen(COMPLETE, noise_ratio=1.0)
    observation, _ = env.reset(seed=0)
    env.step(np.zeros(9))
    wanted = kitchen.wanted_positions(np.zeros(9), observation[:9], env.dt)
    assert env.data.ctrl == pytest.approx(wanted)
    assert np.abs(wanted[:7] - env.data.qpos[:7]).max() > 0.01
    env.set_env_state(env.get_env_state())
    positions = env.data.qpos[:7].copy()
    env.step(np.zeros(9))
    assert env.data.ctrl[:7] == pytest.approx(positions)


@installed
def test_moves_as_the_recorded_physics() -> None:
    """0.3 mm after 16 s: boxes report different depths today (see `contacts`). The file as packaged is 0.4 rad off."""
    file = Path(__file__).parents[2] / "benchmarks" / "robot_physics.py"
    spec = importlib.util.spec_from_file_location("benchmark_robot_physics", file)
    assert spec is not None
    assert spec.loader is not None
    physics = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(physics)
    model = kitchen.kitchen_model(str(robots.model_file("kitchen_franka/kitchen_assets/kitchen_env_model.xml")))
    assert np.abs(physics.trajectory(model, "kitchen") - GOLDEN["kitchen"]).max() < 5e-4


@installed
def test_nothing_touches_the_pedestal(quiet: Any) -> None:
    pedestal = np.flatnonzero(np.isclose(quiet.model.geom_size[:, 1], 0.9))
    assert len(pedestal) == 1
    assert not quiet.model.geom_contype[pedestal].any()
    assert not quiet.model.geom_conaffinity[pedestal].any()


@installed
def test_start_has_a_quaternion_of_length_one(quiet: Any) -> None:
    observation, _ = quiet.reset(seed=0)
    assert np.linalg.norm(observation[26:30]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ("microwaves",)}, "Unknown subtask 'microwaves'.*Did you mean microwave"),
        ({"tasks": ()}, "at least one subtask"),
        ({"tasks": COMPLETE, "noise_ratio": -0.1}, "noise_ratio is -0.1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kitchen.Kitchen(**arguments)


@installed
def test_wrong_states_and_actions(quiet: Any) -> None:
    with pytest.raises(SimulationError, match="missing"):
        quiet.set_env_state({"qpos": np.zeros(30)})
    with pytest.raises(SimulationError, match=r"found \(7,\)"):
        quiet.step(np.zeros(7))
