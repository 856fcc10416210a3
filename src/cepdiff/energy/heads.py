"""Sampling from an energy network with heads: each row of a batch is guided by one of H energies.

Head h of net(x (..., A), t, None) -> logits (..., H) stands for -E_t of energy h, up to a constant. The sampler knows
conditions alone: here a row's condition (B, 1) is the index of its head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cepdiff.diffusion.guidance import predicted_data_logits
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import EnergyObjective
from cepdiff.errors import ConfigError
from cepdiff.types import EnergyLogits, NoisePredictor


class HeadedLogits(Protocol):
    """An energy network with H heads: logits(x_t (..., A), t, None) -> (..., H)."""

    def __call__(self, x: Tensor, t: Tensor, condition: None) -> Tensor: ...


class HeadLogits:
    """Logits of one head a row, as `EnergyLogits`: x (..., A), t, condition (..., 1) of head indices -> (...).

    Raises ConfigError where there is no such head.
    """

    def __init__(self, energy_net: HeadedLogits, objective: EnergyObjective) -> None:
        self.energy_net = energy_net
        self.objective = objective

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            raise ConfigError("logits of several heads need the head of each row as their condition (..., 1)")
        logits = self.objective.guiding_logits(self.energy_net(x, t, None))  # (..., H)
        lowest, highest = (int(bound) for bound in condition.aminmax())
        if lowest < 0 or highest >= logits.shape[-1]:
            raise ConfigError(
                f"there is no head {lowest if lowest < 0 else highest}; the energy network has {logits.shape[-1]}, "
                "counted from 0"
            )
        return logits.gather(-1, condition).squeeze(-1)


class FunctionEnergy:
    """The logits -beta E_h(x_0) of a differentiable function of clean images, which needs no training.

    Stands where an energy network does that knows clean samples alone: with the objective `DPS` it guides through the
    predicted clean sample.

    Args:
        function: images (N, C, H, W) in [-1, 1] -> energies (N, heads), or (N,) of a single one.
        image_shape: (C, H, W), whose product is A.
        inverse_temperature: beta.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], image_shape: Sequence[int], inverse_temperature: float
    ) -> None:
        self.function = function
        self.image_shape = tuple(image_shape)
        self.inverse_temperature = inverse_temperature

    def __call__(self, x: Tensor, t: Tensor, condition: None) -> Tensor:
        """(..., heads) for `x` (..., A); raises ConfigError where the energies are none of these images."""
        if x.shape[-1] != math.prod(self.image_shape):
            raise ConfigError(f"samples have {x.shape[-1]} values; images {self.image_shape} do not fit")
        images = x.reshape(-1, *self.image_shape)  # (..., A) -> (N, C, H, W)
        energies = self.function(images)
        if energies.ndim not in (1, 2) or len(energies) != len(images):
            raise ConfigError(
                f"the energy gave {tuple(energies.shape)} for images {tuple(images.shape)}; expected "
                f"({len(images)},) or ({len(images)}, heads)"
            )
        if torch.is_grad_enabled() and x.requires_grad and not energies.requires_grad:
            raise ConfigError("the energy has no gradient in the images; guidance needs a differentiable one in torch")
        logits = -self.inverse_temperature * energies.reshape(len(images), -1)
        return logits.reshape(*x.shape[:-1], -1)  # (N, heads) -> (..., heads)


def head_guidance(
    eps_net: NoisePredictor, energy_net: HeadedLogits, objective: EnergyObjective, schedule: NoiseSchedule
) -> EnergyLogits:
    """What the sampler takes the gradient of: `HeadLogits`, or these at the prediction of `eps_net`."""
    logits = HeadLogits(energy_net, objective)
    return predicted_data_logits(logits, without_condition(eps_net), schedule) if objective.on_clean else logits


def without_condition(eps_net: NoisePredictor) -> NoisePredictor:
    """`eps_net` of an unconditional model beside a condition that is meant for the energy alone."""
    return lambda x, t, condition: eps_net(x, t, None)


def sample_heads(
    eps_net: NoisePredictor,
    energy_net: HeadedLogits,
    objective: EnergyObjective,
    schedule: NoiseSchedule,
    solver: DPMSolver,
    noise: Tensor,
    heads: Tensor,
    guidance_scale: Tensor,
    data_bound: float | None = 1.0,
) -> Tensor:
    """Samples (B, A) of p_h(x) ∝ q(x) exp(-scale beta E_h(x)), with head `heads` (B,) and `guidance_scale` (B,) a row.

    `noise` (B, A) is standard normal; the caller cuts large numbers of samples into chunks. Rows of scale 0 cost no
    gradient, and their heads are not looked at. `data_bound` as in `sample_guided`. Call under `torch.no_grad`.
    Raises ConfigError for a head that `energy_net` has not, or where there is not one head and scale a row.
    """
    for name, values in (("heads", heads), ("guidance_scale", guidance_scale)):
        if values.shape != noise.shape[:1]:
            raise ConfigError(f"{name} has shape {tuple(values.shape)}; expected ({len(noise)},), one a row of noise")
    return sample_guided(
        without_condition(eps_net),
        schedule,
        solver,
        heads.to(noise.device, torch.int64).unsqueeze(-1),  # (B,) -> (B, 1)
        noise,
        logits=head_guidance(eps_net, energy_net, objective, schedule),
        guidance_scale=guidance_scale,
        data_bound=data_bound,
    )
