"""An energy network that takes the guidance scale as an input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from cepdiff.errors import ConfigError
from cepdiff.ranges import Positive, check_arguments
from cepdiff.types import EnergyLogits, NoisePredictor

ROUNDING = 1.0 + 1e-6  # tolerance for scales in float32


class Tempered(nn.Module):
    """Logits f = s g(x_t, t, c, log s) of the energies s E, for guidance scales s up to `highest_scale`.

    At scale s they learn log E_q(x_0|x_t)[exp(-s beta E(x_0))] up to a constant (Lu et al. 2023, Eq. 8, at the inverse
    temperature s beta), which is not linear in s. It vanishes in proportion to s for s -> 0, so below `lowest_scale`
    the factor g is that of `lowest_scale`. Above `highest_scale` the logits are NaN.

    x (..., A), t (...), condition (..., S + 1), whose last entry is s, with broadcasting leading axes -> logits (...).

    Args:
        condition_size: S, or 0.
        data_size: A.
        net: `net(condition_size + 1, data_size)` makes g; its last condition is log s, scaled to [-1, 1] between the
            lowest and the highest scale.
        lowest_scale: smallest s in training.
        highest_scale: largest s in training.
    """

    def __init__(
        self,
        condition_size: int,
        data_size: int,
        net: Callable[[int, int], nn.Module],
        lowest_scale: Positive,
        highest_scale: Positive,
    ) -> None:
        super().__init__()
        check_arguments(Tempered, locals(), "guidance")
        if lowest_scale > highest_scale:
            raise ConfigError(
                f"guidance.lowest_scale is {lowest_scale:g}, above guidance.highest_scale {highest_scale:g}; expected "
                "at most that"
            )
        if highest_scale < 1.0:
            raise ConfigError(f"guidance.highest_scale is {highest_scale:g}; expected at least 1, the exact scale")
        self.net = net(condition_size + 1, data_size)
        self.lowest_scale = lowest_scale
        self.highest_scale = highest_scale

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        given, scale = condition[..., :-1], condition[..., -1:]  # (..., S), (..., 1)
        middle, half = self.lowest_scale * self.highest_scale, self.highest_scale / self.lowest_scale
        span = math.log(half) / 2 or 1.0  # of a single scale
        level = (scale.clamp(min=self.lowest_scale).log() - math.log(middle) / 2) / span
        level = level.where(scale <= self.highest_scale * ROUNDING, math.nan)
        logits: Tensor = self.net(x, t, torch.cat([given, level], -1))
        return scale.squeeze(-1) * logits

    def check_scales(self, scales: Iterable[float]) -> None:
        """Raise ConfigError for a guidance scale above the highest one."""
        largest = max(scales, default=0.0)
        if largest > self.highest_scale * ROUNDING:
            raise ConfigError(
                f"guidance scale {largest:g} is above {self.highest_scale:g}, the highest that this energy network was "
                f"trained at; use at most that, or train with guidance.highest_scale {largest:g}"
            )


def with_scale(condition: Tensor, scale: Tensor) -> Tensor:
    """`condition` (B, S) with `scale` (B,) as its last entry: (B, S + 1)."""
    return torch.cat([condition, scale.unsqueeze(-1)], -1)


def without_scale(eps_net: NoisePredictor) -> NoisePredictor:
    """`eps_net` for conditions that end with a scale, which is dropped."""
    return lambda x, t, condition: eps_net(x, t, None if condition is None else condition[..., :-1])


def at_scale(logits: EnergyLogits, scale: float) -> EnergyLogits:
    """The logits of a `Tempered` network at one scale, for conditions (..., S) or None."""

    def fixed(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return logits(x, t, nn.functional.pad(x[..., :0] if condition is None else condition, (0, 1), value=scale))

    return fixed
