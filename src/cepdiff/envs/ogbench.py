"""OGBench's environments (Park et al. 2025, arXiv 2410.20092) as `ogbench/<id>`: importing this module registers them.

They are those of the package `ogbench`, in which an episode depends on NumPy's global generator and on an action space
without a seed; here it depends only on the seed of its reset.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box
from numpy.typing import NDArray

from cepdiff.envs.layouts import Layout
from cepdiff.errors import MissingExtraError
from cepdiff.types import SUCCESS

try:
    import_module("ogbench")  # registers its environments
except ModuleNotFoundError as error:
    raise MissingExtraError("OGBench", "ogbench") from error

PREFIX = "ogbench/"


class GlobalNumbers:
    """A state of NumPy's global generator that is in place while a `with` block runs."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed(seed)

    def seed(self, seed: int | None) -> None:
        """Start anew from `seed`; None is any state."""
        self._inside = np.random.RandomState(seed).get_state()

    def __enter__(self) -> None:
        self._outside = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._inside)  # noqa: NPY002

    def __exit__(self, *_: object) -> None:
        self._inside = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._outside)  # noqa: NPY002


class OGBenchEnv(gym.Wrapper[Any, Any, Any, Any]):
    """An environment of ogbench whose episodes depend only on their seeds.

    In a goal-conditioned environment, the goal follows the observation in the same vector, (S,) -> (2 S,), and the seed
    also chooses the task. The only entry of a step's info is `SUCCESS`: an episode ends when its task has succeeded, so
    the last one is what OGBench counts.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        inner: Any = env.unwrapped
        self._numbers = GlobalNumbers()
        self._with_goal = inner._reward_task_id is None
        self._goal: NDArray[Any] = np.empty(0)
        if self._with_goal:
            with self._numbers:
                space: Any = env.observation_space
            self.observation_space = Box(np.tile(space.low, 2), np.tile(space.high, 2), dtype=space.dtype)
        if hasattr(inner, "maze_map"):
            inner.layout = layout_of_map(inner.maze_map)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[Any], Any]:
        inner: Any = self.unwrapped
        if seed is not None:
            self._numbers.seed(seed)
            inner.action_space.seed(seed)  # ogbench takes random actions while it makes the goal
        with self._numbers:
            observation, info = self.env.reset(seed=seed, options=options)
        self._goal = info["goal"] if self._with_goal else self._goal
        if hasattr(inner, "cur_goal_xy"):
            inner.goal = np.array(inner.cur_goal_xy)
        return self._vector(observation), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        with self._numbers:
            observation, reward, terminated, truncated, info = self.env.step(action)
        return self._vector(observation), float(reward), terminated, truncated, {SUCCESS: bool(info["success"])}

    def _vector(self, observation: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([observation, self._goal]) if self._with_goal else observation


def layout_of_map(maze_map: NDArray[np.integer]) -> Layout:
    """Layout of ogbench's array of 0 (free) and 1 (wall): cells of 4 m, cell (1, 1) at the origin, x along rows."""
    return Layout(tuple("".join(".#"[cell] for cell in row) for row in maze_map), 4.0, (1, 1), row_axis=1)


def make_bare(env_id: str, **kwargs: Any) -> Any:
    """Make ogbench's environment `env_id` without Gymnasium's wrappers; `kwargs` override the registered ones."""
    spec = gym.spec(env_id)
    assert spec.entry_point is not None
    creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(spec.entry_point)
    with _no_file_left():
        env: Any = creator(**{**spec.kwargs, **kwargs})
    if isinstance(getattr(type(env), "action_space", None), property):  # a new, unseeded space at each access
        space = type(env).action_space
        fixed = cached_property(lambda self: space.fget(self))
        fixed.__set_name__(type(env), "action_space")
        env.__class__ = type(type(env).__name__, (type(env),), {"action_space": fixed})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bounds are float64 and become float32
            _ = env.action_space
    return env


def make(env_id: str, **kwargs: Any) -> OGBenchEnv:
    """Make the environment `ogbench/<env_id>`."""
    return OGBenchEnv(make_bare(env_id, **kwargs))


@contextmanager
def _no_file_left() -> Iterator[None]:
    """Remove the temporary files that are made in the block: ogbench's mazes leave one each, and keep it open."""
    original: Any = tempfile.mkstemp
    made: list[str] = []

    def closed(*args: Any, **kwargs: Any) -> tuple[int, str]:
        number, path = original(*args, **kwargs)
        os.close(number)
        made.append(path)
        return number, path

    vars(tempfile)["mkstemp"] = closed
    try:
        yield
    finally:
        vars(tempfile)["mkstemp"] = original
        for path in made:
            Path(path).unlink(missing_ok=True)


def _register() -> None:
    for spec in list(gym.registry.values()):
        ours = str(spec.entry_point).startswith(("ogbench.locomaze.", "ogbench.manipspace."))
        if ours and not spec.id.startswith("visual-"):  # policies here see vectors
            limit, kwargs = spec.max_episode_steps, {"env_id": spec.id}
            gym.register(PREFIX + spec.id, "cepdiff.envs.ogbench:make", kwargs=kwargs, max_episode_steps=limit)


_register()
