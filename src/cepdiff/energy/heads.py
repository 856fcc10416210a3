"""Energy networks with heads: each row of a batch is guided by one of H energies.

Head h of net(x (..., A), t, None) -> logits (..., H) stands for -E_t of energy h, up to a constant. A row's condition
(B, 1) is the index of its head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cepdiff.diffusion.guidance import predicted_data_logits
from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.energy.objectives import EnergyObjective
from cepdiff.errors import ConfigError
from cepdiff.types import EnergyLogits, NoisePredictor

# An energy network with H heads: logits(x_t (..., A), t, None) -> (..., H).
HeadedLogits = Callable[[Tensor, Tensor, None], Tensor]


class HeadLogits:
    """Logits of one head per row, as `EnergyLogits`: x (..., A), t, condition (..., 1) of head indices -> (...).

    Raises ConfigError if there is no such head, or not one per row.
    """

    def __init__(self, energy_net: HeadedLogits, objective: EnergyObjective) -> None:
        self.energy_net = energy_net
        self.objective = objective

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            raise ConfigError("logits of several heads need the head of each row as their condition (..., 1)")
        logits = self.objective.guiding_logits(self.energy_net(x, t, None))  # (..., H)
        if condition.shape[:-1] != logits.shape[:-1]:  # `gather` would drop rows
            raise ConfigError(f"heads {tuple(condition.shape)} for samples {tuple(x.shape)}; expected one per sample")
        lowest, highest = (int(bound) for bound in condition.aminmax())
        if lowest < 0 or highest >= logits.shape[-1]:
            raise ConfigError(
                f"there is no head {lowest if lowest < 0 else highest}; the energy network has {logits.shape[-1]}, "
                "counted from 0"
            )
        return logits.gather(-1, condition).squeeze(-1)


class FunctionEnergy(nn.Module):
    """The logits -beta E_h(x_0) of a differentiable function of clean images, which needs no training.

    With the objective `DPS` it guides through the predicted clean sample, in place of an energy network on clean
    samples.

    Args:
        condition_size: 0.
        data_size: A, the product of `image_shape`.
        function: images (N, C, H, W) in [-1, 1] -> energies (N, heads), or (N,) if there is one; or its name, as
            `data.energy`.
        image_shape: (C, H, W).
        inverse_temperature: beta.
    """

    def __init__(
        self,
        condition_size: int,
        data_size: int,
        function: Callable[[Tensor], Tensor] | str,
        image_shape: Sequence[int],
        inverse_temperature: float,
    ) -> None:
        super().__init__()
        if data_size != math.prod(image_shape):
            raise ConfigError(f"samples have {data_size} values; images {tuple(image_shape)} do not fit")
        if isinstance(function, str):
            from cepdiff.data.images.energies import find_energy  # with Lightning, which other samplers do without

            function = find_energy(function)
        self.function = function
        self.image_shape = tuple(image_shape)
        self.inverse_temperature = inverse_temperature

    def forward(self, x: Tensor, t: Tensor, condition: None) -> Tensor:
        """(..., heads) for `x` (..., A); raises ConfigError if the function does not give energies of these images."""
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
    """The function whose gradient guides: `HeadLogits`, or their value at the prediction of `eps_net`."""
    logits = HeadLogits(energy_net, objective)
    return predicted_data_logits(logits, head_prior(eps_net), schedule) if objective.on_clean else logits


def head_prior(eps_net: NoisePredictor) -> NoisePredictor:
    """`eps_net` in a sampler whose conditions are heads: a model of classes takes a head as its class, others none."""
    if getattr(eps_net, "num_classes", None) is not None:
        return eps_net
    return lambda x, t, condition: eps_net(x, t, None)
