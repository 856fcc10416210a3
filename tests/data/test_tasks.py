"""The registry: what is in it, and how it answers to a name that is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cepdiff.data.tasks import (
    REWARD_RULES,
    TASKS,
    find_task,
    horizon_for_env,
    normalized_score,
    references_for_env,
)
from cepdiff.errors import ConfigError


def test_every_family_is_complete() -> None:
    kinds = ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
    locomotion = {f"{r}-{k}-v2" for r in ("halfcheetah", "hopper", "walker2d", "ant") for k in kinds}
    mazes = {"umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"}
    assert set(TASKS) == locomotion | {f"antmaze-{m}-v2" for m in mazes} | {"reacher-replay"}


@pytest.mark.parametrize("name", TASKS)
def test_entries_are_usable(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert (task.url is None) != (task.embedded is None)
    assert task.reference_min < task.reference_max
    assert task.reward_rule in REWARD_RULES
    assert task.evaluation_scales[0] == 0
    assert list(task.evaluation_scales) == sorted(set(task.evaluation_scales))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hopper-medium-replay-v2", "gym_mujoco_v2/hopper_medium_replay-v2.hdf5"),
        ("halfcheetah-expert-v2", "gym_mujoco_v2/halfcheetah_expert-v2.hdf5"),
        (
            "antmaze-umaze-v2",
            "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
        ),
        (
            "antmaze-medium-play-v2",
            "ant_maze_v2/Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5",
        ),
        (
            "antmaze-large-diverse-v2",
            "ant_maze_v2/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
        ),
    ],
)
def test_urls_are_those_of_d4rl(name: str, file: str) -> None:
    assert TASKS[name].url == f"http://rail.eecs.berkeley.edu/datasets/offline_rl/{file}"


def test_recipe_per_family() -> None:
    hopper, maze = find_task("hopper-medium-v2"), find_task("antmaze-umaze-diverse-v2")
    assert (hopper.env_id, hopper.horizon, hopper.num_support_actions) == ("Hopper-v4", 1000, 16)
    assert (hopper.reward_rule, hopper.evaluation_episodes) == ("return_range", 10)
    assert (maze.horizon, maze.num_support_actions, maze.reward_rule) == (700, 32, "minus_one")
    assert (maze.env_kwargs, maze.env_module) == ({"env_id": "d4rl:antmaze-umaze-diverse-v2"}, "shimmy")
    assert find_task("antmaze-large-play-v2").horizon == 1000


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'hoper-medium-v2'.*hopper-medium-v2"):
        find_task("hoper-medium-v2")


def test_references_by_environment() -> None:
    assert references_for_env("Walker2d-v4") == references_for_env("Walker2d-v2") == (1.629008, 4592.3)
    assert references_for_env("Walker2d-v5") is None  # its rewards differ
    assert references_for_env("GymV21Environment-v0") is None
    assert (horizon_for_env("Hopper-v4"), horizon_for_env("Reacher-v5"), horizon_for_env("X-v0")) == (
        1000,
        50,
        None,
    )
    assert normalized_score(0.0, -1.0, 3.0) == 25


def test_the_registry_imports_nothing_heavy() -> None:
    code = "import sys, cepdiff.data.tasks, cepdiff.cli.data; print([m for m in ('torch', 'h5py') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
