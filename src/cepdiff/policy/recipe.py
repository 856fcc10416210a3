"""The file of a sampler: its recipe and weights, read without unpickling anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cepdiff.components import build, class_paths
from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import EnergyObjective
from cepdiff.errors import CepdiffError, ConfigError, RunError, one_line
from cepdiff.files import file_hash
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.policy.shared import SHARED_FILE, read_shared, write_shared
from cepdiff.schema import typed
from cepdiff.seals import content_hash, save_sealed, unsealed
from cepdiff.trust import admit
from cepdiff.types import DataSpec

POLICY_FILE = "policy.pt"
FORMAT = 3
# Classes that may be arguments of a network, schedule, solver or objective in a file.
PARTS = (nn.Module, NoiseSchedule)


@dataclass(frozen=True)
class Rollouts:
    """The fields of `Recipe.environment`, if it is not empty."""

    env_id: str
    kwargs: dict[str, Any]
    module: str | None
    reference: list[float] | None
    episodes: int
    seed: int = 0


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
        sources: folders of the user's own classes, shown in a message; only folders that the user names are imported.
        environment: the fields of `Rollouts`; empty if there is none.
        head_names: names of the energies, if the energy network has heads.
        image_shape: (C, H, W) of images.
        energy_unit: as in `SamplerParts`.
        deviations: as in `SamplerParts`.
        one_step: the sampler of the network "one_step"; empty if there is none.
        made_from: checkpoint, relative to the run folder -> its hash.
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
    energy_unit: float = 1.0
    deviations: float | None = None
    one_step: dict[str, Any] = field(default_factory=dict)
    made_from: dict[str, str] = field(default_factory=dict)

    @property
    def sampler_hash(self) -> str:
        """Hash of all that samples depend on besides the networks."""
        return content_hash(
            [self.sampler, self.schedule, self.solver, self.objective, self.energy_unit, self.deviations]
        )


def policy_path(run_dir: str | Path) -> Path:
    """The policy file at `run_dir`, a run folder, a pulled one or the file itself; it need not exist."""
    path = Path(run_dir)
    if not path.is_dir():
        return path
    shared = path / SHARED_FILE
    return shared if shared.is_file() and not (path / POLICY_FILE).exists() else path / POLICY_FILE


def write_recipe(path: Path, recipe: Recipe, networks: Mapping[str, nn.Module]) -> None:
    """Write the recipe, the weights of its networks, and the hash of both."""
    weights = {
        name: {key: value.detach().cpu() for key, value in networks[name].state_dict().items()}
        for name in recipe.networks
    }
    save_sealed(path, {"format": FORMAT, "recipe": dict(vars(recipe)), "weights": weights})


def share(run_dir: str | Path, folder: Path) -> Recipe:
    """Write the policy at `run_dir` to `folder` in the shared form, see `policy.shared`; returns its recipe.

    Folders of this machine are left out, and so are the checkpoints that it was made from, which are not shared.
    Raises as `read_recipe` and `write_shared`.
    """
    recipe, weights, _ = read_recipe(run_dir)
    recipe = replace(recipe, sources=[], made_from={})
    write_shared(folder, {"format": FORMAT, "recipe": dict(vars(recipe)), "weights": weights})
    return recipe


def read_recipe(run_dir: str | Path) -> tuple[Recipe, Mapping[str, Any], Path]:
    """The recipe, the weights and the path of the policy file at `run_dir`, see `policy_path`.

    Raises:
        RunError: the file is missing, truncated, foreign or changed, or does not match the checkpoints in its folder.
        ConfigError: the file is of another version.
    """
    path = policy_path(run_dir)
    is_shared = path.suffix == Path(SHARED_FILE).suffix
    if not path.is_file():
        if path.with_name("sampler.pt").is_file():  # of image runs before 0.2
            raise ConfigError(f"{path.parent} was made by another version of cepdiff; fit again, in another --run_dir")
        raise RunError(f"{path} does not exist: run `cepdiff fit` until the behavior stage has finished")
    try:
        content = read_shared(path) if is_shared else torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"holds a {type(content).__name__}")
        if content["format"] != FORMAT:
            raise ConfigError(f"{path} has format {content['format']}; this version of cepdiff reads {FORMAT}")
        content = unsealed(content)
        recipe, weights = _checked(content["recipe"]), content["weights"]
    except CepdiffError:
        raise
    except Exception as error:  # of many kinds, on a truncated or foreign file
        again = "`cepdiff pull`" if is_shared else "`cepdiff fit`"
        raise RunError(
            f"{path} is not a policy file of cepdiff, or was damaged or changed; run {again} again"
        ) from error
    for name, known in recipe.made_from.items():
        checkpoint = path.parent / name
        if checkpoint.is_file() and file_hash(checkpoint) != known:
            raise RunError(f"{path} was not made from {checkpoint}; run the same `cepdiff fit` again")
    return recipe, weights, path


def load_sampler(
    run_dir: str | Path,
    device: torch.device | str = "cpu",
    num_solver_steps: int | None = None,
    trust_sources: Sequence[str | Path] = (),
    one_step: bool = False,
) -> tuple[GuidedSampler, Recipe]:
    """The sampler of a policy file, as its own class; `num_solver_steps` replaces the recipe's.

    With `one_step` it is the sampler of the distilled network, which has no solver. The classes that the file names are
    imported from installed packages and from the folders `trust_sources`.

    Raises:
        ConfigError: a class cannot be found, is not trusted or cannot be built, or both `one_step` and
            `num_solver_steps` are given; also as `read_recipe`.
        RunError: the weights are of other networks, or the file has no one-step network; also as `read_recipe`.
    """
    recipe, weights, path = read_recipe(run_dir)
    if one_step:
        require_one_step(recipe, path, num_solver_steps)
    admit(class_paths(vars(recipe)), path, trust_sources, recipe.sources)
    solver = recipe.solver
    if num_solver_steps is not None:
        solver = {**solver, "init_args": {**solver["init_args"], "num_steps": num_solver_steps}}
    data = DataSpec.from_dict(recipe.spec)
    sizes = data.observation_size, data.modeled_size
    networks: dict[str, nn.Module] = {}
    bases: dict[str, Any] = {"schedule": NoiseSchedule, "objective": EnergyObjective}  # abstract
    try:
        for name, spec in recipe.networks.items():
            networks[name] = build(spec, nn.Module, f"{name}.net", *sizes, parts=PARTS)
            try:
                networks[name].load_state_dict(weights[name])
            except (KeyError, RuntimeError) as error:
                raise RunError(f"{path}: the weights do not fit the networks that it names") from error
            networks[name].to(device)
        schedule, objective = (build(getattr(recipe, key), base, key, parts=PARTS) for key, base in bases.items())
        built = build(solver, DPMSolver, "solver", parts=PARTS)
        headed, value = bool(recipe.head_names), (recipe.energy_unit, recipe.deviations)
        parts = SamplerParts(sizes[1], networks, schedule, built, objective, headed, *value)
        chosen = recipe.one_step if one_step else recipe.sampler
        return build(chosen, GuidedSampler, "sampler", parts, parts=PARTS), recipe
    except CepdiffError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError, MemoryError) as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise RunError(f"{path} does not fit the classes that it names ({what[:300]})") from error


def require_one_step(recipe: Recipe, path: Path, num_solver_steps: int | None) -> None:
    """Raise as `load_sampler` unless the policy file at `path` has a one-step network and no solver steps are given."""
    if not recipe.one_step:
        raise RunError(
            f"{path} has no one-step network: train it with `cepdiff fit` and --stages.distillation.max_steps N, or "
            "leave out one_step"
        )
    if num_solver_steps is not None:
        raise ConfigError(f"num_solver_steps is {num_solver_steps}, but one step has no solver: leave one of them out")


def _checked(plain: Any) -> Recipe:
    """Return the recipe; raises ValueError unless its fields have the right types and sizes."""
    recipe = typed(Recipe, plain)
    spec = typed(DataSpec, recipe.spec)
    known = (spec.action_low, spec.action_high, spec.observation_mean, spec.observation_std)
    expected = (spec.action_size, spec.action_size, spec.observation_size, spec.observation_size)
    wrong = any(values is not None and len(values) != size for values, size in zip(known, expected, strict=True))
    if wrong and recipe.image_shape is None:  # images have a single pair of bounds
        raise ValueError("bounds or statistics of another size")
    if recipe.environment:
        rollouts = typed(Rollouts, recipe.environment)
        if rollouts.reference is not None and len(rollouts.reference) != 2:
            raise ValueError("environment.reference does not have two values")
    return recipe
