"""AntMaze: D4RL's model to the last bit, its rules for starts, goals and rewards, and Gymnasium's contract."""

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
from cepdiff.envs.antmaze import AntMaze
from cepdiff.envs.layouts import ANTMAZE_LAYOUTS, antmaze_layout
from cepdiff.errors import ConfigError, SimulationError

GOLDEN = Path(__file__).parent / "golden"
TASKS = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
REST = np.zeros(8, np.float32)


def place(env: AntMaze, xy: np.ndarray) -> None:
    """Puts the ant at rest at a position."""
    qpos = env.init_qpos.copy()
    qpos[:2] = xy
    env.set_state(qpos, env.init_qvel)


@pytest.mark.parametrize("layout", ANTMAZE_LAYOUTS)
def test_the_model_is_that_of_d4rl(layout: str, physics: ModuleType) -> None:
    golden = np.load(GOLDEN / "antmaze.npz")
    ends = np.cumsum(golden[f"antmaze-{layout}/sizes"])[:-1]
    theirs = np.split(golden[f"antmaze-{layout}/values"], ends)
    model = AntMaze(layout).model
    for name, values in zip(golden["fields"], theirs, strict=True):
        found = physics.field(model, str(name))
        np.testing.assert_allclose(found, values, rtol=1e-12, atol=1e-15, err_msg=str(name))


@pytest.mark.parametrize("layout", ANTMAZE_LAYOUTS)
def test_a_thousand_steps_are_those_of_d4rls_model(layout: str, physics: ModuleType) -> None:
    golden = np.load(GOLDEN / "antmaze.npz")
    if str(golden["mujoco"]) != mujoco.__version__:
        pytest.skip(f"recorded with MuJoCo {golden['mujoco']}: other versions differ by roundings that grow")
    states = golden[f"antmaze-{layout}/states"]
    env = AntMaze(layout)
    case = physics.Case(f"antmaze-{layout}", "", env.model, env, states[0])
    ours = physics.our_trajectory(case, physics.actions_of(case.name, 8))
    np.testing.assert_allclose(ours[::100], states, rtol=0, atol=1e-9)


def test_steps_are_those_of_mujoco_2() -> None:
    """D4RL's model file, stepped by MuJoCo 2.2.0 with the capsules of 2.1; 4.0 integrates rotations differently."""
    golden = np.load(GOLDEN / "maze-mujoco-2.2.0.npz")
    before, actions, after = (golden[f"antmaze-eval-umaze/{name}"] for name in ("before", "actions", "after"))
    env = AntMaze("eval-umaze")
    env.reset(seed=0)
    found = []
    for state, action in zip(before, actions, strict=True):
        env.set_state(state[:15], state[15:])
        found.append(env.step(action)[0])
    deviation = np.abs(np.array(found) - after).max(1)
    assert np.median(deviation) < 1e-5
    assert deviation.max() < 3e-4


@pytest.mark.skipif("CEPDIFF_D4RL" not in os.environ, reason="CEPDIFF_D4RL names no unpacked package of D4RL 1.1")
def test_all_fields_and_trajectories_against_d4rls_files(physics: ModuleType) -> None:
    for case in physics.cases(Path(os.environ["CEPDIFF_D4RL"])):
        if case.name.startswith("antmaze"):
            found = physics.compare(case)
            assert found["unequal_fields"] == {}, case.name
            assert found["trajectory_difference"] < 1e-9, case.name
            assert found["steps_at_walls"] > 0, case.name


def test_the_comparison_asks_for_d4rls_folder(
    physics: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        physics.main(["--d4rl", str(tmp_path)])
    assert "holds no locomotion/assets/ant.xml" in capsys.readouterr().err


def test_all_ids_have_d4rls_time_limits() -> None:
    expected = {f"cepdiff/antmaze-{task}-{version}": task for task in TASKS for version in ("v0", "v1", "v2")}
    expected |= {f"cepdiff/antmaze-eval-{task}-v0": task for task in TASKS}
    found = {i: s.max_episode_steps for i, s in gym.registry.items() if i.startswith("cepdiff/antmaze")}
    assert found == {name: 700 if task.startswith("umaze") else 1000 for name, task in expected.items()}


def test_ids_lead_to_the_layouts_of_their_names() -> None:
    for task in TASKS:
        size = task.split("-")[0]
        for name in (size, f"eval-{size}"):
            version = "v0" if name.startswith("eval") else "v2"
            env = gym.make(gym.spec(f"cepdiff/antmaze-{name}{task.removeprefix(size)}-{version}"))
            assert env.unwrapped.layout is ANTMAZE_LAYOUTS[name]


@pytest.mark.parametrize("task", ["umaze-v0", "large-play-v2", "eval-medium-diverse-v0"])
def test_gymnasiums_own_checks_pass(task: str) -> None:
    env = gym.make(gym.spec(f"cepdiff/antmaze-{task}")).unwrapped
    check_env(env, skip_render_check=True)
    check_env(pickle.loads(pickle.dumps(env)), skip_render_check=True)


def test_observations_are_positions_and_velocities() -> None:
    env = AntMaze()
    observation, _ = env.reset(seed=0)
    assert (observation.shape, observation.dtype) == ((29,), np.float64)
    assert env.data.qpos.dtype == env.data.qvel.dtype == np.float64
    np.testing.assert_array_equal(observation, np.concatenate([env.data.qpos, env.data.qvel]))
    assert env.dt == pytest.approx(0.1)


def test_quaternions_are_normalised_at_reset_and_in_set_state() -> None:
    env = AntMaze()
    for seed in range(5):
        assert np.linalg.norm(env.reset(seed=seed)[0][3:7]) == pytest.approx(1.0, abs=1e-14)
    qpos = env.init_qpos.copy()
    qpos[3:7] = [2.0, 0.0, 0.0, 0.0]
    env.set_state(qpos, env.init_qvel)
    assert env.data.qpos[3:7].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_actions_of_one_are_torques_of_thirty() -> None:
    env = AntMaze()
    env.reset(seed=0)
    for action, torque in ((1.0, 30.0), (-0.5, -15.0), (0.0, 0.0), (7.0, 30.0), (-7.0, -30.0)):
        env.step(np.full(8, action))
        np.testing.assert_allclose(env.data.ctrl, torque, rtol=0, atol=1e-12)
    assert (env.action_space.low.tolist(), env.action_space.high.tolist()) == ([-1.0] * 8, [1.0] * 8)
    # Hips turn about the vertical; the ankle after each hip acts on the same leg.
    legs = env.model.actuator_trnid[:, 0]
    assert (env.model.jnt_axis[legs[::2]] == [0, 0, 1]).all()
    assert (legs[1::2] == legs[::2] + 1).all()


@pytest.mark.parametrize(("distance", "reached"), [(0.45, True), (0.55, False)])
def test_the_goal_ends_an_episode_with_reward_one(distance: float, reached: bool) -> None:
    for evaluation in (True, False):
        env = AntMaze("medium", evaluation=evaluation)
        env.reset(seed=0)
        place(env, env.goal - np.array([distance, 0.0]))
        observation, reward, terminated, truncated, info = env.step(REST)
        assert (reward, terminated, truncated) == (float(reached), reached and evaluation, False)
        assert info["success"] is reached
        np.testing.assert_array_equal(info["goal"], env.goal)
        assert math.dist(observation[:2], env.goal) == pytest.approx(distance, abs=0.04)


def test_the_dense_reward_is_minus_the_distance() -> None:
    env = AntMaze("medium", "dense")
    env.reset(seed=0)
    observation, reward, *_ = env.step(REST)
    assert reward == pytest.approx(-math.dist(observation[:2], env.goal))


def test_without_evaluation_the_way_to_the_goal_is_observed() -> None:
    env = AntMaze("umaze", evaluation=False)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.shape == observation.shape == (31,)
    np.testing.assert_array_equal(observation[29:], env.goal - observation[:2])
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize(("task", "limit"), [("umaze-v2", 700), ("medium-play-v0", 1000)])
def test_an_episode_ends_by_its_time_limit(task: str, limit: int) -> None:
    env = gym.make(gym.spec(f"cepdiff/antmaze-{task}"))
    env.reset(seed=0)
    ends = [env.step(REST)[2:4] for _ in range(limit)]
    assert ends == [(False, False)] * (limit - 1) + [(False, True)]


def test_episodes_start_near_the_origin() -> None:
    env = AntMaze("large")
    observations = np.array([env.reset(seed=seed)[0] for seed in range(100)])
    still = np.r_[0:3, 7:15]  # all positions but the quaternion
    offsets = observations[:, still] - env.init_qpos[still]
    assert 0.095 < np.abs(offsets).max() <= 0.1
    assert observations[:, 15:].std() == pytest.approx(0.1, rel=0.1)


def test_non_zero_resets_start_in_all_cells_but_the_goals() -> None:
    env = AntMaze("medium", non_zero_reset=True)
    starts = np.array([env.reset(seed=seed)[0][:2] for seed in range(400)])
    cells = [env.layout.cell(start) for start in starts]
    offsets = starts - np.array([env.layout.xy(cell) for cell in cells])
    assert set(cells) == set(env.layout.cells(".S"))
    assert 0.0 <= offsets.min() < 0.02
    assert 0.98 < offsets.max() <= 1.0


@pytest.mark.parametrize(("layout", "cell"), [("umaze", (0, 8)), ("medium", (20, 20)), ("large", (32, 24))])
def test_goals_lie_in_the_goals_cell(layout: str, cell: tuple[int, int]) -> None:
    env = AntMaze(layout)
    goals = np.array([env.reset(seed=seed)[1]["goal"] for seed in range(300)]) - np.array(cell)
    assert goals.min() >= 0.0
    assert 1.3 < goals.max() <= 1.5
    # The sum of a draw from [0, 1] and a draw from [0, 0.5].
    assert goals.mean() == pytest.approx(0.75, abs=0.05)
    assert goals.var() == pytest.approx((1 + 0.25) / 12, rel=0.2)


def test_without_a_goal_cell_any_free_cell_may_be_the_goal() -> None:
    env = AntMaze(antmaze_layout("#####\n#S..#\n#####"))
    assert {round(env.reset(seed=seed)[1]["goal"][0] // 4) for seed in range(40)} == {0, 1, 2}


def test_v2_draws_a_goal_at_each_reset_and_v0_keeps_its_own() -> None:
    def goals(version: str) -> list[tuple[float, ...]]:
        env = gym.make(gym.spec(f"cepdiff/antmaze-umaze-{version}"))
        return [tuple(env.reset(seed=seed)[1]["goal"]) for seed in (1, None, None, 2)]

    for version, different in (("v0", 2), ("v1", 2), ("v2", 4)):
        found = goals(version)
        assert len(set(found)) == different
        assert goals(version) == found or version == "v2"
        assert found[0] != found[3]


def test_options_place_the_start_and_the_goal() -> None:
    env = AntMaze("umaze", goal_each_reset=False)
    observation, info = env.reset(seed=0, options={"start": [8.0, 4.0], "goal": [8, 0]})
    assert np.abs(observation[:2] - [8, 4]).max() <= 0.1
    assert info["goal"].tolist() == env.reset()[1]["goal"].tolist() == [8.0, 0.0]
    assert env.data.site("goal").xpos[:2].tolist() == [8.0, 0.0]
    env.goal = np.array([4.0, 0.0])
    assert env.reset()[1]["goal"].tolist() == [4.0, 0.0]


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ConfigError, match="No maze is called 'huge'"):
        AntMaze("huge")
    with pytest.raises(ConfigError, match="exactly one start"):
        antmaze_layout("S.S")
    env = AntMaze()
    with pytest.raises(SimulationError, match="drawn by reset"):
        _ = env.goal
    env.reset(seed=0)
    with pytest.raises(SimulationError, match=r"shape \(8,\)"):
        env.step(np.zeros(1))


def test_equal_seeds_give_equal_episodes() -> None:
    def episode(env: AntMaze) -> tuple[list[np.ndarray], list[np.ndarray]]:
        generator = np.random.default_rng(0)
        first, info = env.reset(seed=5)
        steps = [env.step(generator.uniform(-1, 1, 8))[0] for _ in range(20)]
        last, end = env.reset()
        return [first, *steps, last], [info["goal"], end["goal"]]

    for goal_each_reset in (True, False):
        env = AntMaze("medium", non_zero_reset=True, goal_each_reset=goal_each_reset)
        one, two, other = episode(env), episode(env), episode(pickle.loads(pickle.dumps(env)))
        for again in (two, other):
            np.testing.assert_array_equal(one[0], again[0])
            np.testing.assert_array_equal(one[1], again[1])


def test_a_state_that_is_set_goes_on_as_before() -> None:
    """The solver starts from another guess, so the last digits differ where feet touch the floor."""
    env = AntMaze()
    env.reset(seed=1)
    generator = np.random.default_rng(1)
    for _ in range(30):
        state, action = (env.data.qpos.copy(), env.data.qvel.copy()), generator.uniform(-1, 1, 8)
        after = env.step(action)[0]
        env.set_state(*state)
        np.testing.assert_allclose(env.step(action)[0], after, rtol=0, atol=1e-5)


def test_walls_stand_where_the_layout_has_them() -> None:
    for name, layout in ANTMAZE_LAYOUTS.items():
        env = AntMaze(name)
        boxes = env.model.geom_type == mujoco.mjtGeom.mjGEOM_BOX
        np.testing.assert_array_equal(env.model.geom_pos[boxes][:, :2], layout.wall_centers())
        np.testing.assert_array_equal(env.model.geom_size[boxes][:, :2], layout.cell_size / 2)
        assert layout.xy(layout.cells("S")[0]).tolist() == [0.0, 0.0]
        assert all(layout.cell(layout.xy(cell)) == cell for cell in layout.cells("#.GS"))


def test_a_vector_of_mazes_is_reset_one_by_one() -> None:
    spec = gym.spec("cepdiff/antmaze-large-play-v2")
    envs = SyncVectorEnv([lambda: gym.make(spec)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    observations, infos = envs.reset(seed=[3, 4])
    assert infos["goal"].shape == (2, 2)
    again, _ = envs.reset(seed=[3, 3], options={"reset_mask": np.array([False, True])})
    np.testing.assert_array_equal(again, [observations[0], observations[0]])


def test_pictures_show_the_goal() -> None:
    if "MUJOCO_GL" not in os.environ and "DISPLAY" not in os.environ:
        pytest.skip("no MUJOCO_GL and no display")
    env = gym.make("cepdiff/antmaze-umaze-v2", render_mode="rgb_array", width=80, height=80)
    env.reset(seed=0, options={"goal": [8.0, 0.0]})
    try:
        pictures = [env.render()]
    except Exception as error:  # its type depends on the graphics library
        pytest.skip(f"nothing can be drawn here: {error}")
    env.reset(seed=0, options={"goal": [0.0, 8.0]})
    pictures.append(env.render())
    env.close()
    colours = [picture.astype(int) for picture in pictures]
    red = [np.argwhere(c[:, :, 0] > c[:, :, 1:].max(2) + 60).mean(0) for c in colours]
    assert pictures[0].shape == (80, 80, 3)
    assert red[1][0] < red[0][0] - 10  # y points up
    assert red[1][1] < red[0][1] - 10  # x points right
