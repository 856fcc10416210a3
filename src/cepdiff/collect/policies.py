"""Policies that are not trained here: uniform actions, or the user's own."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from cepdiff.collect.recorder import Act
from cepdiff.errors import ConfigError, DivergenceError, MissingExtraError, SimulationError, one_line
from cepdiff.randomness import stream_seed
from cepdiff.rollout.registry import import_named


def uniform(space: Box, *, seed: int, label: str) -> Act:
    """Actions drawn uniformly from the box: D4RL's random policy."""
    numbers = np.random.default_rng(stream_seed(seed, label))
    return lambda _: numbers.uniform(space.low, space.high).astype(space.dtype)


def load_policy(name: str, space: Box, *, trust: bool = False) -> Act:
    """Load the policy `name`: `module:function`, where the function maps one observation (S,) to one action (A,), or
    a stable-baselines3 `.zip`, used deterministically. Actions are clipped to `space`.

    Loading a `.zip` unpickles it, which can run arbitrary code, so it needs `trust`. Raises `ConfigError` without it or
    if the policy does not exist, `MissingExtraError` for a `.zip` without stable-baselines3.
    """
    play = _from_zip(Path(name), trust) if name.endswith(".zip") else _from_module(name)

    def act(observation: NDArray[Any]) -> NDArray[Any]:
        action = np.asarray(play(observation))
        if action.shape != space.shape:
            raise SimulationError(f"the policy '{name}' returned shape {action.shape}; expected {space.shape}")
        if not np.isfinite(action).all():
            raise DivergenceError(f"the policy '{name}' returned a NaN or infinite action")
        clipped: NDArray[Any] = np.clip(action, space.low, space.high).astype(space.dtype)
        return clipped

    return act


def _from_module(name: str) -> Callable[[NDArray[Any]], Any]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(f"--policy {name}: expected a stable-baselines3 file (.zip) or module:function")
    try:
        found = getattr(import_named(module), attribute)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"--policy {name}: {one_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"--policy {name}: is a {type(found).__name__}; expected a function")
    return found  # type: ignore[no-any-return]


def _from_zip(path: Path, trust: bool) -> Callable[[NDArray[Any]], Any]:
    if not path.is_file():
        raise ConfigError(f"--policy {path}: no such file")
    if not trust:
        raise ConfigError(f"--policy {path}: loading a .zip can run code from it; if you trust it, add --trust_policy")
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))  # plain JSON
        # PPO shares its policy class with A2C; SAC's and TD3's are in "stable_baselines3.<algorithm>.policies".
        home = settings["policy_class"]["__module__"].split(".")[1]
        algorithm = "PPO" if "clip_range" in settings else {"sac": "SAC", "td3": "TD3"}[home]
    except (zipfile.BadZipFile, AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ConfigError(f"--policy {path}: not a stable-baselines3 file of SAC, TD3 or PPO") from None
    try:
        import stable_baselines3
    except ImportError:
        raise MissingExtraError("Loading a stable-baselines3 policy", "collect") from None
    model = getattr(stable_baselines3, algorithm).load(path, device="cpu")
    return lambda observation: model.predict(observation, deterministic=True)[0]
