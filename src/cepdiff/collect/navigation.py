"""Collect Maze2D buffers like D4RL (Fu et al. 2020, Sec. 5): one long walk from goal to goal."""

from __future__ import annotations

import numpy as np

from cepdiff.collect.recorder import Arrays, RecordingEnv, Report
from cepdiff.collect.waypoints import Point, PointController
from cepdiff.envs.layouts import MAZE2D_LAYOUTS, Layout
from cepdiff.errors import SimulationError
from cepdiff.randomness import stream_seed
from cepdiff.rollout.envs import Env, reset_seed
from cepdiff.rollout.mazes import layout_of

# Rows of D4RL's files, if not 1,000,000.
_FULL_SIZES = {"medium": 2_000_000, "large": 4_000_000, "eval-medium": 2_000_000, "eval-large": 4_000_000}
POINT_OBSERVATIONS = 4  # of Maze2D: position and velocity
_REPORT_EVERY = 10_000
_GOAL_NOISE = 0.1


def maze_of(env: Env) -> Layout:
    """Return the maze of an environment. Raises `SimulationError` if it has none."""
    layout = layout_of(env)
    if layout is None:
        name = env.spec.id if env.spec is not None else str(env.unwrapped)
        raise SimulationError(f"'{name}' has no maze to navigate; see the mazes in cepdiff data list")
    return layout


def full_size(layout: Layout) -> int:
    """Number of rows D4RL collected in a maze."""
    return next((rows for name, rows in _FULL_SIZES.items() if MAZE2D_LAYOUTS[name] == layout), 1_000_000)


def navigate(
    env: Env, rows: int, *, seed: int, horizon: int, action_noise: float = 0.0, on_progress: Report = lambda rows: None
) -> Arrays:
    """Record `rows` steps of Maze2D with `PointController`, with `infos/qpos`, `infos/qvel` and `infos/goal`.

    Goals are random free cells, ±0.1. When a goal is reached, or after `horizon` steps, a timeout is set and a new
    goal is drawn, but the ball continues from its position. Rewards are the environment's, for its own goal. D4RL's
    script differs in two ways: it repeats the last observation in the first row after a goal, and its rewards are for
    the observation before the step. `action_noise` is the standard deviation of normal noise on the actions (0.5 with
    D4RL's `--noisy`).
    """
    layout = maze_of(env)
    numbers = np.random.default_rng(stream_seed(seed, "navigate"))
    recorder = RecordingEnv(env.unwrapped, rows, states=True)  # unwrapped, to remove the time limit
    controller = PointController(layout, numbers)
    goals, timeouts = np.zeros((rows, 2)), np.zeros(rows, np.bool_)
    observation, _ = recorder.reset(seed=reset_seed(seed, "navigate"))

    goal = _draw_goal(layout, numbers)
    controller.head_for(observation[:2], goal)
    steps = 0
    for row in range(rows):
        action, arrived = controller.act(observation[:2], observation[2:])
        if action_noise:
            action = np.clip(action + action_noise * numbers.standard_normal(2), -1.0, 1.0)
        goals[row] = goal
        observation = recorder.step(action.astype(np.float32))[0]
        steps += 1
        if arrived or steps > horizon:
            timeouts[row] = True
            goal, steps = _draw_goal(layout, numbers), 0
            controller.head_for(observation[:2], goal)
        if (row + 1) % _REPORT_EVERY == 0 or row + 1 == rows:
            on_progress(row + 1)
    return {**recorder.arrays(), "timeouts": timeouts, "infos/goal": goals}


def _draw_goal(layout: Layout, numbers: np.random.Generator) -> Point:
    cells = layout.cells(".GS")
    return layout.xy(cells[numbers.integers(len(cells))]) + numbers.uniform(-_GOAL_NOISE, _GOAL_NOISE, 2)
