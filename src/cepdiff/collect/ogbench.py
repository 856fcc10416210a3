"""Record OGBench's datasets (Park et al. 2025, arXiv 2410.20092) of point mazes, cubes and puzzles, in its own layout.

The oracles are those of the package `ogbench`. Episode lengths, noise and how goals follow one another are those of
OGBench's generation scripts, which are not in the package.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cepdiff.collect.recorder import Arrays, Report
from cepdiff.data.rl.ogbench import OGBenchName, parse_name
from cepdiff.errors import ConfigError
from cepdiff.files import written_aside
from cepdiff.rollout.envs import reset_seed
from cepdiff.rollout.registry import import_named

_POINT_NOISE = 0.5  # standard deviation, on actions in [-1, 1]
_STITCH_DISTANCE = 4  # cells
_ORACLE_NOISE = 0.1  # of closed-loop oracles: at most this, drawn for each episode
_NOISE_SCALES = (1.0, 1.0, 1.0, 3.0, 10.0)  # per action: position, yaw, gripper
_LEAST_MOVE = 0.4
_RANDOM_ACTIONS = {"cube": 0.1, "puzzle": 0.2}  # share of uniform actions in "noisy" data
# Probability that a cube's target is on another cube: drawn for each episode from this range.
_STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5),
             "octuple": (0.0, 0.35)}  # fmt: skip
# Steps of an episode and number of episodes in OGBench's files.
_MAZE_SIZES = {"navigate": (1001, 1000), "giant-navigate": (2001, 500), "stitch": (201, 5000)}
_ROBOT_LENGTH, _ROBOT_EPISODES = 1001, {"triple": 3000, "4x5": 3000, "quadruple": 5000, "4x6": 5000}
_REPORT_EVERY = 1000


class _Driver(Protocol):
    """Chooses start, goals and actions of episodes."""

    def start(self, numbers: np.random.Generator) -> dict[str, Any]:
        """Begin an episode that draws from `numbers`; returns the options of its reset."""

    def begin(self, observation: NDArray[Any], info: dict[str, Any]) -> None:
        """Called after the reset."""

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        """An action (A,), which may exceed [-1, 1]."""

    def after(self, info: dict[str, Any]) -> None:
        """Called after each step: choose the next goal if this one is reached."""


class Recipe(NamedTuple):
    """How a dataset is made: steps of an episode, number of episodes in OGBench's file, and what drives it."""

    length: int
    episodes: int
    driver: Callable[[Any], _Driver]
    mode: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows of OGBench's file."""
        return self.length * self.episodes


def recipe_of(name: OGBenchName) -> Recipe:
    """The recipe of a dataset. Raises `ConfigError` if it needs a trained policy or other oracles."""
    robot, size, kind = name.stem.split("-")[0], name.stem.split("-")[1], name.stem.split("-")[-2]
    if robot == "pointmaze" and kind in _MAZE_SIZES:
        length, episodes = _MAZE_SIZES.get(f"{size}-{kind}", _MAZE_SIZES[kind])
        return Recipe(length, episodes, lambda env: _Navigator(env, kind), {})
    if robot in _RANDOM_ACTIONS:
        mode = {"mode": "data_collection"}
        episodes = _ROBOT_EPISODES.get(size, 1000)
        return Recipe(_ROBOT_LENGTH, episodes, lambda env: _Manipulator(env, name, kind == "noisy"), mode)
    raise ConfigError(
        f"'{name.name}' cannot be collected: expected pointmaze-..., cube-... or puzzle-..., whose oracles need no "
        "trained policy; download it with cepdiff data download"
    )


def record_ogbench(
    name: OGBenchName, rows: int | None = None, *, seed: int, on_progress: Report = lambda rows: None
) -> Arrays:
    """Record `rows` rows (default: as in OGBench's file) in whole episodes, except for the last.

    Episode i depends only on (seed, name, i). `terminals` mark the last row of each episode; `qpos`, `qvel` and
    `button_states` are the simulator's states before each step.
    """
    recipe = recipe_of(name)
    rows = rows or recipe.rows
    source: Any = import_named("cepdiff.envs.ogbench")
    whole = parse_name(name.stem)
    assert whole is not None
    numbers, found = source.GlobalNumbers(), _Rows(rows)
    with closing(source.make_bare(whole.env_id, terminate_at_goal=False, **recipe.mode)) as env:
        driver = recipe.driver(env)
        episode = 0
        while found.count < rows:
            start = reset_seed(seed, name.stem, episode)
            numbers.seed(start)
            env.action_space.seed(start)
            with numbers:
                observation, info = env.reset(seed=start, options=driver.start(np.random.default_rng(start)))
                driver.begin(observation, info)
                for step in range(steps := min(recipe.length, rows - found.count)):
                    action = np.clip(driver.act(observation, info), -1.0, 1.0).astype(np.float32)
                    following, _, _, _, info = env.step(action)
                    found.add(observation, action, step == steps - 1, info)
                    driver.after(info)
                    observation = following
                    if found.count % _REPORT_EVERY == 0 or found.count == rows:
                        on_progress(found.count)
            episode += 1
    return found.arrays


def write_ogbench(path: Path, arrays: Arrays) -> None:
    """Write the arrays as an .npz file, whole or not at all. Raises `OutputError` if it cannot be written."""
    with written_aside(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


class _Rows:
    """Arrays that are filled row by row."""

    def __init__(self, rows: int) -> None:
        self.rows, self.count = rows, 0
        self.arrays: Arrays = {}

    def add(self, observation: NDArray[Any], action: NDArray[Any], last: bool, info: dict[str, Any]) -> None:
        values: dict[str, NDArray[Any]] = {"observations": observation, "actions": action, "terminals": np.array(last)}
        values |= {name: info[f"prev_{name}"] for name in ("qpos", "qvel", "button_states") if f"prev_{name}" in info}
        for name, value in values.items():
            if self.count == 0:
                dtype = np.float32 if value.dtype.kind == "f" else value.dtype
                self.arrays[name] = np.zeros((self.rows, *value.shape), dtype)
            self.arrays[name][self.count] = value
        self.count += 1


class _Navigator:
    """Moves the point straight to the next cell of the shortest path, plus noise.

    "navigate": from goal to goal, among the cells that are no straight corridors. "stitch": to one goal, four cells
    away, and stays there.
    """

    def __init__(self, env: Any, kind: str) -> None:
        self.env, self.kind = env, kind
        walls = env.maze_map == 1
        self.free = [(int(i), int(j)) for i, j in np.argwhere(~walls)]
        self.goals = [cell for cell in self.free if not _is_corridor(walls, *cell)]
        self.ahead: dict[tuple[Any, Any], NDArray[Any]] = {}  # (cell, goal's cell) -> location of the next cell

    def start(self, numbers: np.random.Generator) -> dict[str, Any]:
        self.numbers = numbers
        start, goals = self.choice(self.free), self.goals
        if self.kind == "stitch":
            here = self.env.ij_to_xy(start)
            distances = self.env.get_oracle_subgoal(here, here)[1]
            goals = [(int(i), int(j)) for i, j in np.argwhere(distances == _STITCH_DISTANCE)] or [start]
        return {"task_info": {"init_ij": start, "goal_ij": self.choice(goals)}}

    def begin(self, observation: NDArray[Any], info: dict[str, Any]) -> None:
        pass

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        position, goal = self.env.get_xy(), self.env.cur_goal_xy
        cells = self.env.xy_to_ij(position), self.env.xy_to_ij(goal)
        if cells not in self.ahead:
            self.ahead[cells] = self.env.get_oracle_subgoal(position, goal)[0]
        way = self.ahead[cells] - position
        direction: NDArray[Any] = way / (np.linalg.norm(way) + 1e-6)
        return direction + self.numbers.normal(0.0, _POINT_NOISE, 2)

    def after(self, info: dict[str, Any]) -> None:
        if info["success"] and self.kind == "navigate":
            self.env.set_goal(goal_xy=self.env.add_noise(self.env.ij_to_xy(self.choice(self.goals))))

    def choice(self, cells: list[Any]) -> Any:
        return cells[self.numbers.integers(len(cells))]


def _is_corridor(walls: NDArray[np.bool_], i: int, j: int) -> bool:
    """True for a free cell with walls on two opposite sides and none on the others."""
    beside = (walls[i - 1, j], walls[i + 1, j]), (walls[i, j - 1], walls[i, j + 1])
    return any(all(beside[axis]) and not any(beside[1 - axis]) for axis in (0, 1))


class _Manipulator:
    """The arm's oracle, which gets a new target when it is done: plans with noise, or in "noisy" data a closed loop
    with noise and some random actions."""

    def __init__(self, env: Any, name: OGBenchName, noisy: bool) -> None:
        self.env, self.noisy = env, noisy
        robot, size = name.stem.split("-")[:2]
        self.random_actions = _RANDOM_ACTIONS[robot] if noisy else 0.0
        self.stacking = _STACKING.get(size, (0.5, 0.5))
        part, style = {"cube": "cube", "puzzle": "button"}[robot], "markov" if noisy else "plan"
        module = import_module(f"ogbench.manipspace.oracles.{style}.{part}_{style}")
        options: dict[str, Any] = {"min_norm": _LEAST_MOVE} if noisy else {"noise": _ORACLE_NOISE}
        if robot == "puzzle":
            options["gripper_always_closed"] = True
        self.oracle = getattr(module, f"{part.capitalize()}{style.capitalize()}Oracle")(env=env, **options)

    def start(self, numbers: np.random.Generator) -> dict[str, Any]:
        self.numbers = numbers
        self.p_stack = numbers.uniform(*self.stacking)
        self.noise = numbers.uniform(0.0, _ORACLE_NOISE) if self.noisy else 0.0
        return {}

    def begin(self, observation: NDArray[Any], info: dict[str, Any]) -> None:
        self.oracle.reset(observation, info)

    def act(self, observation: NDArray[Any], info: dict[str, Any]) -> NDArray[Any]:
        if self.random_actions and self.numbers.uniform() < self.random_actions:
            return self.numbers.uniform(-1.0, 1.0, 5)
        action = np.asarray(self.oracle.select_action(observation, info))
        return action + self.numbers.normal(0.0, self.noise * np.array(_NOISE_SCALES)) if self.noisy else action

    def after(self, info: dict[str, Any]) -> None:
        if self.oracle.done:
            self.oracle.reset(*self.env.set_new_target(p_stack=self.p_stack))
