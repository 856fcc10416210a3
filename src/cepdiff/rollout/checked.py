"""A wrapper that turns an environment's faults into one clear line."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from cepdiff.errors import CepdiffError, SimulationError


class CheckedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Raises SimulationError with name and step if the environment raises or returns something unusable.

    Observations must have the shape of the observation space, rewards must be numbers; `finite` requires both finite.
    """

    def __init__(self, env: gym.Env[Any, Any], name: str, finite: bool = True) -> None:
        super().__init__(env)
        self._name = name
        self._finite = finite
        self._steps = 0
        self._shape = env.observation_space.shape

    def reset(self, **options: Any) -> tuple[NDArray[Any], dict[str, Any]]:
        self._steps = 0
        try:
            observation, info = self.env.reset(**options)
            self._check(observation)
        except Exception as error:  # environments may raise anything
            self._refuse(error)
        return observation, info

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._check(observation)
            reward, terminated, truncated = float(reward), bool(terminated), bool(truncated)
        except Exception as error:  # environments may raise anything
            self._refuse(error)
        if self._finite and not math.isfinite(reward):
            raise SimulationError(f"{self._where()}: the reward is {reward}; expected a finite number")
        return observation, reward, terminated, truncated, info

    def _check(self, observation: Any) -> None:
        values = np.asarray(observation)
        if values.shape != self._shape:
            raise SimulationError(
                f"{self._where()}: an observation has shape {values.shape}; its observation space has {self._shape}"
            )
        if self._finite and not np.isfinite(values).all():
            raise SimulationError(f"{self._where()}: an observation is NaN or infinite")

    def _refuse(self, error: Exception) -> NoReturn:
        if isinstance(error, CepdiffError):
            raise error
        reason = ": ".join(part for part in (type(error).__name__, " ".join(str(error).split())) if part)
        raise SimulationError(f"{self._where()}: {reason}") from error

    def _where(self) -> str:
        return f"'{self._name}' fails in " + (f"step {self._steps} of an episode" if self._steps else "reset()")


def try_out(env: CheckedEnv) -> None:
    """Reset the environment and take one step, so that a broken environment is noticed before training."""
    env.reset(seed=0)
    space: Any = env.action_space
    env.step(((space.low + space.high) / 2).astype(space.dtype))
