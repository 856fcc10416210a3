"""Stage 3 for a range of guidance scales: an energy network that takes the scale as an input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cepdiff.components import class_path_of
from cepdiff.modules.guidance import BatchEnergyGuidance, EnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.energy import EnergyMLP, ResidualEnergy
from cepdiff.networks.tempered import Tempered, with_scale
from cepdiff.ranges import Positive
from cepdiff.types import Batch, Metrics

GOLDEN = 0.618034  # golden ratio: its multiples modulo 1 are spread evenly over [0, 1)


class TemperedGuidance(EnergyGuidance):
    """Energy prediction at guidance scales s drawn log-uniformly, one for each contrastive set.

    The energies of a set are s E, and its network (`Tempered`) takes s as an input. At the optimum of Lu et al. 2023,
    Eq. 16, with s beta in place of beta, the gradient at each s is exact for p ∝ q exp(-s beta E); s times the gradient
    of scale 1 is not.

    Args:
        observation_size: S; 0 makes an unconditional energy.
        action_size: A.
        net: `net(observation_size + 1, action_size)` makes the network inside `Tempered`.
        lowest_scale: smallest s in training; below it the logits vanish in proportion to s.
        highest_scale: largest s; larger ones are refused.
        options: those of `EnergyGuidance`, with any objective.
    """

    net: Tempered

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net: Callable[[int, int], nn.Module] = EnergyMLP,
        lowest_scale: Positive = 0.1,
        highest_scale: Positive = 20.0,
        **options: Any,
    ) -> None:
        tempered = partial(Tempered, net=net, lowest_scale=lowest_scale, highest_scale=highest_scale)
        super().__init__(observation_size, action_size, net=tempered, **options)

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        energies = batch["energies"]  # (B, K)
        scale = scale_at(self.net, noise.uniform(len(energies), 1))
        observations = batch.get("observations", energies[:, :0])
        tempered = {"energies": scale * energies, "observations": with_scale(observations, scale.squeeze(-1))}
        return super().loss(batch | tempered, noise)

    def network_spec(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return tempered_spec(arguments)


class TemperedBatchGuidance(BatchEnergyGuidance):
    """`TemperedGuidance` without conditions: one scale for each of the diffusion times of a step.

    Args:
        observation_size: must be 0.
        action_size: A.
        net: as in `TemperedGuidance`.
        lowest_scale: as in `TemperedGuidance`.
        highest_scale: as in `TemperedGuidance`.
        options: those of `BatchEnergyGuidance`, with any objective.
    """

    net: Tempered

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        net: Callable[[int, int], nn.Module] = ResidualEnergy,
        lowest_scale: Positive = 0.1,
        highest_scale: Positive = 20.0,
        **options: Any,
    ) -> None:
        tempered = partial(Tempered, net=net, lowest_scale=lowest_scale, highest_scale=highest_scale)
        super().__init__(observation_size, action_size, net=tempered, **options)

    def contrasts(self, energies: Tensor, noise: RandomStream) -> tuple[Tensor, Tensor | None]:
        steps = torch.arange(self.times_per_step, device=energies.device).unsqueeze(-1)  # (T, 1)
        uniform = (noise.shared_uniform(1, 1) + GOLDEN * steps) % 1.0  # even over the times of a step
        scale = scale_at(self.net, uniform)
        return scale * energies, scale.unsqueeze(-1)  # (T, K), (T, 1, 1)

    def network_spec(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return tempered_spec(arguments)


def scale_at(net: Tempered, uniform: Tensor) -> Tensor:
    """Scales between the lowest and highest of `net`, log-uniform if `uniform` is uniform in [0, 1)."""
    return net.lowest_scale * (net.highest_scale / net.lowest_scale) ** uniform


def tempered_spec(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Class and arguments of a `Tempered` network, from the arguments of its module."""
    return {
        "class_path": class_path_of(Tempered),
        "init_args": {name: arguments[name] for name in ("net", "lowest_scale", "highest_scale")},
    }
