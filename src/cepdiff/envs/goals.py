"""Mazes whose observation vector ends with the goal."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from cepdiff.errors import MissingExtraError


class VectorWithGoal(gym.ObservationWrapper[Any, Any, Any]):
    """Joins `parts` of a dictionary observation and its `desired_goal`, in this order."""

    def __init__(self, env: gym.Env[Any, Any], parts: Sequence[str]) -> None:
        super().__init__(env)
        self._keys = (*parts, "desired_goal")
        spaces: Any = env.observation_space
        low, high = (np.concatenate([getattr(spaces[key], end) for key in self._keys]) for end in ("low", "high"))
        self.observation_space = Box(low, high, dtype=spaces["desired_goal"].dtype)

    def observation(self, observation: Any) -> NDArray[Any]:
        return np.concatenate([observation[key] for key in self._keys])


class GoalAppended(gym.ObservationWrapper[Any, Any, Any]):
    """Appends the goal (2,) of one of this package's mazes to its observation."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space: Any = env.observation_space
        low, high = (np.append(end, [sign * np.inf] * 2) for end, sign in ((space.low, -1), (space.high, 1)))
        self.observation_space = Box(low, high, dtype=space.dtype)

    def observation(self, observation: Any) -> NDArray[Any]:
        maze: Any = self.env.unwrapped
        return np.concatenate([observation, maze.goal])


def make(env_id: str, parts: Sequence[str] = (), **kwargs: Any) -> gym.Env[Any, Any]:
    """Make one of this package's mazes, or one of Gymnasium-Robotics' with those `parts` of its observation.

    Raises `MissingExtraError` without the package Gymnasium-Robotics.
    """
    if not parts:
        return GoalAppended(gym.make(env_id, **kwargs))
    try:
        gym.register_envs(import_module("gymnasium_robotics"))
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"The environment '{env_id}'", "robotics") from error
    return VectorWithGoal(gym.make(env_id, **kwargs), parts)
