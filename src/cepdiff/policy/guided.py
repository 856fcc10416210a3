"""The policy of a run: observation in, guided action out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cepdiff.errors import DataError
from cepdiff.policy.checks import numbers, require_finite_actions, require_finite_observations
from cepdiff.policy.hub import download
from cepdiff.policy.recipe import Recipe, load_sampler
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.types import DataSpec

Array = TypeVar("Array", Tensor, NDArray[np.floating[Any]])


class GuidedPolicy:
    """Actions of p(a|s) ∝ q(a|s) exp(scale beta Q(s, a)): a sampler in the environment's units.

    Args:
        spec: sizes, action bounds, observation statistics.
        sampler: of actions in [-1, 1] given normalised observations.
        recipe: of the file that the policy came from.
    """

    def __init__(self, spec: DataSpec, sampler: GuidedSampler, recipe: Recipe | None = None) -> None:
        self.spec = spec
        self.sampler = sampler
        self.recipe = recipe
        self.device = sampler.device
        low, high = (torch.tensor(bound, device=self.device) for bound in (spec.action_low, spec.action_high))
        self._bounds = low, high
        self._mean, self._std = (
            None if values is None else torch.tensor(values, device=self.device)
            for values in (spec.observation_mean, spec.observation_std)
        )

    @property
    def action_size(self) -> int:
        """A."""
        return self.spec.action_size

    @property
    def noise_size(self) -> int:
        """Standard normal numbers per action."""
        return self.sampler.noise_size

    def condition(self, observations: Tensor) -> Tensor:
        """Raw observations (..., S) as the networks see them."""
        observations = observations.to(self.device, torch.float32)
        if self._mean is None or self._std is None:
            return observations
        return (observations - self._mean) / self._std

    def in_bounds(self, samples: Tensor) -> Tensor:
        """The first action (..., A) of samples (..., action_steps * A) in [-1, 1], in the environment's units."""
        low, high = self._bounds
        return ((high + low) / 2 + (high - low) / 2 * samples[..., : self.action_size]).clamp(low, high)

    def on(self, device: torch.device | str) -> GuidedPolicy:
        """This policy on another device; the networks are copied, unless they are there already."""
        if torch.device(device) == self.device:
            return self
        return type(self)(self.spec, self.sampler.on(device), self.recipe)

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

        `guidance_scale` is one number or one per row (B,), at least 0; 0 is the behavior policy. `noise`
        (B, `noise_size`) makes the result deterministic, else it is drawn from `generator` (torch's global one if
        None). Arrays of any number type and lists give arrays, tensors give tensors on the policy's device.

        Raises:
            DataError: observations have another size or are not finite numbers.
            DivergenceError: an action is NaN, because an observation is far outside the data or a network diverged.
            RunError: a scale other than 0 if the policy has no energy network.
        """
        is_array = not isinstance(observations, Tensor)
        batch = numbers(observations, "observations")
        single = batch.ndim == 1
        batch = batch.unsqueeze(0) if single else batch  # (S,) -> (1, S)
        size = self.spec.observation_size
        if batch.ndim != 2 or batch.shape[-1] != size:
            raise DataError(f"observations of shape {tuple(batch.shape)}; expected (B, {size}) or ({size},)")
        rows = len(batch)
        require_finite_observations(batch)
        scale = numbers(guidance_scale, "guidance_scale").to(self.device)
        if scale.shape not in ((), (rows,)):
            raise DataError(f"guidance_scale of shape {tuple(scale.shape)}; expected one number or ({rows},)")
        if not bool(((scale >= 0) & scale.isfinite()).all()):
            raise DataError(f"guidance_scale is {guidance_scale}; expected finite numbers of 0 or more")
        scale = scale.expand(rows)
        self.sampler.require_energy(scale)
        if noise is None:
            device = generator.device if generator else self.device
            noise = torch.randn(rows, self.noise_size, generator=generator, device=device)
        noise = numbers(noise, "noise").to(self.device)
        if noise.numel() != rows * self.noise_size or noise.shape[-1:] != (self.noise_size,):
            raise DataError(f"noise of shape {tuple(noise.shape)}; expected ({rows}, {self.noise_size})")
        noise = noise.reshape(rows, self.noise_size)
        actions = self.in_bounds(self.sampler.sample(self.condition(batch), noise, scale))
        require_finite_actions(actions, scale)
        actions = actions.squeeze(0) if single else actions
        return cast(Array, actions.cpu().numpy() if is_array else actions)

    @classmethod
    def from_run(
        cls,
        run_dir: str | Path,
        device: torch.device | str = "cpu",
        num_solver_steps: int | None = None,
        trust_sources: Sequence[str | Path] = (),
        one_step: bool = False,
    ) -> GuidedPolicy:
        """The policy of a run folder, of a pulled one, or of the `policy.pt` in one.

        `num_solver_steps` replaces the run's own. `one_step` uses the distilled network instead of the run's sampler.
        Your own classes are imported only from the folders `trust_sources`. Raises as `load_sampler`.
        """
        sampler, recipe = load_sampler(run_dir, device, num_solver_steps, trust_sources, one_step)
        return cls(DataSpec.from_dict(recipe.spec), sampler, recipe)

    @classmethod
    def from_hub(
        cls,
        repo: str,
        device: torch.device | str = "cpu",
        num_solver_steps: int | None = None,
        trust_sources: Sequence[str | Path] = (),
        one_step: bool = False,
        revision: str | None = None,
    ) -> GuidedPolicy:
        """The policy that `cepdiff push` put into `repo` ("user/name") of the Hugging Face hub, through its cache.

        `revision` is a branch, tag or commit; the others are as in `from_run`. Nothing is unpickled, and no code is
        downloaded. Raises as `policy.hub.download` and `load_sampler`.
        """
        return cls.from_run(download(repo, revision), device, num_solver_steps, trust_sources, one_step)
