"""Simulation environments: created by name, checked against a buffer, batched without automatic resets."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from cepdiff.errors import MissingExtraError, SimulationError, nearest
from cepdiff.randomness import stream_seed
from cepdiff.types import DataSpec

Env = gym.Env[Any, Any]

# Modules of the classic stack, installed by the extra 'd4rl'.
_CLASSIC_MODULES = ("d4rl", "gym", "shimmy")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnvSpec:
    """How to make an environment; `module` is imported first to register it (`cepdiff.envs` for ids `cepdiff/...`)."""

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = None

    def __post_init__(self) -> None:
        if self.module is None and self.env_id.startswith("cepdiff/"):
            object.__setattr__(self, "module", "cepdiff.envs")


class EnvFacts(NamedTuple):
    """Sizes, action bounds and time limit of an environment; `horizon` is None without a time limit."""

    observation_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    horizon: int | None


def reset_seed(seed: int, *labels: str | int) -> int:
    """Seed for `reset`, named like a stream, with 32 bits: environments accept no more."""
    return stream_seed(seed, *labels) >> 31


def make_env(spec: EnvSpec, **kwargs: Any) -> Env:
    """Make the environment of `spec`; `kwargs` (e.g. `render_mode`) override the spec's own.

    Raises:
        MissingExtraError: a module of the classic D4RL stack is not installed.
        SimulationError: a module fails to import, the id is unknown, or the environment rejects its arguments.
    """
    if spec.module is not None:
        _import(spec.module)
    try:
        # A spec instead of an id avoids the deprecation warning of the -v4 environments, which D4RL's data need.
        registered = gym.spec(spec.env_id)
    except gym.error.Error:
        hint = nearest(spec.env_id, gym.registry) or " gymnasium.pprint_registry() lists them all."
        raise SimulationError(f"No environment is registered as '{spec.env_id}'.{hint}") from None
    _quiet_mujoco()
    try:
        return gym.make(registered, **{**spec.kwargs, **kwargs})
    except gym.error.DependencyNotInstalled as error:
        if spec.module in _CLASSIC_MODULES:
            raise MissingExtraError(f"The environment '{spec.env_id}'", "d4rl") from error
        raise SimulationError(f"'{spec.env_id}' cannot be made: {_line(error)}") from error
    except Exception as error:  # environments raise any type
        gl = os.environ.get("MUJOCO_GL")
        hint = f" (MUJOCO_GL={gl} is set: is its library installed?)" if gl and "gl" in str(error) else ""
        raise SimulationError(f"'{spec.env_id}' cannot be made: {_line(error)}{hint}") from error


def make_vector_env(spec: EnvSpec, num_envs: int) -> SyncVectorEnv:
    """`num_envs` copies that reset only on request, by `reset(seed=[...], options={"reset_mask": mask})`.

    By default Gymnasium resets on the step after an end and counts that step, with reward 0.
    """
    return SyncVectorEnv([lambda: make_env(spec)] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


def box_spaces(env: Env) -> tuple[Box, Box]:
    """Return the spaces of observations and actions; raises SimulationError unless both are flat, actions bounded."""
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, Box) or len(observations.shape) != 1:
        raise SimulationError(f"{_name(env)} has observation space {observations}; expected a flat Box (one vector)")
    if (
        not isinstance(actions, Box)
        or len(actions.shape) != 1
        or not np.issubdtype(actions.dtype, np.floating)
        or not actions.is_bounded()
    ):
        raise SimulationError(f"{_name(env)} has action space {actions}; expected a flat, bounded Box of floats")
    return observations, actions


def check_spaces(env: Env, data: DataSpec) -> None:
    """Raise SimulationError unless the environment's spaces are the buffer's."""
    observations, actions = box_spaces(env)
    change = "Choose the buffer's environment with --data.env_id."
    found = (observations.shape[0], actions.shape[0])
    expected = (data.observation_size, data.action_size)
    if found != expected:
        raise SimulationError(
            f"{_name(env)} has {found[0]} observations and {found[1]} actions, "
            f"the buffer {expected[0]} and {expected[1]}. {change}"
        )
    bounds = (actions.low, actions.high)
    if not np.allclose(bounds, (data.action_low, data.action_high), rtol=1e-6, atol=0):
        raise SimulationError(
            f"{_name(env)} takes actions from {actions.low.tolist()} to {actions.high.tolist()}, "
            f"the buffer's go from {list(data.action_low)} to {list(data.action_high)}. {change}"
        )


def env_facts(spec: EnvSpec) -> EnvFacts:
    """Make an environment and return its facts; raises as `make_env` and `box_spaces`."""
    with closing(make_env(spec)) as env:
        observations, actions = box_spaces(env)
        horizon = env.spec.max_episode_steps if env.spec is not None else None
        return EnvFacts(observations.shape[0], tuple(actions.low.tolist()), tuple(actions.high.tolist()), horizon)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # d4rl raises many types if MuJoCo 2.1 is missing
        if isinstance(error, ModuleNotFoundError) and error.name in _CLASSIC_MODULES:
            raise MissingExtraError(f"The module '{module}'", "d4rl") from None
        raise SimulationError(f"Cannot import '{module}' for its environments: {_line(error)}") from error


def _quiet_mujoco() -> None:
    """Log MuJoCo's warnings; without a handler it prints them and writes MUJOCO_LOG.TXT to the working folder."""
    with suppress(Exception):  # an environment that needs MuJoCo reports it itself
        mujoco = importlib.import_module("mujoco")
        if mujoco.get_mju_user_warning() is None:
            mujoco.set_mju_user_warning(_log_once)


@lru_cache(maxsize=256)
def _log_once(message: str) -> None:
    # Gymnasium's own models use deprecated attributes and warn about them in every environment.
    level = logging.DEBUG if "deprecated" in message else logging.WARNING
    _logger.log(level, "MuJoCo: %s", message.strip())


def _name(env: Env) -> str:
    return f"'{env.spec.id}'" if env.spec is not None else str(env.unwrapped)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
