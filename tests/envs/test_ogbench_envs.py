"""OGBench's environments: episodes that depend on their seeds only, success, goals in the observation."""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from cepdiff.collect.waypoints import route
from cepdiff.envs.layouts import Cell, Layout
from cepdiff.errors import MissingExtraError
from cepdiff.rollout.envs import EnvSpec, make_env, time_limit
from cepdiff.rollout.registry import registered
from cepdiff.rollout.rollout import Episode, rollout
from cepdiff.types import SUCCESS

ogbench = pytest.importorskip("ogbench")
MAZE = "ogbench/pointmaze-medium-singletask-task3-v0"
DESCRIPTORS = Path("/dev/fd")


def made(env_id: str) -> Any:
    return make_env(EnvSpec(env_id))


def episode(env: Any, seed: int, steps: int = 12) -> np.ndarray:
    """Observations and rewards under actions drawn from the seed."""
    observation, _ = env.reset(seed=seed)
    numbers, rows = np.random.default_rng(seed), [np.append(observation, 0.0)]
    for _ in range(steps):
        action = numbers.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        observation, reward, *_ = env.step(action)
        rows.append(np.append(observation, reward))
    return np.array(rows)


@pytest.mark.parametrize(
    ("env_id", "size", "limit"),
    [("pointmaze-teleport-v0", 4, 1000), ("antmaze-medium-singletask-v0", 29, 1000), ("cube-single-v0", 56, 200)],
)
def test_an_episode_depends_only_on_its_seed(env_id: str, size: int, limit: int) -> None:
    """Not on earlier episodes, nor on NumPy's global generator, which is left as it was."""
    spec = EnvSpec(f"ogbench/{env_id}")
    with closing(make_env(spec)) as one, closing(make_env(spec)) as other:
        assert time_limit(spec) == limit
        np.random.seed(1)  # noqa: NPY002
        first = episode(one, 3)
        assert np.random.get_state()[1][0] == 1  # noqa: NPY002
        episode(other, 4, steps=3)
        np.random.seed(2)  # noqa: NPY002
        assert np.array_equal(episode(other, 3), first)
        assert not np.array_equal(episode(other, 4)[0], first[0])
        assert first.shape == (13, size + 1)


def test_success_ends_an_episode_as_ogbench_counts_it() -> None:
    """The reward is that of the state before the step: -1 away from the goal, 0 at it."""
    with closing(made(MAZE)) as env:
        env.reset(seed=0)
        inner: Any = env.unwrapped
        still = np.zeros(2, np.float32)
        assert env.step(still)[1:] == (-1.0, False, False, {SUCCESS: False})
        inner.set_xy(inner.cur_goal_xy + np.array([0.7, 0.7]))  # closer than 1
        assert env.step(still)[1:] == (0.0, True, False, {SUCCESS: True})
        assert inner.layout.cell(inner.goal) == inner.cur_task_info["goal_ij"]
        assert all(inner.layout.is_free(cell) == (inner.maze_map[cell] == 0) for cell in np.ndindex(8, 8))


def test_the_goal_follows_the_observation() -> None:
    with closing(made("ogbench/pointmaze-medium-v0")) as env:
        tasks = set()
        for seed in range(8):
            observation, _ = env.reset(seed=seed)
            assert np.array_equal(observation[2:], env.unwrapped.cur_goal_xy)
            tasks.add(env.unwrapped.cur_task_id)
            assert np.array_equal(env.step(np.zeros(2, np.float32))[0][2:], observation[2:])
        assert len(tasks) > 2
        assert env.observation_space.shape == (4,)


class Walker:
    """At scale 1, walks along the shortest path to a cell; at scale 0 it stands still."""

    action_size = noise_size = 2

    def __init__(self, layout: Layout, goal: Cell) -> None:
        self.layout, self.goal = layout, goal

    def act(self, observations: Tensor, *, guidance_scale: Tensor, noise: Tensor) -> Tensor:
        cells = [self.layout.cell(position) for position in observations.numpy()]
        ahead = np.array([self.layout.xy(route(self.layout, cell, self.goal)[0]) for cell in cells])
        return (guidance_scale[:, None] * (torch.from_numpy(ahead).float() - observations)).clamp(-1, 1)


def test_rollouts_report_success() -> None:
    with closing(made(MAZE)) as env:
        env.reset(seed=0)
        walker = Walker(env.unwrapped.layout, env.unwrapped.cur_task_info["goal_ij"])
    plan = [Episode(index, scale) for scale in (0.0, 1.0) for index in (0, 1)]
    *still, one, other = rollout(walker, EnvSpec(MAZE, {"max_episode_steps": 200}), plan, seed=0)
    assert [(r.success, r.terminated, r.episode_return) for r in still] == [(False, False, -200.0)] * 2
    assert one.success is one.terminated is other.success is True
    assert one.episode_return == 1 - one.length > -200


def test_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made(MAZE).close()  # libraries open files of their own at first
    before = len(list(DESCRIPTORS.iterdir())) if DESCRIPTORS.is_dir() else 0
    for _ in range(3):
        made(MAZE).close()
    assert list(tmp_path.iterdir()) == []
    assert not before or len(list(DESCRIPTORS.iterdir())) == before


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in gym.registry if name.startswith("ogbench/")]:
        monkeypatch.delitem(gym.registry, name)
    monkeypatch.setitem(sys.modules, "ogbench", None)
    monkeypatch.delitem(sys.modules, "cepdiff.envs.ogbench", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[ogbench\]"):
        registered(MAZE)
