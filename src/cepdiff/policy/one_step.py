"""The sampler of a distilled policy, with one network evaluation per action."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cepdiff.diffusion.solver import DPMSolver
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.ranges import Count, NonNegative


class OneStep(GuidedSampler):
    """Samples of the network "one_step", which approximates another sampler, see `modules.distillation`.

    It takes the same noise as that sampler.

    Args:
        parts: with the network "one_step".
        noise_size: standard normal numbers per sample, as for the other sampler.
        max_scale: largest guidance scale that the network was trained at.
    """

    needs = ("one_step",)

    def __init__(self, parts: SamplerParts, noise_size: Count, max_scale: NonNegative) -> None:
        super().__init__(replace(parts, solver=DPMSolver(1, order=1)))  # unused, but reports the number of steps
        self._noise_size = noise_size
        self.max_scale = max_scale

    @property
    def noise_size(self) -> int:
        return self._noise_size

    @property
    def has_energy(self) -> bool:
        """True: the network takes a guidance scale."""
        return True

    def sample(
        self, condition: Tensor, noise: Tensor, guidance_scale: Tensor | None = None, *, static: bool = False
    ) -> Tensor:
        scale = noise.new_zeros(noise.shape[:-1]) if guidance_scale is None else guidance_scale
        with torch.no_grad():
            samples: Tensor = self.networks["one_step"](noise, condition, scale)
        return samples.clamp(-1.0, 1.0)
