"""The policy that a run leaves behind: observation in, guided action out; no Trainer, nothing unpickled."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cepdiff.diffusion.guidance import predicted_data_logits
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.errors import DataError, RunError
from cepdiff.policy.recipe_file import build_recipe, read_recipe, write_recipe
from cepdiff.types import DataSpec, EnergyLogits

POLICY_FILE = "policy.pt"

Array = TypeVar("Array", Tensor, NDArray[np.floating[Any]])


@dataclass(frozen=True)
class PolicyRecipe:
    """What a policy file says beside its weights; plain types only.

    Networks, schedule and solver are `{"class_path": ..., "init_args": {...}}`; `energy_net` is None before the
    guidance stage, and `energy_on_clean` says that it belongs to the predicted clean sample. `environment` holds
    env_id, kwargs, module and the reference returns; `sources` the folders where a user's own classes were found.
    """

    task: str
    spec: dict[str, Any]
    behavior_net: dict[str, Any]
    energy_net: dict[str, Any] | None
    schedule: dict[str, Any]
    solver: dict[str, Any]
    environment: dict[str, Any]
    scales: list[float]
    sources: list[str]
    energy_on_clean: bool = False


class GuidedPolicy:
    """Samples actions of p(a|s) ∝ q(a|s) exp(scale beta Q(s, a)) by guided diffusion.

    Args:
        spec: sizes, action bounds, observation statistics.
        eps_net: noise predictor of the behavior policy.
        schedule: its forward process.
        solver: the sampler.
        energy_net: logits of the guidance, or None for the behavior policy alone.
        device: where to compute.
        energy_on_clean: `energy_net` knows clean samples alone, and guides through the predicted one (DPS).
    """

    def __init__(
        self,
        spec: DataSpec,
        eps_net: nn.Module,
        schedule: NoiseSchedule,
        solver: DPMSolver,
        energy_net: nn.Module | None = None,
        device: torch.device | str = "cpu",
        energy_on_clean: bool = False,
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.eps_net = eps_net.to(self.device).eval()
        self.energy_net = None if energy_net is None else energy_net.to(self.device).eval()
        self.schedule = schedule
        self.solver = solver
        self.energy_on_clean = energy_on_clean
        self.logits: EnergyLogits | None = self.energy_net
        if energy_on_clean and self.energy_net is not None:
            self.logits = predicted_data_logits(self.energy_net, self.eps_net, schedule)
        low, high = (torch.tensor(bound, device=self.device) for bound in (spec.action_low, spec.action_high))
        self._bounds = low, high
        self._mean, self._std = (
            None if values is None else torch.tensor(values, device=self.device)
            for values in (spec.observation_mean, spec.observation_std)
        )
        self.recipe: PolicyRecipe | None = None

    @property
    def action_size(self) -> int:
        """A."""
        return self.spec.action_size

    def condition(self, observations: Tensor) -> Tensor:
        """Raw observations (..., S) as the networks see them."""
        observations = observations.to(self.device, torch.float32)
        if self._mean is None or self._std is None:
            return observations
        return (observations - self._mean) / self._std

    def in_bounds(self, samples: Tensor) -> Tensor:
        """Samples (..., A) in [-1, 1] in the environment's units, within its bounds."""
        low, high = self._bounds
        return ((high + low) / 2 + (high - low) / 2 * samples).clamp(low, high)

    def require_energy(self, guidance_scale: float | Tensor) -> None:
        """Raises RunError for a scale other than 0 where there is no energy network."""
        if self.energy_net is None and bool((torch.as_tensor(guidance_scale) != 0).any()):
            raise RunError("this policy has no energy network yet (the guidance stage is unfinished): use scale 0")

    def on(self, device: torch.device | str) -> GuidedPolicy:
        """This policy on another device; the networks are copied, unless they lie there."""
        if torch.device(device) == self.device:
            return self
        networks = copy.deepcopy((self.eps_net, self.energy_net))
        moved = GuidedPolicy(
            self.spec, networks[0], self.schedule, self.solver, networks[1], device, self.energy_on_clean
        )
        moved.recipe = self.recipe
        return moved

    @torch.no_grad()
    def act(
        self,
        observations: Array,
        *,
        guidance_scale: float | Tensor = 1.0,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Array:
        """Actions (B, A) or (A,) in the environment's units, within its bounds, for observations (B, S) or (S,).

        `guidance_scale` is one number or one a row (B,), at least 0; 0 is the behavior policy. `noise` (B, A) makes
        the result deterministic, else it is drawn from `generator` (torch's global one if None). Arrays of NumPy give
        arrays, tensors give tensors on the policy's device.

        Raises:
            DataError: observations of another size, or not finite.
            RunError: a scale other than 0 where the policy has no energy network.
        """
        is_array = isinstance(observations, np.ndarray)
        batch: Tensor = torch.from_numpy(observations) if isinstance(observations, np.ndarray) else observations
        single = batch.ndim == 1
        batch = batch.unsqueeze(0) if single else batch  # (S,) -> (1, S)
        size = self.spec.observation_size
        if batch.ndim != 2 or batch.shape[-1] != size:
            raise DataError(f"observations of shape {tuple(batch.shape)}; expected (B, {size}) or ({size},)")
        if not bool(batch.isfinite().all()):
            raise DataError("observations hold NaN or infinite values")
        scale = torch.as_tensor(guidance_scale, dtype=torch.float32, device=self.device)
        if scale.shape not in ((), (len(batch),)):
            raise DataError(f"guidance_scale of shape {tuple(scale.shape)}; expected one number or ({len(batch)},)")
        if not bool(((scale >= 0) & scale.isfinite()).all()):
            raise DataError(f"guidance_scale is {guidance_scale}; expected finite numbers of 0 or more")
        scale = scale.expand(len(batch))
        self.require_energy(scale)
        if noise is None:
            shape = (len(batch), self.action_size)
            noise = torch.randn(shape, generator=generator, device=generator.device if generator else self.device)
        elif noise.numel() != len(batch) * self.action_size or noise.shape[-1] != self.action_size:
            raise DataError(f"noise of shape {tuple(noise.shape)}; expected ({len(batch)}, {self.action_size})")
        actions = sample_guided(
            self.eps_net,
            self.schedule,
            self.solver,
            self.condition(batch),
            noise.to(self.device, torch.float32).reshape(len(batch), self.action_size),
            logits=self.logits,
            guidance_scale=scale,
            data_bound=1.0,
        )
        actions = self.in_bounds(actions)
        actions = actions.squeeze(0) if single else actions
        return cast(Array, actions.cpu().numpy() if is_array else actions)

    def save(self, run_dir: Path, recipe: PolicyRecipe) -> None:
        """Writes `run_dir/policy.pt`: the recipe and the weights, readable with `torch.load(weights_only=True)`."""
        write_recipe(run_dir / POLICY_FILE, recipe, {"behavior": self.eps_net, "energy": self.energy_net})

    @classmethod
    def from_run(
        cls, run_dir: str | Path, device: torch.device | str = "cpu", num_solver_steps: int | None = None
    ) -> GuidedPolicy:
        """The policy of a run folder, or of the `policy.pt` in one; `num_solver_steps` replaces the run's own.

        Raises:
            RunError: no policy there, or a file that is not one.
        """
        path = Path(run_dir)
        path = path / POLICY_FILE if path.is_dir() else path
        recipe, weights = read_recipe(path, PolicyRecipe, "policy")
        spec = DataSpec.from_dict(recipe.spec)
        built = build_recipe(recipe, weights, (spec.observation_size, spec.action_size), path, num_solver_steps)
        policy = cls(
            spec, built.eps_net, built.schedule, built.solver, built.energy_net, device, recipe.energy_on_clean
        )
        policy.recipe = recipe
        return policy
