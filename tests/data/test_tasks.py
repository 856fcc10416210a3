"""The registry: its contents, and its answer to an unknown name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cepdiff.data.rl.tasks import (
    FAMILIES,
    REWARD_RULES,
    TASKS,
    env_references,
    find_task,
    horizon_for_env,
    normalized_score,
    references_for_env,
    task_for_env,
)
from cepdiff.errors import ConfigError

URL = "https://rail.eecs.berkeley.edu/datasets/offline_rl/"
# One line per task, from the registrations of D4RL 1.1: name, file, returns of score 0 and 100, horizon, state.
D4RL = dict(line.split(" ", 1) for line in Path(__file__).with_name("d4rl_tasks.txt").read_text().splitlines())


def test_the_registry_is_d4rl_and_the_embedded_task() -> None:
    assert set(TASKS) == {*D4RL, "reacher-replay"}
    assert len(D4RL) == 140
    assert FAMILIES == ("locomotion", "antmaze", "maze2d", "adroit", "kitchen", "embedded")


@pytest.mark.parametrize("name", D4RL)
def test_facts_are_those_of_d4rl(name: str) -> None:
    file, low, high, horizon, state = D4RL[name].split()
    task = TASKS[name]
    assert task.url == URL + file
    assert (task.reference_min, task.reference_max, task.horizon) == (float(low), float(high), int(horizon))
    assert task.note.count("deprecated by D4RL") == (state == "deprecated")


@pytest.mark.parametrize("name", TASKS)
def test_entries_are_usable(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert (task.url is None) != (task.embedded is None)
    assert task.reference_min < task.reference_max
    assert task.reward_rule in REWARD_RULES
    assert task.evaluation_scales[0] == 0
    assert list(task.evaluation_scales) == sorted(set(task.evaluation_scales))
    assert (task.env_module == "cepdiff.envs") == task.env_id.startswith("cepdiff/")
    assert task.num_support_actions == (32 if task.family == "antmaze" else 16)
    if "deprecated by D4RL: use " in task.note:
        better = task.note.split("use ")[1].split(";")[0]
        assert "deprecated" not in TASKS[better].note
        assert TASKS[better].env_id.rsplit("-", 1)[0] == task.env_id.rsplit("-", 1)[0]


def test_no_two_tasks_share_a_file() -> None:
    files = [task.url.rsplit("/", 1)[1] for task in TASKS.values() if task.url]  # all are saved in one folder
    assert len(set(files)) == len(files)


def test_recipe_per_family() -> None:
    hopper, maze = find_task("hopper-medium-v2"), find_task("antmaze-umaze-diverse-v2")
    assert (hopper.env_id, hopper.horizon, hopper.reward_rule) == ("cepdiff/Hopper-v2", 1000, "return_range")
    assert (hopper.evaluation_episodes, maze.evaluation_episodes) == (10, 100)
    assert (maze.env_id, maze.env_kwargs, maze.reward_rule) == ("cepdiff/antmaze-umaze-diverse-v2", {}, "minus_one")
    assert find_task("ant-random-expert-v0").env_id == "cepdiff/Ant-v2"
    point, pen, arm = find_task("maze2d-large-v1"), find_task("pen-human-v1"), find_task("kitchen-mixed-v0")
    assert (point.env_id, point.reward_rule, point.evaluation_episodes) == ("cepdiff/maze2d-large-v1", "none", 100)
    assert (point.goal, point.goal_radius, find_task("maze2d-large-dense-v1").goal_radius) == ((7, 9), 0.5, None)
    assert (pen.env_id, pen.reward_rule, pen.evaluation_episodes) == ("cepdiff/pen-v0", "return_range", 100)
    assert pen.env_id == find_task("pen-cloned-v0").env_id
    assert (arm.env_id, arm.reward_rule, arm.evaluation_episodes) == ("cepdiff/kitchen-mixed-v0", "none", 20)


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'hoper-medium-v2'.*hopper-medium-v2.*cepdiff data list"):
        find_task("hoper-medium-v2")


def test_references_by_environment() -> None:
    assert references_for_env("Walker2d-v4") == references_for_env("cepdiff/Walker2d-v2") == (1.629008, 4592.3)
    assert references_for_env("Walker2d-v5") is None  # its rewards differ
    assert references_for_env("cepdiff/door-v0") == (-56.512833, 2880.5693087298737)
    assert references_for_env("cepdiff/maze2d-umaze-v0") == (0.94, 62.6)
    horizons = {"Hopper-v4": 1000, "Reacher-v5": 50, "cepdiff/antmaze-umaze-v2": 700, "X-v0": None}
    assert {env_id: horizon_for_env(env_id) for env_id in horizons} == horizons
    assert normalized_score(0.0, -1.0, 3.0) == 25


def test_references_on_which_tasks_disagree_are_left_out() -> None:
    pen = find_task("pen-human-v1")
    assert set(env_references([pen, pen])) == {"cepdiff/pen-v0"}
    assert env_references([pen, replace(pen, reference_max=1e4)]) == {}


def test_task_of_an_environment() -> None:
    assert task_for_env("cepdiff/maze2d-umaze-v1") is find_task("maze2d-umaze-v1")
    assert task_for_env("cepdiff/pen-v0") is task_for_env("Hopper-v4") is task_for_env("reacher-replay") is None


def test_the_registry_imports_nothing_heavy() -> None:
    code = (
        "import sys, cepdiff.data.rl.tasks, cepdiff.cli.data; print([m for m in ('torch', 'h5py') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
