"""Registered environments by id: `module:Env-v0`, ids of other packages, and which modules may be imported."""

from __future__ import annotations

import importlib
import site
import sys
import sysconfig
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec as Registered

from cepdiff.errors import MissingExtraError, SimulationError, nearest

# Modules of the classic stack, installed by the extra 'd4rl'.
CLASSIC_MODULES = ("d4rl", "gym", "shimmy")
# How ids begin that a package registers only when it is imported, its module, and what pip installs.
PROVIDERS = (
    (("AdroitHand", "AntMaze_", "Fetch", "FrankaKitchen", "Hand", "PointMaze_"),
     "gymnasium_robotics", "gymnasium-robotics"),
    (("Panda",), "panda_gym", "panda-gym"),
    (("Meta-World/",), "metaworld", "metaworld"),
    (("dm_control/",), "shimmy", "'shimmy[dm-control]'"),
)  # fmt: skip


def registered(env_id: str, module: str | None = None) -> Registered:
    """Gymnasium's entry for `env_id`, after importing `module`, the module in "module:Env-v0", or a known provider.

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
                if not is_installed(provider):
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
    """A module that the user names; one that is not installed may lie in the working folder."""
    here = str(Path.cwd())
    if not is_installed(module) and here not in sys.path:  # like `python -m`
        sys.path.insert(0, here)
    return importlib.import_module(module)


def refuse_foreign(modules: Iterable[str], source: str, advice: str) -> None:
    """Raise SimulationError for a module that a file names and that is not installed: importing it runs its code."""
    for module in modules:
        if not is_installed(module):
            raise SimulationError(
                f"{source} names an environment of the module '{module}', which is not an installed package: "
                f"importing it runs its code. If you trust it, {advice}"
            )


def is_installed(module: str) -> bool:
    """True if the module is imported already, or belongs to an installed package."""
    top = module.partition(".")[0]
    if top in sys.modules:
        return True
    try:
        found = find_spec(top)
    except (ImportError, ValueError):
        return False
    if found is None or not found.has_location or found.origin is None:
        return False
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    places.update(site.getsitepackages())
    origin = Path(found.origin).resolve()
    return any(origin.is_relative_to(Path(place).resolve()) for place in places)


def _import(module: str) -> None:
    try:
        import_named(module)
    except Exception as error:  # d4rl raises many types if MuJoCo 2.1 is missing
        if isinstance(error, ModuleNotFoundError) and error.name in CLASSIC_MODULES:
            raise MissingExtraError(f"The module '{module}'", "d4rl") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SimulationError(f"Cannot import '{module}' for its environments: {reason}") from error
