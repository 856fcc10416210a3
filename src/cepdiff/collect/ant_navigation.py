"""Collect AntMaze buffers like D4RL (Fu et al. 2020, Sec. 5): a walking ant is led to a goal in each episode.

Goals, starts and noise: D4RL 1.1, `scripts/generation/generate_ant_maze_datasets.py` and `locomotion/maze_env.py`;
rewards and terminals: `scripts/generation/relabel_antmaze_rewards.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cepdiff.collect.recorder import Act, Arrays, RecordingEnv, Report
from cepdiff.collect.waypoints import Point, WaypointPolicy
from cepdiff.envs.layouts import ANTMAZE_LAYOUTS, Cell, Layout
from cepdiff.envs.mujoco_env import MujocoMaze
from cepdiff.errors import SimulationError
from cepdiff.randomness import stream_seed
from cepdiff.rollout.envs import Env, reset_seed

# The cells that D4RL chose for `play`.
_CHOSEN: dict[str, tuple[Cell, ...]] = {
    "medium": ((2, 6), (5, 1), (6, 5)),
    "large": ((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)),
    "eval-medium": ((1, 6), (5, 1), (6, 5)),
    "eval-large": ((1, 4), (1, 9), (3, 6), (5, 1), (7, 4), (7, 6), (7, 10)),
}
# Of all of D4RL's files.
ANT_NOISE = 0.2
ANT_ROWS = 1_000_000


@dataclass(frozen=True)
class Trips:
    """Cells where episodes start and end. No starts: the environment's own."""

    starts: Sequence[Cell]
    goals: Sequence[Cell]


def trips_of(env_id: str, layout: Layout) -> Trips:
    """D4RL's starts and goals for a task: `umaze` the origin and the goal cell, `play` any start and chosen goals,
    `diverse` and other environments any start and any goal."""
    free = layout.cells(".GS")
    if "-play-" in env_id:
        chosen = next((cells for name, cells in _CHOSEN.items() if ANTMAZE_LAYOUTS[name] == layout), ())
        if chosen:
            return Trips([cell for cell in free if cell not in chosen], chosen)
    if "umaze-v" in env_id and layout.cells("G"):
        return Trips((), layout.cells("G"))
    return Trips(free, free)


def walk_to_goals(
    env: Env,
    walk: Act,
    rows: int,
    *,
    trips: Trips,
    horizon: int,
    seed: int,
    action_noise: float = ANT_NOISE,
    states: bool = False,
    on_progress: Report = lambda rows: None,
) -> Arrays:
    """Record `rows` steps of AntMaze in episodes of `horizon` steps, with the goals of the walk as `infos/goal`.

    The ant is led to one goal per episode and stays around it until the timeout. As in D4RL's files, rewards and
    terminals are for another goal, drawn once: each step that ends within 0.5 of it has reward 1 and is terminal, and
    the episode goes on. `action_noise` is the standard deviation of normal noise on the actions, clipped to the bounds.

    Raises `SimulationError` if the environment is not AntMaze.
    """
    maze = env.unwrapped
    if not isinstance(maze, MujocoMaze):
        raise SimulationError(f"expected an AntMaze environment; found {maze}")
    layout = maze.layout
    numbers = np.random.default_rng(stream_seed(seed, "navigate"))
    recorder = RecordingEnv(maze, rows, states=states)  # unwrapped: goes on at the goal
    policy = WaypointPolicy(layout, walk, numbers)
    goals, timeouts = np.zeros((rows, 2)), np.zeros(rows, np.bool_)
    maze.reset(seed=reset_seed(seed, "navigate-goal"))
    rewarded = maze.goal
    for first in range(0, rows, horizon):
        options = {"goal": rewarded}
        if trips.starts:
            options["start"] = _draw(trips.starts, layout, numbers)
        goal = _draw(trips.goals, layout, numbers) + numbers.uniform(0.0, layout.cell_size / 8, 2)
        observation, _ = recorder.reset(seed=reset_seed(seed, "navigate", first // horizon), options=options)
        for row in range(first, min(first + horizon, rows)):
            noise = action_noise * numbers.standard_normal(8)
            action = np.clip(policy.act(observation, goal) + noise, -1.0, 1.0)
            goals[row] = goal
            observation = recorder.step(action.astype(np.float32))[0]
        timeouts[row] = row + 1 - first == horizon
        on_progress(row + 1)
    arrays = recorder.arrays()
    return {**arrays, "timeouts": timeouts, "infos/goal": goals}


def _draw(cells: Sequence[Cell], layout: Layout, numbers: np.random.Generator) -> Point:
    """In a random one of the cells; coordinates below 0 become 0, as in D4RL."""
    location = layout.xy(cells[int(numbers.integers(len(cells)))])
    return np.maximum(location + numbers.uniform(0.0, layout.cell_size / 4, 2), 0.0)
