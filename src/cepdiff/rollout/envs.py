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

from cepdiff.errors import MissingExtraError, SimulationError, one_line
from cepdiff.randomness import stream_seed
from cepdiff.rollout.checked import CheckedEnv, try_out
from cepdiff.rollout.registry import CLASSIC_MODULES, modules_of, registered
from cepdiff.types import DataSpec

Env = gym.Env[Any, Any]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnvSpec:
    """How to make an environment.

    `env_id` is Gymnasium's, "Env-v0" or "module:Env-v0"; `module` is imported first to register it (`cepdiff.envs` for
    ids `cepdiff/...`). `kwargs` are those of `gymnasium.make`: the environment's own and `max_episode_steps`.
    """

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = None

    def __post_init__(self) -> None:
        if self.module is None and self.env_id.startswith("cepdiff/"):
            object.__setattr__(self, "module", "cepdiff.envs")

    @property
    def modules(self) -> list[str]:
        """Modules to import first."""
        return modules_of(self.env_id, self.module)


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
    # A spec instead of an id avoids the deprecation warning of the -v4 environments, which D4RL's data need.
    found = registered(spec.env_id, spec.module)
    _quiet_mujoco()
    try:
        return gym.make(found, **{**spec.kwargs, **kwargs})
    except gym.error.DependencyNotInstalled as error:
        if spec.module in CLASSIC_MODULES:
            raise MissingExtraError(f"The environment '{spec.env_id}'", "d4rl") from error
        raise SimulationError(f"'{spec.env_id}' cannot be made: {one_line(error)}") from error
    except Exception as error:  # environments raise any type
        gl = os.environ.get("MUJOCO_GL")
        hint = f" (MUJOCO_GL={gl} is set: is its library installed?)" if gl and "gl" in str(error) else ""
        raise SimulationError(f"'{spec.env_id}' cannot be made: {one_line(error)}{hint}") from error


def make_checked_env(spec: EnvSpec) -> CheckedEnv:
    """Make the environment of `spec`, wrapped in `CheckedEnv`; raises as `make_env`."""
    return CheckedEnv(make_env(spec), spec.env_id)


def time_limit(spec: EnvSpec) -> int | None:
    """Steps after which Gymnasium ends an episode; None if it never does."""
    limit = spec.kwargs.get("max_episode_steps", registered(spec.env_id, spec.module).max_episode_steps)
    return limit if isinstance(limit, int) and limit > 0 else None


def make_vector_env(spec: EnvSpec, num_envs: int) -> SyncVectorEnv:
    """`num_envs` checked copies that reset only on request, by `reset(seed=[...], options={"reset_mask": mask})`.

    By default Gymnasium resets on the step after an end and counts that step, with reward 0.
    """
    return SyncVectorEnv([lambda: make_checked_env(spec)] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


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
    """Take a step in an environment and return its facts; raises as `make_env`, `box_spaces` and `CheckedEnv`."""
    with closing(make_checked_env(spec)) as env:
        observations, actions = box_spaces(env)
        try_out(env)
        low, high = tuple(actions.low.tolist()), tuple(actions.high.tolist())
        return EnvFacts(observations.shape[0], low, high, time_limit(spec))


def _quiet_mujoco() -> None:
    """Log MuJoCo's warnings; without a handler it prints them and writes MUJOCO_LOG.TXT to the working folder."""
    with suppress(Exception):  # an environment that needs MuJoCo reports it itself
        mujoco = importlib.import_module("mujoco")
        known = mujoco.get_mju_user_warning()
        if known is None or type(known).__module__ == "ctypes":  # dm_control's, which repeats every warning
            mujoco.set_mju_user_warning(_log_once)


@lru_cache(maxsize=256)
def _log_once(message: str) -> None:
    # Gymnasium's own models use deprecated attributes and warn about them in every environment.
    level = logging.DEBUG if "deprecated" in message else logging.WARNING
    _logger.log(level, "MuJoCo: %s", message.strip())


def _name(env: Env) -> str:
    return f"'{env.spec.id}'" if env.spec is not None else str(env.unwrapped)
