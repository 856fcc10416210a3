"""Registered environments by id: `module:Env-v0`, ids of other packages, and which modules may be imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec as Registered

from cepdiff.errors import CepdiffError, MissingExtraError, SimulationError, nearest, one_line
from cepdiff.trust import is_installed, is_trusted, make_importable

# Modules of the classic stack, installed by the extra 'd4rl'.
CLASSIC_MODULES = ("d4rl", "gym", "shimmy")
# Prefixes of ids that a package registers only when it is imported, its module, and its name for pip.
PROVIDERS = (
    (("AdroitHand", "AntMaze_", "FetchP", "FetchReach", "FetchSlide", "FrankaKitchen", "HandM", "HandReach",
      "PointMaze_"), "gymnasium_robotics", "gymnasium-robotics"),
    (("PandaFlip", "PandaP", "PandaReach", "PandaS"), "panda_gym", "panda-gym"),
    (("Meta-World/",), "metaworld", "metaworld"),
    (("dm_control/",), "shimmy", "'shimmy[dm-control]'"),
    (("ogbench/",), "cepdiff.envs.ogbench", "ogbench"),
)  # fmt: skip


def registered(env_id: str, module: str | None = None) -> Registered:
    """Return Gymnasium's spec of `env_id` after importing `module`, that of "module:Env-v0", or a known provider.

    Raises:
        MissingExtraError: a module of the classic D4RL stack is not installed.
        SimulationError: a module fails to import, a provider is not installed, or the id is unknown.
    """
    for name in modules_of(env_id, module):
        _import(name)
    bare = env_id.rpartition(":")[2]
    if bare not in gym.registry:
        for beginnings, provider, package in PROVIDERS:
            if bare.startswith(beginnings):
                if not (provider in sys.modules or is_installed(provider)):
                    raise SimulationError(
                        f"'{env_id}' is an environment of {provider}, which is not installed: pip install {package}"
                    )
                _import(provider)
    try:
        return gym.spec(bare)
    except gym.error.Error:
        hint = nearest(bare, gym.registry) or (
            " gymnasium.pprint_registry() lists them all; write module:ID for an environment that a module registers."
        )
        raise SimulationError(f"No environment is registered as '{env_id}'.{hint}") from None


def modules_of(env_id: str, module: str | None = None) -> list[str]:
    """Modules to import before an environment is made."""
    named = env_id.rpartition(":")[0]
    return [name for name in (module, named) if name]


def import_named(module: str) -> ModuleType:
    """Import a module that the user names; if it is not installed, it may be in the working folder."""
    if module not in sys.modules and not is_installed(module):
        make_importable(Path.cwd())  # like `python -m`
    return importlib.import_module(module)


def refuse_untrusted(modules: Iterable[str], source: str, advice: str, trusted: Iterable[str | Path] = ()) -> None:
    """Raise SimulationError for a module named by a file that is neither installed nor in a `trusted` folder."""
    folders = [Path(folder).resolve() for folder in trusted]
    for module in modules:
        if not is_trusted(module, folders):
            raise SimulationError(
                f"{source} names an environment of the module '{module}', which is not an installed package: "
                f"importing it runs its code. If you trust it, {advice}"
            )


def _import(module: str) -> None:
    try:
        import_named(module)
    except Exception as error:  # d4rl raises many types if MuJoCo 2.1 is missing
        if isinstance(error, ModuleNotFoundError) and error.name in CLASSIC_MODULES:
            raise MissingExtraError(f"The module '{module}'", "d4rl") from None
        if isinstance(error, CepdiffError):
            raise
        raise SimulationError(f"Cannot import '{module}' for its environments: {one_line(error)}") from error
