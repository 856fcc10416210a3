"""The walking ant and AntMaze's recipe: the ant's symmetry, the walk itself, and what a recorded file holds."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

import ant_walk
from cepdiff.cli import main
from cepdiff.collect.ant_navigation import trips_of, walk_to_goals
from cepdiff.collect.gait import Walker, body_action, walking_features
from cepdiff.data.rl.hdf5 import read_arrays
from cepdiff.envs.antmaze import AntMaze
from cepdiff.envs.layouts import ANTMAZE_LAYOUTS
from cepdiff.rollout.envs import EnvSpec, make_env

SIGNS = np.array([[1, 1], [1, -1], [1, -1], [1, 1]])  # of hip and ankle, legs in qpos's order


def about_z(angle: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A turn about the vertical as quaternion (4,) and matrix (3, 3)."""
    matrix = np.zeros(9)
    quaternion = np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
    mujoco.mju_quat2Mat(matrix, quaternion)
    return quaternion, matrix.reshape(3, 3)


def product(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.zeros(4)
    mujoco.mju_mulQuat(out, a, b)
    return out


def seen(turns: int, world: float) -> NDArray[np.float64]:
    """Features along a walk of 25 steps, whose body has been turned by quarters and whose world by an angle."""
    ant, numbers = AntMaze(), np.random.default_rng(1)
    ant.reset(seed=3)
    qpos, qvel = ant.data.qpos.copy(), ant.data.qvel.copy()
    qpos[2] = 0.5  # soon on its feet
    of_body, body = about_z(turns * np.pi / 2)
    of_world, turn = about_z(world)

    def renumbered(joints: NDArray[np.float64]) -> NDArray[np.float64]:
        return (np.roll(joints.reshape(4, 2) * SIGNS, -turns, 0) * SIGNS).ravel()

    qpos[:3], qvel[:3] = turn @ qpos[:3], turn @ qvel[:3]
    qpos[3:7] = product(of_world, product(qpos[3:7], of_body))
    qvel[3:6] = body.T @ qvel[3:6]
    qpos[7:], qvel[6:] = renumbered(qpos[7:]), renumbered(qvel[6:])
    ant.set_state(qpos, qvel)
    way = turn[:2, :2] @ [8.0, 6.0]
    features = []
    for _ in range(25):
        found, quarters = walking_features(np.concatenate([ant.data.qpos, ant.data.qvel, way]))
        features.append(found)
        ant.step(body_action(numbers.uniform(-1, 1, 8), quarters))
    return np.array(features)


def test_the_walker_sees_the_same_after_a_quarter_turn_and_in_a_turned_world() -> None:
    expected = seen(0, 0.0)
    assert expected[-1, 0] > 0.2  # held up by the floor
    for turns, world in ((1, 0.0), (2, 0.7), (3, -2.0), (0, 3.0)):
        np.testing.assert_allclose(seen(turns, world), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("angle", [0.3, 2.0, -1.2])
def test_the_ant_walks_in_any_direction(angle: float) -> None:
    ant, walk = AntMaze("large"), Walker.shipped()
    way = 10 * np.array([np.cos(angle), np.sin(angle)])
    observation, _ = ant.reset(seed=1, options={"start": (100.0, 100.0)})  # outside the walls
    start = observation[:2]
    for _ in range(100):
        observation = ant.step(walk(np.concatenate([observation, way])))[0]
    moved = observation[:2] - start
    assert moved @ way / 10 > 6.0  # metres in 10 seconds
    assert abs(moved[0] * way[1] - moved[1] * way[0]) / 10 < 3.0
    assert 1 - 2 * (observation[4:6] ** 2).sum() > 0.5  # on its feet


def test_starts_and_goals_are_d4rls() -> None:
    assert trips_of("cepdiff/antmaze-umaze-v2", ANTMAZE_LAYOUTS["umaze"]).goals == [(3, 1)]
    assert trips_of("cepdiff/antmaze-medium-play-v2", ANTMAZE_LAYOUTS["medium"]).goals == ((2, 6), (5, 1), (6, 5))
    for size in ("medium", "large", "eval-medium", "eval-large"):
        layout = ANTMAZE_LAYOUTS[size]
        trips = trips_of(f"antmaze-{size}-play-v0", layout)
        assert all(layout.is_free(cell) for cell in trips.goals)
        assert not set(trips.goals) & set(trips.starts)
        free = layout.cells(".GS")
        trips = trips_of(f"antmaze-{size}-diverse-v0", layout)
        assert (trips.starts, trips.goals) == (free, free)


def test_an_episode_goes_on_at_its_goal_and_rewards_are_for_one_goal_of_the_file() -> None:
    env = make_env(EnvSpec("cepdiff/antmaze-umaze-v2"))

    def jump(inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Puts the ant near its goal, so that the rows there are many."""
        env.unwrapped.data.qpos[:2] = [0.7, 8.7]  # type: ignore[attr-defined]
        return np.zeros(8)

    trips = trips_of("cepdiff/antmaze-umaze-v2", ANTMAZE_LAYOUTS["umaze"])
    found = walk_to_goals(env, jump, 25, trips=trips, horizon=10, seed=0, action_noise=0.2, states=True)
    assert np.flatnonzero(found["timeouts"]).tolist() == [9, 19]
    walks = found["infos/goal"]
    assert len(np.unique(walks, axis=0)) == 3
    assert ((walks >= [0, 8]) & (walks <= [1.5, 9.5])).all()
    np.testing.assert_array_equal(found["rewards"], found["terminals"])
    assert np.abs(found["actions"]).max() < 1.0
    assert np.std(found["actions"]) == pytest.approx(0.2, rel=0.2)
    np.testing.assert_allclose(found["observations"][10, :2], [0, 0], atol=0.11)  # the origin, as in umaze
    np.testing.assert_array_equal(found["observations"][1:10], found["next_observations"][:9])


def test_a_buffer_is_one_command(tmp_path: Path) -> None:
    file = tmp_path / "ant.hdf5"
    assert main(["collect", "antmaze-umaze-diverse-v2", "--steps", "120", "--output", str(file)]) == 0
    raw = read_arrays(file, infos=True)
    assert raw.observations.shape == (120, 29)
    assert set(raw.infos) == {"goal"}
    assert (raw.metadata["action_noise"], raw.metadata["policy"]) == (0.2, "the package's own")
    moved = np.linalg.norm(np.diff(raw.observations[:, :2], axis=0), axis=1)
    assert moved.sum() > 4.0  # it walks
    assert file.with_suffix(".png").exists()


def test_the_script_that_trained_the_walker_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("stable_baselines3")
    file = tmp_path / "walk.npz"
    ant_walk.main([str(file), "--steps", "60", "--trips", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("1 trips of 1000 steps: 0% arrive")  # it has not learnt to walk
    with np.load(file) as arrays:
        walker = Walker([(arrays[f"weight{i}"], arrays[f"bias{i}"]) for i in range(3)])
    assert walker(np.eye(31)[3] + np.eye(31)[29]).shape == (8,)
