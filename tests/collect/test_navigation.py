"""Navigation in mazes: routes, D4RL's controller, and `cepdiff collect` on mazes as a user types it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from cepdiff.cli.collect import add_parser
from cepdiff.collect.navigation import full_size, navigate
from cepdiff.collect.waypoints import PointController, WaypointPolicy, route
from cepdiff.data.rl.hdf5 import read_arrays
from cepdiff.envs.layouts import ANTMAZE_LAYOUTS, MAZE2D_LAYOUTS, Layout, maze2d_layout
from cepdiff.errors import ConfigError, OutputError, SimulationError
from cepdiff.rollout.envs import EnvSpec, make_env


def collect(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["collect", *map(str, arguments)])
    code: int = parsed.run(parsed)
    return code


def stand_still(observation: NDArray[np.float64]) -> NDArray[np.float64]:
    """A policy for the ant that stands still, importable by name."""
    assert observation.shape == (31,)
    assert np.linalg.norm(observation[29:]) == pytest.approx(10.0)
    return np.zeros(8)


def test_routes_are_shortest_and_stay_on_free_cells() -> None:
    layout = MAZE2D_LAYOUTS["large"]
    free = layout.cells(".GS")
    for start in free:
        for goal in free:
            cells = [start, *route(layout, start, goal)]
            assert cells[-1] == goal
            if start != goal:
                steps = np.abs(np.diff(cells, axis=0)).sum(1)
                assert (steps == 1).all()
                assert all(layout.is_free(cell) for cell in cells)
                back = route(layout, goal, start)
                assert len(back) == len(cells) - 1
    # Around the wall of the u-shaped maze.
    assert route(MAZE2D_LAYOUTS["umaze"], (1, 1), (3, 1)) == [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]


def test_no_way_is_one_clear_line() -> None:
    with pytest.raises(SimulationError, match=r"no path from cell \(1, 1\) to cell \(1, 3\)"):
        route(maze2d_layout("##### #.#.# #####"), (1, 1), (1, 3))


def test_the_controller_is_pd_control_clipped() -> None:
    layout = MAZE2D_LAYOUTS["open"]
    controller = PointController(layout, np.random.default_rng(0))
    controller.head_for(np.array([2.0, 2.0]), np.array([2.04, 2.98]))
    force, arrived = controller.act(np.array([2.0, 2.95]), np.array([0.02, -0.01]))
    assert not arrived  # 0.95 away from the previous position: too fast
    np.testing.assert_allclose(force, [-0.02, 0.51], atol=1e-12)  # 10 (2 - 2) - 0.02, 10 (3 - 2.95) + 0.01
    force, arrived = controller.act(np.array([2.0, 2.95]), np.array([0.0, -3.0]))
    assert arrived
    np.testing.assert_allclose(force, [0.0, 1.0])


@pytest.fixture(scope="module")
def drive() -> dict[str, NDArray[np.generic]]:
    env = make_env(EnvSpec("cepdiff/maze2d-medium-v1"))
    return navigate(env, 6000, seed=3, horizon=250)


def test_a_drive_is_one_long_trajectory_from_goal_to_goal(drive: dict[str, NDArray[np.generic]]) -> None:
    observations, timeouts, goals = drive["observations"], drive["timeouts"], drive["infos/goal"]
    np.testing.assert_array_equal(drive["next_observations"][:-1], observations[1:])
    np.testing.assert_array_equal(observations, np.hstack([drive["infos/qpos"], drive["infos/qvel"]]).astype("f4"))
    ends = np.flatnonzero(timeouts)
    assert len(ends) > 10
    assert (np.diff(ends) <= 251).all()
    changes = np.flatnonzero((np.diff(goals, axis=0) != 0).any(1))
    np.testing.assert_array_equal(changes, ends[ends < len(goals) - 1])
    # Drives not ended by the horizon reach the middle of the goal's cell.
    lengths = np.diff(ends, prepend=-1)
    early = ends[lengths < 251]
    assert len(early) > 5
    middle = np.round(goals[early].astype(float))
    assert np.linalg.norm(observations[early, :2].astype(float) - middle, axis=1).max() < 0.1 + 1e-6
    assert not drive["terminals"].any()
    assert np.abs(drive["actions"].astype(float)).max() <= 1.0


def test_rewards_are_those_of_the_environments_own_goal(drive: dict[str, NDArray[np.generic]]) -> None:
    goal = MAZE2D_LAYOUTS["medium"].xy(MAZE2D_LAYOUTS["medium"].cells("G")[0])
    distance = np.linalg.norm(drive["next_observations"][:, :2].astype(float) - goal, axis=1)
    np.testing.assert_array_equal(drive["rewards"] == 1, distance <= 0.5)


def test_equal_seeds_give_equal_drives_and_noise_changes_them() -> None:
    def go(seed: int, noise: float = 0.0) -> NDArray[np.generic]:
        env = make_env(EnvSpec("cepdiff/maze2d-umaze-v1"))
        return navigate(env, 300, seed=seed, horizon=300, action_noise=noise)["observations"]

    np.testing.assert_array_equal(go(1), go(1))
    assert (go(1) != go(2)).any()
    assert np.abs(go(1, 0.5) - go(1)).max() > 0.01


def test_sizes_are_those_of_the_files_of_d4rl() -> None:
    sizes = {name: full_size(layout) for name, layout in MAZE2D_LAYOUTS.items() if "eval" not in name}
    assert sizes == {"open": 10**6, "umaze": 10**6, "medium": 2 * 10**6, "large": 4 * 10**6}


def test_the_command_makes_a_buffer_and_its_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect("maze2d-umaze-v1", "--steps", 500, "--output", tmp_path) == 0
    file = tmp_path / "maze2d-umaze-v1-navigate.hdf5"
    raw = read_arrays(file, infos=True)
    assert len(raw) == 500
    assert set(raw.infos) == {"qpos", "qvel", "goal"}
    assert raw.metadata["env_id"] == "cepdiff/maze2d-umaze-v1"
    assert raw.metadata["reference_max"] == pytest.approx(161.86)
    assert imread(file.with_suffix(".png")).shape[2] == 4
    assert str(file) in capsys.readouterr().out


def test_the_ant_walks_by_a_policy_that_is_given(tmp_path: Path) -> None:
    file = tmp_path / "ant.hdf5"
    name = f"{__name__}:stand_still"
    assert (
        collect("antmaze-umaze-v2", "--kind", "navigate", "--policy", name, "--steps", 60, "--states", "--output", file)
        == 0
    )
    raw = read_arrays(file, infos=True)
    assert raw.observations.shape == (60, 29)
    assert raw.infos["qpos"].shape == (60, 15)
    np.testing.assert_allclose(raw.observations[:, :15], raw.infos["qpos"], atol=1e-6)


def test_the_ants_way_leads_along_the_route() -> None:
    layout = ANTMAZE_LAYOUTS["umaze"]
    ways: list[NDArray[np.float64]] = []

    def note(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        ways.append(numbers[29:])
        return np.zeros(8)

    policy = WaypointPolicy(layout, note, np.random.default_rng(0))
    start = np.zeros(29)
    start[:2] = layout.xy((1, 1))
    policy.act(start, layout.xy((3, 1)))  # behind the wall, below the start
    assert ways[-1][0] > 7.0  # first along the corridor, towards +x
    assert ways[-1] @ ways[-1] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("Reacher-v5", "--kind", "navigate"), SimulationError, "'Reacher-v5' has no maze"),
        (("maze2d-umaze-v1", "--kind", "navigate", "--policy", "a:b"), ConfigError, "remove --policy"),
        (("maze2d-umaze-v1", "--kind", "random", "--policy", "a:b"), ConfigError, "only --kind navigate takes both"),
        (("maze2d-umaze-v1", "--action_noise", "-1"), ConfigError, "expected 0 or a positive number"),
        (("maze2d-umaze-v1", "--action_noise", "nan"), ConfigError, "expected 0 or a positive number"),
        (
            ("maze2d-umaze-v1", "--kind", "random", "--action_noise", "0.5"),
            ConfigError,
            "only applies to --kind navigate",
        ),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        collect(*arguments, "--steps", 10, "--output", tmp_path / "x.hdf5")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/buffers/.*: cannot be written \(Not a directory\)"):
        collect("maze2d-umaze-v1", "--output", tmp_path / "file" / "buffers")  # would be a million rows if it started


def test_a_maze_can_be_ones_own() -> None:
    own: Callable[[str], Layout] = maze2d_layout
    layout = own("##### #..G# #####")
    env = make_env(EnvSpec("cepdiff/maze2d-umaze-v1", {"layout": layout}))
    arrays = navigate(env, 400, seed=0, horizon=100)
    assert np.round(arrays["observations"][:, 0].astype(float)).tolist() == [1.0] * 400  # one corridor
