"""One file with a sampler's recipe and weights, which is read without unpickling anything."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from cepdiff.components import build
from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.errors import ConfigError, RunError
from cepdiff.files import written_aside

R = TypeVar("R")
FORMAT = 1
# What a network, schedule or solver of a file may be given as an argument.
PARTS = (nn.Module, NoiseSchedule)


class Recipe(Protocol):
    """What every recipe says: classes as `{"class_path": ..., "init_args": {...}}`, and where a user's own are."""

    @property
    def behavior_net(self) -> dict[str, Any]: ...
    @property
    def energy_net(self) -> dict[str, Any] | None: ...
    @property
    def schedule(self) -> dict[str, Any]: ...
    @property
    def solver(self) -> dict[str, Any]: ...
    @property
    def sources(self) -> list[str]: ...


class Built(NamedTuple):
    """What a recipe makes; `energy_net` is None where the file has none."""

    eps_net: nn.Module
    energy_net: nn.Module | None
    schedule: NoiseSchedule
    solver: DPMSolver


def write_recipe(path: Path, recipe: object, networks: Mapping[str, nn.Module | None]) -> None:
    """Writes the fields of the dataclass `recipe`, plain values, and the weights of the networks that are there."""
    weights = {
        name: {key: value.detach().cpu() for key, value in network.state_dict().items()}
        for name, network in networks.items()
        if network is not None
    }
    with written_aside(path) as file:
        torch.save({"format": FORMAT, "recipe": dict(vars(recipe)), "weights": weights}, file)


def read_recipe(path: Path, recipe_class: type[R], kind: str) -> tuple[R, Mapping[str, Any]]:
    """Recipe and weights that `write_recipe` wrote; `kind` names such files in messages.

    Raises:
        RunError: a file that is missing, torn or foreign.
        ConfigError: a file of another version.
    """
    if not path.is_file():
        raise RunError(f"{path} does not exist: run `cepdiff fit` until the behavior stage has finished")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"holds a {type(content).__name__}")
        if content["format"] != FORMAT:
            raise ConfigError(f"{path} has format {content['format']}; this version of cepdiff reads {FORMAT}")
        return recipe_class(**content["recipe"]), content["weights"]
    except ConfigError:
        raise
    except Exception as error:  # torch.load raises many kinds on a torn or foreign file
        raise RunError(f"{path} is no {kind} file of cepdiff, or is damaged; run `cepdiff fit` again") from error


def build_recipe(
    recipe: Recipe, weights: Mapping[str, Any], sizes: tuple[int, int], path: Path, num_solver_steps: int | None
) -> Built:
    """Networks of `sizes` with their weights, schedule and solver; `num_solver_steps` replaces the recipe's own.

    Raises:
        ConfigError: a class that cannot be found or built.
        RunError: weights of other networks in the file `path`.
    """
    sys.path.extend(folder for folder in recipe.sources if folder not in sys.path)
    solver_spec = recipe.solver
    if num_solver_steps is not None:
        solver_spec = {**solver_spec, "init_args": {**solver_spec["init_args"], "num_steps": num_solver_steps}}
    eps_net = build(recipe.behavior_net, nn.Module, "behavior.net", *sizes, parts=PARTS)
    energy_net = None
    if recipe.energy_net is not None:
        energy_net = build(recipe.energy_net, nn.Module, "guidance.net", *sizes, parts=PARTS)
    try:
        eps_net.load_state_dict(weights["behavior"])
        if energy_net is not None:
            energy_net.load_state_dict(weights["energy"])
    except (KeyError, RuntimeError) as error:
        raise RunError(f"{path}: the weights do not fit the networks that it names") from error
    base: Any = NoiseSchedule  # which is abstract
    schedule: NoiseSchedule = build(recipe.schedule, base, "schedule", parts=PARTS)
    return Built(eps_net, energy_net, schedule, build(solver_spec, DPMSolver, "solver", parts=PARTS))
