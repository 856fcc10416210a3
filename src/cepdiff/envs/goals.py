"""Environments with dictionary observations as vectors: the observation, then the goal."""

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


def make(env_id: str, parts: Sequence[str], **kwargs: Any) -> VectorWithGoal:
    """Make one of Gymnasium-Robotics' mazes. Raises `MissingExtraError` without that package."""
    try:
        gym.register_envs(import_module("gymnasium_robotics"))
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"The environment '{env_id}'", "robotics") from error
    return VectorWithGoal(gym.make(env_id, **kwargs), parts)
