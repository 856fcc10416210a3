"""The file of a sampler: its recipe and weights, read without unpickling anything."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cepdiff.components import build
from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import EnergyObjective
from cepdiff.errors import ConfigError, RunError
from cepdiff.files import written_aside
from cepdiff.policy.sampler import GuidedSampler, SamplerParts

POLICY_FILE = "policy.pt"
FORMAT = 2
# Classes that may be arguments of a network, schedule, solver or objective in a file.
PARTS = (nn.Module, NoiseSchedule)


@dataclass(frozen=True)
class Recipe:
    """The content of a policy file besides its weights; plain types only.

    Networks, schedule, solver, objective and sampler are `{"class_path": ..., "init_args": {...}}`.

    Args:
        dataset: short name of the data.
        spec: sizes, bounds and observation statistics, see `DataSpec`.
        sampler: the sampler's class.
        networks: name -> class; built with (condition size, sample size) first.
        schedule: the forward process.
        solver: of the diffusion ODE.
        objective: what the energy network was trained on.
        scales: guidance scales of the run.
        sources: folders with the user's own classes.
        environment: env_id, kwargs, module, reference returns, episodes and seed; empty if there is none.
        head_names: names of the energies, if the energy network has heads.
        image_shape: (C, H, W) of images.
    """

    dataset: str
    spec: dict[str, Any]
    sampler: dict[str, Any]
    networks: dict[str, dict[str, Any]]
    schedule: dict[str, Any]
    solver: dict[str, Any]
    objective: dict[str, Any]
    scales: list[float]
    sources: list[str]
    environment: dict[str, Any] = field(default_factory=dict)
    head_names: list[str] = field(default_factory=list)
    image_shape: list[int] | None = None


def write_recipe(path: Path, recipe: Recipe, networks: Mapping[str, nn.Module]) -> None:
    """Write the recipe and the weights of its networks."""
    weights = {
        name: {key: value.detach().cpu() for key, value in networks[name].state_dict().items()}
        for name in recipe.networks
    }
    with written_aside(path) as file:
        torch.save({"format": FORMAT, "recipe": dict(vars(recipe)), "weights": weights}, file)


def read_recipe(run_dir: str | Path) -> tuple[Recipe, Mapping[str, Any], Path]:
    """The recipe, the weights and the path of the policy file at `run_dir`, a run folder or the file itself.

    Raises:
        RunError: a file that is missing, torn or foreign.
        ConfigError: a file of another version.
    """
    path = Path(run_dir)
    path = path / POLICY_FILE if path.is_dir() else path
    if not path.is_file():
        if path.with_name("sampler.pt").is_file():  # of image runs before 0.2
            raise ConfigError(f"{path.parent} was made by another version of cepdiff; fit again, in another --run_dir")
        raise RunError(f"{path} does not exist: run `cepdiff fit` until the behavior stage has finished")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"holds a {type(content).__name__}")
        if content["format"] != FORMAT:
            raise ConfigError(f"{path} has format {content['format']}; this version of cepdiff reads {FORMAT}")
        return Recipe(**content["recipe"]), content["weights"], path
    except ConfigError:
        raise
    except Exception as error:  # torch.load raises many kinds on a torn or foreign file
        raise RunError(f"{path} is no policy file of cepdiff, or is damaged; run `cepdiff fit` again") from error


def load_sampler(
    run_dir: str | Path, device: torch.device | str = "cpu", num_solver_steps: int | None = None
) -> tuple[GuidedSampler, Recipe]:
    """The sampler of a policy file, as its own class; `num_solver_steps` replaces the recipe's.

    The file names classes, and they are imported: load files only from people whose code you would run.

    Raises:
        ConfigError: a class that cannot be found or built, or as `read_recipe`.
        RunError: weights of other networks, or as `read_recipe`.
    """
    recipe, weights, path = read_recipe(run_dir)
    sys.path.extend(folder for folder in recipe.sources if folder not in sys.path)
    solver = recipe.solver
    if num_solver_steps is not None:
        solver = {**solver, "init_args": {**solver["init_args"], "num_steps": num_solver_steps}}
    sizes = recipe.spec["observation_size"], recipe.spec["action_size"]
    networks: dict[str, nn.Module] = {}
    for name, spec in recipe.networks.items():
        networks[name] = build(spec, nn.Module, f"{name}.net", *sizes, parts=PARTS)
        try:
            networks[name].load_state_dict(weights[name])
        except (KeyError, RuntimeError) as error:
            raise RunError(f"{path}: the weights do not fit the networks that it names") from error
        networks[name].to(device)
    bases: dict[str, Any] = {"schedule": NoiseSchedule, "objective": EnergyObjective}  # abstract
    schedule, objective = (build(getattr(recipe, key), base, key, parts=PARTS) for key, base in bases.items())
    built = build(solver, DPMSolver, "solver", parts=PARTS)
    parts = SamplerParts(sizes[1], networks, schedule, built, objective, bool(recipe.head_names))
    return build(recipe.sampler, GuidedSampler, "sampler", parts, parts=PARTS), recipe
