"""The environment decides on reward rule, K, scales, episodes and references, however the data are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.data.rl.settings import Settings, env_id_of, family_of_env, horizon_of, references_of, settings_of
from cepdiff.data.rl.tasks import TASKS, find_task

FAMILIES = {
    "locomotion": ["Hopper-v2", "HalfCheetah-v5", "cepdiff/Ant-v2", "walker2d-full-replay-v2", "gymnasium:Hopper-v4"],
    "antmaze": ["antmaze-eval-large-play-v0", "cepdiff/antmaze-umaze-v2", "AntMaze_Large_Diverse_GR-v4"],
    "maze2d": ["maze2d-open-dense-v0", "cepdiff/maze2d-large-v1", "PointMaze_UMaze-v3"],
    "adroit": ["pen-human-v1", "cepdiff/door-v0", "AdroitHandHammer-v1", "AdroitHandRelocateSparse-v1"],
    "kitchen": ["kitchen-mixed-v0", "cepdiff/kitchen-complete-v0", "FrankaKitchen-v1"],
    "embedded": ["Reacher-v5"],
    None: [
        "Pendulum-v1",
        "AntWars-v0",
        "my-antmaze",
        "Humanoid-v4",
        "Reacher-v4",
        "antmaze-large-navigate-singletask-v0",
        "AntMaze_UMazeDense-v5",  # with other rewards than D4RL's
    ],
}


@pytest.mark.parametrize(("family", "env_id"), [(family, name) for family, ids in FAMILIES.items() for name in ids])
def test_family_of_an_environment(family: str | None, env_id: str) -> None:
    assert family_of_env(env_id) == family


def test_every_task_has_its_own_familys_settings() -> None:
    for task in TASKS.values():
        by_task, by_env = settings_of(None, task, {}), settings_of(None, None, {"env_id": task.env_id})
        assert by_task.origin == f"rule of the task {task.name}"
        assert by_env.origin == f"rule of the family {task.family} by the environment {task.env_id}"
        assert {**vars(by_task), "origin": ""} == {**vars(by_env), "origin": ""}
        if task.url is not None:  # D4RL's name is its environment's
            assert family_of_env(task.name) == task.family


def test_the_first_known_environment_decides() -> None:
    hopper, ant = find_task("hopper-medium-v2"), {"env_id": "antmaze-umaze-v2"}
    assert settings_of("Pen-v0", hopper, ant).origin == "rule of the task hopper-medium-v2"
    assert settings_of("PointMaze_UMaze-v3", hopper, ant).reward_rule == "none"
    assert settings_of("Pen-v0", None, ant).reward_rule == "minus_one"
    assert settings_of(None, None, {"env_id": "Pen-v0"}) == Settings(
        origin="the default rule: Pen-v0 is of no known family"
    )
    assert settings_of(None, None, {}).origin == "the default rule: no environment is named"
    assert env_id_of(None, hopper, ant) == "cepdiff/Hopper-v2"
    assert (horizon_of(None, None, ant), horizon_of(None, hopper, {"horizon": 5})) == (700, 5)
    own = {"reference_min": -1.0, "reference_max": 2}
    assert references_of(None, None, {**ant, **own}) == (0, 1)
    assert references_of(None, None, {"env_id": "Pen-v0", **own}) == (-1, 2)
    assert references_of("Hopper-v4", None, own) == (hopper.reference_min, hopper.reference_max)
    assert references_of("Hopper-v5", None, {"reference_min": 0.0}) is None


@pytest.mark.parametrize("env_id", ["antmaze-umaze-v2", "AntMaze_UMaze-v4"])
def test_the_same_rows_get_the_same_rewards_by_path(
    make_raw: Callable[..., RawArrays], tmp_path: Path, env_id: str
) -> None:
    """By the task's name they are r - 1: 0 at the goal, else -1."""
    rewards = (np.arange(10) == 2).astype(np.float32)
    write_arrays(tmp_path / "mine.hdf5", make_raw(rewards=rewards), {"env_id": env_id})
    data = OfflineDataModule(str(tmp_path / "mine.hdf5"))
    data.setup()
    assert data.rewards().tolist() == [0 if i == 2 else -1 for i in range(10)]
    assert (data.settings.num_support_actions, data.settings.evaluation_episodes) == (32, 100)
    rule = f"rule of the family antmaze by the environment {env_id}"
    assert data.notes()[-1] == f"rewards: minus_one (r - 1), {rule}"
    given = OfflineDataModule(str(tmp_path / "mine.hdf5"), reward_rule="none")
    given.setup()
    assert given.notes()[-1] == "rewards: none, given as data.reward_rule"
    names = {finding.name for finding in data.findings}
    assert ("jumps" in names or "rewards" in names) is (env_id == "antmaze-umaze-v2")  # the checks of D4RL's mazes
