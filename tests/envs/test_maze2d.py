"""Maze2D: D4RL's model to the last bit, its rules for starts, goals and rewards, and Gymnasium's contract."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import cepdiff.envs  # noqa: F401  registers the environments
from cepdiff.envs.layouts import MAZE2D_LAYOUTS, Layout, maze2d_layout
from cepdiff.envs.maze2d import Maze2D
from cepdiff.errors import ConfigError, SimulationError

GOLDEN = Path(__file__).parent / "golden"
# From D4RL 1.1's `pointmaze/__init__.py`; sparse and dense agree.
TIME_LIMITS = {
    "open-v0": 150, "umaze-v0": 150, "medium-v0": 250, "large-v0": 600, "umaze-v1": 300, "medium-v1": 600,
    "large-v1": 800, "eval-umaze-v1": 300, "eval-medium-v1": 600, "eval-large-v1": 800,
}  # fmt: skip


@pytest.mark.parametrize("layout", MAZE2D_LAYOUTS)
def test_the_model_is_that_of_d4rl(layout: str, physics: ModuleType) -> None:
    golden = np.load(GOLDEN / "maze2d.npz")
    ends = np.cumsum(golden[f"maze2d-{layout}/sizes"])[:-1]
    theirs = np.split(golden[f"maze2d-{layout}/values"], ends)
    model = Maze2D(layout).model
    for name, values in zip(golden["fields"], theirs, strict=True):
        np.testing.assert_array_equal(physics.field(model, str(name)), values, err_msg=str(name))


@pytest.mark.parametrize("layout", MAZE2D_LAYOUTS)
def test_a_thousand_steps_are_those_of_d4rls_model(layout: str, physics: ModuleType) -> None:
    golden = np.load(GOLDEN / "maze2d.npz")
    if str(golden["mujoco"]) != mujoco.__version__:
        pytest.skip(f"recorded with MuJoCo {golden['mujoco']}: contacts may differ by roundings that grow")
    states = golden[f"maze2d-{layout}/states"]
    env = Maze2D(layout)
    case = physics.Case(f"maze2d-{layout}", "", env.model, env, states[0])
    ours = physics.our_trajectory(case, physics.actions_of(case.name, 2))
    np.testing.assert_allclose(ours[::100], states, rtol=0, atol=1e-9)


def test_steps_are_those_of_mujoco_2() -> None:
    """D4RL's model file, stepped by MuJoCo 2.2.0; a quarter of these steps touch a wall."""
    golden = np.load(GOLDEN / "maze-mujoco-2.2.0.npz")
    before, actions, after = (golden[f"maze2d-umaze/{name}"] for name in ("before", "actions", "after"))
    env = Maze2D("umaze")
    env.reset(seed=0)
    found = []
    for state, action in zip(before, actions, strict=True):
        env.set_state(state[:2], state[2:])
        found.append(env.step(action)[0])
    np.testing.assert_allclose(found, after, rtol=0, atol=1e-9)


@pytest.mark.skipif("CEPDIFF_D4RL" not in os.environ, reason="CEPDIFF_D4RL names no unpacked package of D4RL 1.1")
def test_all_fields_and_trajectories_against_d4rls_files(physics: ModuleType) -> None:
    for case in physics.cases(Path(os.environ["CEPDIFF_D4RL"])):
        if case.name.startswith("maze2d"):
            found = physics.compare(case)
            assert found["unequal_fields"] == {}, case.name
            assert found["trajectory_difference"] < 1e-9, case.name


def test_all_ids_have_d4rls_time_limits() -> None:
    expected = {}
    for task, limit in TIME_LIMITS.items():
        layout, version = task.rsplit("-", 1)
        expected |= {f"cepdiff/maze2d-{layout}{dense}-{version}": limit for dense in ("", "-dense")}
    assert {i: s.max_episode_steps for i, s in gym.registry.items() if i.startswith("cepdiff/maze2d")} == expected


@pytest.mark.parametrize("task", ["open-v0", "umaze-dense-v1", "eval-large-v1"])
def test_gymnasiums_own_checks_pass(task: str) -> None:
    env = gym.make(f"cepdiff/maze2d-{task}").unwrapped
    check_env(env, skip_render_check=True)
    check_env(pickle.loads(pickle.dumps(env)), skip_render_check=True)


def test_an_episode_ends_by_the_time_limit_alone() -> None:
    env = gym.make("cepdiff/maze2d-umaze-v1")
    env.reset(seed=0, options={"start": [1.0, 1.0]})
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(300)]
    assert ends == [(False, False)] * 299 + [(False, True)]


@pytest.mark.parametrize(("offset", "success"), [(0.49, True), (0.51, False)])
def test_rewards_are_of_the_state_after_the_step(offset: float, success: bool) -> None:
    for reward_type in ("sparse", "dense"):
        env = Maze2D("open", reward_type)
        env.reset(seed=0)
        assert env.goal.tolist() == [2.0, 3.0]
        env.set_state(env.goal + np.array([0.0, offset]), np.zeros(2))
        observation, reward, terminated, truncated, info = env.step(np.zeros(2))
        distance = math.dist(observation[:2], (2.0, 3.0))
        assert reward == (float(success) if reward_type == "sparse" else pytest.approx(math.exp(-distance)))
        assert (terminated, truncated, info["success"]) == (False, False, success)
        assert info["goal"].tolist() == [2.0, 3.0]


def test_the_reward_counts_where_a_step_leads() -> None:
    env = Maze2D("open")
    env.reset(seed=0)
    env.set_state(env.goal + np.array([0.0, 0.52]), np.array([0.0, -4.0]))
    assert env.step(np.zeros(2))[1] == 1.0


def test_starts_are_in_all_free_cells_with_noise() -> None:
    env = Maze2D("umaze")
    observations = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    cells = [env.layout.cell(position) for position in observations[:, :2]]
    offsets = observations[:, :2] - np.array([env.layout.xy(cell) for cell in cells])
    assert set(cells) == set(env.layout.cells(".G"))
    assert 0.09 < np.abs(offsets).max() <= 0.1
    assert observations[:, 2:].std() == pytest.approx(0.1, rel=0.15)


def test_a_fixed_goal_stays_and_a_drawn_one_moves() -> None:
    fixed, drawn = Maze2D("large"), Maze2D("large", reset_target=True)
    assert {tuple(fixed.reset(seed=seed)[1]["goal"]) for seed in range(5)} == {(7.0, 9.0)}
    goals = np.array([drawn.reset(seed=seed)[1]["goal"] for seed in range(40)])
    cells = [drawn.layout.cell(goal) for goal in goals]
    assert all(drawn.layout.is_free(cell) for cell in cells)
    assert len(set(cells)) > 10
    assert np.abs(goals - np.array([drawn.layout.xy(cell) for cell in cells])).max() <= 0.1


def test_without_a_goal_cell_the_first_free_cell_is_the_goal() -> None:
    assert Maze2D(maze2d_layout("####\n##.#\n#..#\n####")).goal.tolist() == [1.0, 2.0]


def test_options_place_the_start_and_the_goal() -> None:
    env = Maze2D("large")
    observation, info = env.reset(seed=0, options={"start": (3, 1), "goal": (1.25, 1)})
    assert np.abs(observation[:2] - [3, 1]).max() <= 0.1
    assert info["goal"].tolist() == env.goal.tolist() == [1.25, 1.0]
    marker = env.data.site("goal").xpos[:2] - env.data.geom("ball").xpos[:2]
    np.testing.assert_allclose(marker, env.goal - observation[:2], atol=1e-12)


@pytest.mark.parametrize("options", [{"goal": [1.0]}, {"start": "here"}, {"goal": [math.nan, 1]}, {"state": [1, 1]}])
def test_options_that_cannot_be_used_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Maze2D().reset(options=options)


def test_arguments_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean medium"):
        Maze2D("meduim")
    with pytest.raises(ConfigError, match="sparse or dense"):
        Maze2D(reward_type="shaped")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rgb_array"):
        Maze2D(render_mode="human")
    env = Maze2D()
    env.reset(seed=0)
    with pytest.raises(SimulationError, match=r"shape \(2,\)"):
        env.step(np.zeros(1))
    with pytest.raises(SimulationError, match="Expected a state of shapes"):
        env.set_state(np.zeros(3), np.zeros(2))


def test_speed_is_limited_before_a_step_and_actions_to_one() -> None:
    env = Maze2D("open")
    env.reset(seed=0)
    ends = []
    for speed, push in ((50.0, 3.0), (5.0, 1.0)):
        mujoco.mj_resetData(env.model, env.data)
        env.set_state(np.array([2.0, 2.0]), np.array([0.0, speed]))
        ends.append(env.step(np.array([0.0, push]))[0])
    np.testing.assert_array_equal(ends[0], ends[1])


def test_equal_seeds_give_equal_episodes() -> None:
    def episode(env: Maze2D) -> list[np.ndarray]:
        first, _ = env.reset(seed=5)
        return [first, *(env.step(np.array([0.3, -0.2]))[0] for _ in range(20)), env.reset()[0]]

    env = Maze2D("medium", reset_target=True)
    np.testing.assert_array_equal(episode(env), episode(env))
    np.testing.assert_array_equal(episode(env), episode(Maze2D("medium", reset_target=True)))


def test_a_state_that_is_set_goes_on_as_before() -> None:
    env = Maze2D("umaze")
    env.reset(seed=1)
    for step in range(40):
        state, action = (env.data.qpos.copy(), env.data.qvel.copy()), np.array([math.sin(step), math.cos(step)])
        after = env.step(action)[0]
        env.set_state(*state)
        np.testing.assert_allclose(env.step(action)[0], after, rtol=0, atol=1e-9)


def test_the_ball_stops_where_the_layout_has_its_wall() -> None:
    """Walls are 0.2 off the cell positions: the ball of radius 0.1 gets 0.2 closer to the lower ones."""
    env = Maze2D("open")
    centers = env.layout.wall_centers()
    for direction, wall in ((np.array([-1.0, 0.0]), centers[:, 0].min()), (np.array([1.0, 0.0]), centers[:, 0].max())):
        env.reset(seed=0)
        env.set_state(np.array([2.0, 3.0]), np.zeros(2))
        for _ in range(300):
            observation = env.step(0.1 * direction)[0]
        assert observation[0] == pytest.approx(wall - 0.6 * direction[0], abs=0.01)


def test_cells_and_positions_of_the_layouts() -> None:
    for layout in MAZE2D_LAYOUTS.values():
        assert all(layout.cell(layout.xy(cell)) == cell for cell in layout.cells("#.G"))
        low, high = layout.bounds()
        np.testing.assert_allclose(low, layout.wall_centers().min(0) - 0.5)
        np.testing.assert_allclose(high, layout.wall_centers().max(0) + 0.5)
        assert not layout.is_free((0, 0))
        assert not layout.is_free((-1, 2))


@pytest.mark.parametrize(("rows", "message"), [(("##", "#"), "equal length"), (("#x",), "'x'"), (("##",), "free cell")])
def test_grids_that_are_no_mazes_are_refused(rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Layout(rows)
    with pytest.raises(ConfigError, match="at most one goal"):
        maze2d_layout("GG")


def test_a_vector_of_mazes_is_reset_one_by_one() -> None:
    make = lambda: gym.make("cepdiff/maze2d-medium-v1")  # noqa: E731
    envs = SyncVectorEnv([make, make], autoreset_mode=AutoresetMode.DISABLED)
    observations, infos = envs.reset(seed=[3, 4])
    assert infos["goal"].tolist() == [[6.0, 6.0], [6.0, 6.0]]
    again, _ = envs.reset(seed=[3, 3], options={"reset_mask": np.array([False, True])})
    np.testing.assert_array_equal(again, [observations[0], observations[0]])


def test_pictures_show_the_goal() -> None:
    if "MUJOCO_GL" not in os.environ and "DISPLAY" not in os.environ:
        pytest.skip("no MUJOCO_GL and no display")
    env = gym.make("cepdiff/maze2d-open-v0", render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0, options={"start": [1.0, 1.0]})
    try:
        picture = env.render()
    except Exception as error:  # its type depends on the graphics library
        pytest.skip(f"nothing can be drawn here: {error}")
    assert picture.shape == (48, 64, 3)
    env.reset(seed=0, options={"start": [1.0, 1.0], "goal": [3.0, 5.0]})
    moved = env.render()
    env.close()
    red = [np.argwhere((p[:, :, 0] > 120) & (p[:, :, 1] < 110)).mean(0) for p in (picture, moved)]
    assert (red[1] > red[0] + 5).all()  # one row and two columns further: down and to the right
